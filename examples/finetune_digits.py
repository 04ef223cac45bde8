"""Look-ups in every layer, fine-tuned: what is left of a network's accuracy, and what it gains.

Networks on scikit-learn's handwritten digits, every layer by look-ups
(``lutcc.recipes.Maddness``), as converted and after ``lutcc.finetune`` with the exact network as
the teacher, several seeds: 64-30-30-30-10 with 4, 8 and 16 codebooks a layer, and
64-512-512-512-10 with a codebook for every 8 columns; and trees of 4 to 7 levels beside nearest
centroids with learned temperatures (LUT-NN), with as many bytes in their tables; and trees whose
columns are chosen again in training beside those of the conversion, also where half of the inputs
are noise. Accuracy is relative to the exact network's. ITLUMM's table 1 has, for the small shape on
MNIST, 0.54, 0.72 and 0.87.

Writes results.json, and goes on from one that is there.

Run: python examples/finetune_digits.py                  (some 20 minutes)
     python examples/finetune_digits.py --networks wide --docs docs/look-up-accuracy.md
     python examples/finetune_digits.py --networks resplit --docs docs/look-up-accuracy.md
     python examples/finetune_digits.py --quick          (see that it runs)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

import lutcc
from lutcc.bench.network_speed import network_speeds
from lutcc.bench.readme import markdown_table, replace_block
from lutcc.data import digits
from lutcc.report.accuracy_log import AccuracyRun, append_run


@dataclass(frozen=True)
class Setting:
    """A network and what it becomes.

    ``noise`` is the deviation of what is added to pixels (0 to 1) in fine-tuning; ``steps`` are
    those of training the exact network. ``resplit`` is passed on to ``lutcc.finetune``; ``idle``
    columns of noise (0 to 1) stand behind the pixels.
    """

    widths: tuple[int, ...]
    recipe: dict[str, lutcc.recipes.Config]
    noise: float
    epochs: int
    steps: int
    resplit: int | None = None
    idle: int = 0


def _narrow(
    codebooks: int, noise: float, epochs: int = 250, steps: int = 400, **options: Any
) -> Setting:
    recipe = lutcc.recipes.Maddness(ncodebooks=codebooks, **options)
    return Setting((64, 30, 30, 30, 10), {"*": recipe}, noise, epochs, steps)


#: Names of networks whose columns are chosen again end like this.
_AGAIN = ", chosen again"


def _resplit() -> dict[str, Setting]:
    """Return networks whose columns stay or are chosen again, without and with idle inputs."""
    found = {}
    for codebooks, noise, idle in ((4, 0.08, 0), (8, 0.05, 0), (4, 0.08, 64)):
        name = f"{codebooks}" + (f", and {idle} columns of noise" if idle else "")
        plain = _narrow(codebooks, noise, epochs=80)
        plain = replace(plain, widths=(64 + idle, *plain.widths[1:]), idle=idle)
        found |= {name: plain, name + _AGAIN: replace(plain, resplit=10)}
    return found


def _codes() -> dict[str, Setting]:
    """Return trees and nearest centroids whose tables have as many bytes."""
    found = {}
    for total, encoder in product((128, 256), ("tree", "nearest")):
        for entries in (16, 32, 64, 128):
            if encoder == "tree" or entries <= 64:
                size = {"nprototypes": entries, "encoder": encoder}
                name = f"{encoder}, C = {total // entries}, K = {entries}"
                if total // entries > 1:  # one codebook sees four columns of all
                    found[name] = _narrow(total // entries, 0.05, epochs=80, **size)
    return found


#: By network, and the codebooks as the tables name them.
NETWORKS: dict[str, dict[str, Setting]] = {
    "narrow": {"4": _narrow(4, 0.08), "8": _narrow(8, 0.05), "16": _narrow(16, 0.03)},
    "wide": {
        "8 and 64": Setting(
            (64, 512, 512, 512, 10),
            {
                "*": lutcc.recipes.Maddness(ncodebooks=64),
                "0": lutcc.recipes.Maddness(ncodebooks=8),
            },
            noise=0.15,
            epochs=200,
            steps=100,
        )
    },
    "codes": _codes(),
    "resplit": _resplit(),
}
_TIMES = ["table bytes", "µs, 1 row", "µs, 1024 rows"]
PRINTED = {"4": 0.54, "8": 0.72, "16": 0.87}


def exact_network(
    images: torch.Tensor, labels: torch.Tensor, seed: int, setting: Setting
) -> nn.Sequential:
    """Train the network that is replaced."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in pairwise(setting.widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    network = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(setting.steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    network.eval()
    return network


def accuracy(network: Any, images: torch.Tensor, labels: np.ndarray) -> float:
    """Return the share of images that are told right."""
    with torch.inference_mode():
        return float((np.asarray(network(images)).argmax(1) == labels).mean())


def one_run(setting: Setting, seed: int) -> dict[str, float]:
    """Return the accuracies of one seed: exact, converted, fine-tuned, and that compiled."""
    data = digits.load(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    train, test = (
        torch.cat([torch.from_numpy(x), torch.rand(len(x), setting.idle, generator=generator)], 1)
        for x in (data.train_x, data.test_x)
    )
    classes = torch.from_numpy(data.train_y)
    exact = exact_network(train, classes, seed, setting)
    converted = lutcc.convert(exact, setting.recipe, train)
    tuned = lutcc.finetune(
        converted,
        (train, classes),
        epochs=setting.epochs,
        teacher=exact,
        noise=setting.noise,
        resplit=setting.resplit,
        seed=seed,
    )
    found: dict[str, Any] = {"exact": exact, "converted": converted, "fine-tuned": tuned}
    found["compiled"] = lutcc.compile(tuned, test)
    return {name: accuracy(network, test, data.test_y) for name, network in found.items()}


def table(
    runs: Sequence[dict[str, Any]], network: str, times: dict[str, list[float]] | None = None
) -> str:
    """Return the means over seeds, relative to the exact network, as a table in Markdown."""
    rows = []
    for codebooks in NETWORKS[network]:
        own = [r for r in runs if (r["network"], r["codebooks"]) == (network, codebooks)]
        if not own:
            continue
        cells = [codebooks]
        for name in ("converted", "fine-tuned"):
            relative = [run[name] / run["exact"] for run in own]
            cells.append(f"{np.mean(relative):.3f} ({min(relative):.3f} to {max(relative):.3f})")
        if network == "narrow":
            cells.append(f"{PRINTED[codebooks]:.2f}")
        if times:
            size, one, many = times[codebooks]
            cells += [f"{size:,.0f}", f"{one:.2f}", f"{many:.1f}"]
        rows.append(cells)
    header = ["codebooks", "converted", "fine-tuned"]
    header += {"narrow": ["ITLUMM on MNIST, printed"], "codes": _TIMES}.get(network, [])
    return markdown_table(header, rows)


def resplit_table(runs: Sequence[dict[str, Any]]) -> str:
    """Return what choosing columns again changes, seed by seed, as a table in Markdown."""
    by_name: dict[str, dict[int, dict[str, Any]]] = {}
    for run in runs:
        if run["network"] == "resplit":
            by_name.setdefault(run["codebooks"], {})[run["seed"]] = run
    rows = []
    for name, plain in by_name.items():
        again = by_name.get(name + _AGAIN, {})
        seeds = sorted(plain.keys() & again.keys())
        if not seeds:
            continue
        values = [
            np.array([each[seed][part] / each[seed]["exact"] for seed in seeds])
            for each, part in ((plain, "converted"), (plain, "fine-tuned"), (again, "fine-tuned"))
        ]
        gain = values[2] - values[1]
        cells = [f"{np.mean(v):.3f} ({np.min(v):.3f} to {np.max(v):.3f})" for v in values]
        told = f"{np.mean(gain):+.3f}, better with {sum(gain > 0)} of {len(seeds)} seeds"
        rows.append([name, *cells, told])
    header = ["codebooks", "converted", "fine-tuned", "fine-tuned, columns chosen again", "change"]
    return markdown_table(header, rows)


def sparse_layer(seeds: int) -> str:
    """Return what choosing columns again does for a layer that reads a quarter of its inputs.

    16 inputs, four codebooks, and an exact layer with weights of 0 but for one codebook's columns:
    the squared error of the network's outputs, relative to their variance, on new rows.
    """
    errors: dict[int | None, list[float]] = {None: [], 2: []}
    for seed, resplit in product(range(seeds), errors):
        torch.manual_seed(seed)
        exact = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 3)).eval()
        with torch.no_grad():
            exact[0].weight[:, 4:] = 0  # pyright: ignore
            exact[0].weight.mul_(4)  # pyright: ignore
        rows, fresh = torch.rand(1200, 16), torch.rand(1000, 16)
        small = lutcc.convert(exact, {"0": lutcc.recipes.Maddness(ncodebooks=4)}, rows)
        tuned = lutcc.finetune(
            small, (rows, None), epochs=20, teacher=exact, resplit=resplit, seed=seed
        )
        with torch.no_grad():
            wanted = exact(fresh)
            error = (tuned(fresh) - wanted).square().mean() / wanted.var()
        errors[resplit].append(float(error))
    stays, again = (np.mean(each) for each in errors.values())
    told = f"{stays:.3f} with the columns of the conversion, {again:.3f} with columns chosen again"
    return f"A layer that reads 4 of its 16 inputs, 4 codebooks: relative squared error {told}."


def timed(settings: dict[str, Setting]) -> dict[str, list[float]]:
    """Return bytes of tables, and microseconds at 1 and 1024 rows, of each setting's network.

    What they compute does not change how long it takes: they are not fine-tuned.
    """
    data = digits.load()
    images, classes = torch.from_numpy(data.train_x), torch.from_numpy(data.train_y)
    exact = exact_network(images, classes, 0, next(iter(settings.values())))
    networks = {n: lutcc.convert(exact, each.recipe, images) for n, each in settings.items()}
    speeds = network_speeds(exact, networks, data.train_x)
    return {
        name: [
            sum(layer.table_bytes for layer in network.conversion_report.layers),  # pyright: ignore
            *(speed.networks[name] * 1e6 for speed in speeds),
        ]
        for name, network in networks.items()
    }


def log(path: Path, runs: Sequence[dict[str, Any]]) -> None:
    """Append every network to a log of accuracies."""
    for run, method in product(runs, ("converted", "fine-tuned")):
        setting = NETWORKS[run["network"]][run["codebooks"]]
        append_run(
            path,
            AccuracyRun(
                task="digits",
                model="-".join(map(str, setting.widths)),
                method={"converted": "maddness", "fine-tuned": "finetuned"}[method],
                seed=run["seed"],
                value=run[method],
                exact=run["exact"],
                setting={"codebooks": run["codebooks"]},
                epochs=run["epochs"] if method == "fine-tuned" else None,
            ),
        )


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run everything; return the accuracies of each run."""
    parser = argparse.ArgumentParser(description="Fine-tune look-ups on digits.")
    parser.add_argument("--output", type=Path, default=Path("out/finetune_digits"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--quick", action="store_true", help="1 seed, few epochs, 8 codebooks")
    parser.add_argument("--docs", type=Path, help="page whose tables are rewritten")
    parser.add_argument("--log", type=Path, help="log of accuracies to append to")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    console, runs = Console(), list[dict[str, Any]]()
    chosen = {(n, c): s for n in args.networks for c, s in NETWORKS[n].items()}
    if args.quick:
        args.networks, args.seeds = ["narrow"], 1
        chosen = {("narrow", "8"): _narrow(8, 0.05, epochs=5, steps=100)}
    path = args.output / "results.json"
    if path.exists():
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    done = {(run["network"], run["codebooks"], run["seed"], run["epochs"]) for run in runs}
    for seed, ((network, codebooks), setting) in product(range(args.seeds), chosen.items()):
        if (network, codebooks, seed, setting.epochs) in done:
            continue
        found = one_run(setting, seed)
        if found["compiled"] != found["fine-tuned"]:
            raise SystemExit(f"compiled {found['compiled']}, but {found['fine-tuned']} in torch")
        run = {"network": network, "codebooks": codebooks, "seed": seed, "epochs": setting.epochs}
        runs.append(run | found)
        told = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        console.print(f"{network}, {codebooks} codebooks, seed {seed}: {told}")
        path.write_text(json.dumps({"runs": runs}, indent=1), encoding="utf-8")
    if args.log:
        log(args.log, runs)
    for network in args.networks:
        if network == "resplit":
            text = f"{resplit_table(runs)}\n\n{sparse_layer(args.seeds)}"
        else:
            times = timed(NETWORKS[network]) if network == "codes" else None
            text = table(runs, network, times)
        console.print(text, markup=False)
        if args.docs:
            name = "finetune" if network == "narrow" else f"finetune-{network}"
            page = replace_block(args.docs.read_text(encoding="utf-8"), name, text)
            args.docs.write_text(page, encoding="utf-8")
    return runs


if __name__ == "__main__":
    main()
