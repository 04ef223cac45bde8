"""Look-ups in every layer, fine-tuned: what is left of a network's accuracy, and what it gains.

Networks on scikit-learn's handwritten digits, every layer by look-ups
(``lutcc.recipes.Maddness``), as converted and after ``lutcc.finetune`` with the exact network as
the teacher, several seeds: 64-30-30-30-10 with 4, 8 and 16 codebooks a layer, and
64-512-512-512-10 with a codebook for every 8 columns. Accuracy is relative to the exact network's.
ITLUMM's table 1 has, for the small shape on MNIST, 0.54, 0.72 and 0.87.

Writes results.json.

Run: python examples/finetune_digits.py                  (some 8 minutes)
     python examples/finetune_digits.py --networks wide --docs docs/look-up-accuracy.md
     python examples/finetune_digits.py --quick          (see that it runs)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

import lutcc
from lutcc.bench.readme import markdown_table, replace_block
from lutcc.data import digits
from lutcc.report.accuracy_log import AccuracyRun, append_run


@dataclass(frozen=True)
class Setting:
    """A network and what it becomes.

    ``noise`` is the deviation of what is added to pixels (0 to 1) in fine-tuning; ``steps`` are
    those of training the exact network.
    """

    widths: tuple[int, ...]
    recipe: dict[str, lutcc.recipes.Config]
    noise: float
    epochs: int
    steps: int


def _narrow(codebooks: int, noise: float, epochs: int = 250, steps: int = 400) -> Setting:
    recipe = lutcc.recipes.Maddness(ncodebooks=codebooks)
    return Setting((64, 30, 30, 30, 10), {"*": recipe}, noise, epochs, steps)


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
}
PRINTED = {"4": 0.54, "8": 0.72, "16": 0.87}


def exact_network(
    images: torch.Tensor, labels: torch.Tensor, seed: int, setting: Setting
) -> nn.Module:
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
    return network.eval()


def accuracy(network: Any, images: torch.Tensor, labels: np.ndarray) -> float:
    """Return the share of images that are told right."""
    with torch.inference_mode():
        return float((np.asarray(network(images)).argmax(1) == labels).mean())


def one_run(setting: Setting, seed: int) -> dict[str, float]:
    """Return the accuracies of one seed: exact, converted, fine-tuned, and that compiled."""
    data = digits.load(seed=seed)
    train, test = (torch.from_numpy(part) for part in (data.train_x, data.test_x))
    classes = torch.from_numpy(data.train_y)
    exact = exact_network(train, classes, seed, setting)
    converted = lutcc.convert(exact, setting.recipe, train)
    tuned = lutcc.finetune(
        converted,
        (train, classes),
        epochs=setting.epochs,
        teacher=exact,
        noise=setting.noise,
        seed=seed,
    )
    found: dict[str, Any] = {"exact": exact, "converted": converted, "fine-tuned": tuned}
    found["compiled"] = lutcc.compile(tuned, test)
    return {name: accuracy(network, test, data.test_y) for name, network in found.items()}


def table(runs: Sequence[dict[str, Any]], network: str) -> str:
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
        printed = [f"{PRINTED[codebooks]:.2f}"] if network == "narrow" else []
        rows.append([*cells, *printed])
    header = ["codebooks", "converted", "fine-tuned"]
    return markdown_table(header + ["ITLUMM on MNIST, printed"] * (network == "narrow"), rows)


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
    console, runs = Console(), []
    chosen = {(n, c): s for n in args.networks for c, s in NETWORKS[n].items()}
    if args.quick:
        args.networks, args.seeds = ["narrow"], 1
        chosen = {("narrow", "8"): _narrow(8, 0.05, epochs=5, steps=100)}
    for ((network, codebooks), setting), seed in product(chosen.items(), range(args.seeds)):
        found = one_run(setting, seed)
        if found["compiled"] != found["fine-tuned"]:
            raise SystemExit(f"compiled {found['compiled']}, but {found['fine-tuned']} in torch")
        run = {"network": network, "codebooks": codebooks, "seed": seed, "epochs": setting.epochs}
        runs.append(run | found)
        told = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        console.print(f"{network}, {codebooks} codebooks, seed {seed}: {told}")
        text = json.dumps({"runs": runs}, indent=1)
        (args.output / "results.json").write_text(text, encoding="utf-8")
    if args.log:
        log(args.log, runs)
    for network in args.networks:
        console.print(table(runs, network), markup=False)
        if args.docs:
            name = "finetune" if network == "narrow" else f"finetune-{network}"
            page = replace_block(args.docs.read_text(encoding="utf-8"), name, table(runs, network))
            args.docs.write_text(page, encoding="utf-8")
    return runs


if __name__ == "__main__":
    main()
