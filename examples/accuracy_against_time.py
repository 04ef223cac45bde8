"""What methods of look-ups keep of a network's accuracy, against what a call of it takes.

A network 64-30-30-30-10 on scikit-learn's handwritten digits, every layer by look-ups, with 4, 8
and 16 codebooks of 16 entries, several seeds:

* ``maddness``: MADDNESS's trees, tables by ridge regression;
* ``itlumm-r2-kld``: the same trees on groups of correlated columns, tables learnt behind the
  activation (squared error behind ReLU, divergence behind softmax) to give what the exact network
  gives; ``itlumm-auto-kld``: on the groups, layer by layer, that err least on held-out rows;
  ``itlumm-auto-mse``: the same by the squared error behind softmax, too;
* ``finetuned``: trees that are aware of the weights, then ``lutcc.finetune`` of the whole network;
* ``lut-nn``: nearest centroids with learned temperatures, trained in the same way;

and the exact network in float32, bfloat16 and int8: its own accuracy in each, and the time of the
faster of lutcc's and torch's kernels. All times are of one run on one core, of compiled networks.

Writes accuracy.jsonl, what ``lutcc report accuracy`` draws of it, and results.json, from which a
run goes on.

Run: python examples/accuracy_against_time.py                  (some 20 minutes)
     python examples/accuracy_against_time.py --docs docs/look-up-accuracy.md
     python examples/accuracy_against_time.py --quick          (see that it runs)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

import lutcc
from lutcc.bench.machine import describe, one_line
from lutcc.bench.network_speed import NetworkSpeed, network_speeds
from lutcc.bench.readme import markdown_table, replace_block
from lutcc.data import ImageSplit, digits
from lutcc.report.accuracy_data import Comparison, compare, written
from lutcc.report.accuracy_figures import summary_png
from lutcc.report.accuracy_log import AccuracyRun, append_run, read_runs
from lutcc.report.accuracy_page import page
from lutcc.report.digits import WIDTHS, train
from lutcc.report.tables import number

#: Codebooks, and the deviation of the noise that is added to pixels (0 to 1) in fine-tuning.
CODEBOOKS = {4: 0.08, 8: 0.05, 16: 0.03}
PRECISIONS = {"exact-fp32": "float32", "exact-bf16": "bfloat16", "exact-int8": "int8"}
ITLUMM = ("itlumm-r2-kld", "itlumm-auto-kld", "itlumm-auto-mse")
METHODS = ("maddness", *ITLUMM, "finetuned", "lut-nn")
PICTURE = "accuracy-against-time.png"


@dataclass(frozen=True)
class Trial:
    """A seed's data and exact network."""

    data: ImageSplit
    network: nn.Sequential
    seed: int

    @property
    def rows(self) -> torch.Tensor:
        """Return the training images, (N, 64)."""
        return torch.from_numpy(self.data.train_x)

    def accuracy(self, network: nn.Module) -> float:
        """Return the share of test images that a network tells right once it is compiled."""
        test = torch.from_numpy(self.data.test_x)
        told = np.asarray(lutcc.compile(network, test)(test)).argmax(1)
        return float((told == self.data.test_y).mean())


@cache
def trial(seed: int) -> Trial:
    """Train the exact network."""
    data = digits.load(seed=seed)
    return Trial(data, train(data, seed), seed)


def recipe(method: str, codebooks: int) -> dict[str, Any]:
    """Return what becomes of each layer."""
    if method == "lut-nn":
        return {"*": lutcc.recipes.Maddness(ncodebooks=codebooks, encoder="nearest")}
    if method == "finetuned":
        return {"*": lutcc.recipes.Maddness(ncodebooks=codebooks)}
    plain: dict[str, Any] = {"ncodebooks": codebooks, "hash_objective": "input"}
    if method == "maddness":
        return {"*": lutcc.recipes.Maddness(**plain)}
    _, partition, objective = method.split("-")
    plain |= {"partition": partition, "target": "network"}
    behind = lutcc.recipes.Maddness(**plain, lut_objective="mse", lut_activation="relu")
    last = lutcc.recipes.Maddness(**plain, lut_objective=objective, lut_activation="softmax")
    return {"*": behind, str(2 * len(WIDTHS) - 4): last}


def network(given: Trial, method: str, codebooks: int, epochs: int) -> nn.Module:
    """Return the exact network's place-taker."""
    if method in PRECISIONS:
        compute = lutcc.recipes.Exact(compute=PRECISIONS[method])
        return lutcc.convert(given.network, {"*": compute})
    converted = lutcc.convert(given.network, recipe(method, codebooks), given.rows)
    if not epochs:
        return converted
    return lutcc.finetune(
        converted,
        (given.rows, torch.from_numpy(given.data.train_y)),
        epochs=epochs,
        teacher=given.network,
        noise=CODEBOOKS[codebooks],
        seed=given.seed,
    )


def points(codebooks: Sequence[int]) -> Iterator[tuple[str, int]]:
    """Yield methods and codebooks; the exact network has none."""
    yield from ((method, 0) for method in PRECISIONS)
    yield from product(METHODS, codebooks)


def speeds(codebooks: Sequence[int], rounds: int) -> list[NetworkSpeed]:
    """Time every network of the first seed, and the exact one, on 1 and 1024 rows.

    Training does not change how long a network takes: these are not fine-tuned.
    """
    first = trial(0)
    networks = {f"{m} {c}": network(first, m, c, 0) for m, c in product(METHODS, codebooks)}
    return network_speeds(first.network, networks, first.data.test_x, rounds=rounds)


def log(path: Path, results: Sequence[dict[str, Any]], found: Sequence[NetworkSpeed]) -> None:
    """Write the log anew: every run once for each number of rows."""
    path.unlink(missing_ok=True)
    for run, speed in product(results, found):
        exact = run["method"] in PRECISIONS
        name = f"{run['method']} {run['codebooks']}"
        seconds = speed.fastest(PRECISIONS[run["method"]]) if exact else speed.networks[name]
        append_run(
            path,
            AccuracyRun(
                task="digits",
                model="-".join(map(str, WIDTHS)),
                method=run["method"],
                setting={} if exact else {"codebooks": run["codebooks"], "K": 16},
                seed=run["seed"],
                value=run["value"],
                exact=run["exact"],
                epochs=run["epochs"] or None,
                time_us=seconds * 1e6,
                rows=speed.rows,
            ),
        )


def table(comparison: Comparison) -> str:
    """Return the report's numbers as a table in Markdown."""
    header = ["method", "accuracy, %", "of exact"]
    for under in comparison.conditions:
        rows = f"{under.rows:,} row" + ("s" if under.rows > 1 else "")
        header += [f"µs, {rows}", "against the fastest exact"]
    rows = []
    for point in comparison.points:
        cells = [point.name, written(point.value, comparison.metric)]
        cells.append(written(point.relative, "", part=True))
        for under in comparison.conditions:
            cells += [number(point.times[under].median), f"{comparison.gain(point, under):.2f}"]
        rows.append(cells)
    return markdown_table(header, rows)


def main(argv: list[str] | None = None) -> Comparison:
    """Run what is not there yet, time, and draw."""
    parser = argparse.ArgumentParser(description="Accuracy of look-ups against time, on digits.")
    parser.add_argument("--output", type=Path, default=Path("out/accuracy"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=250)
    parser.add_argument("--quick", action="store_true", help="1 seed, 3 epochs, 4 codebooks")
    parser.add_argument("--docs", type=Path, help="page whose table and picture are rewritten")
    args = parser.parse_args(argv)
    if args.quick:
        args.seeds, args.epochs = 1, 3
    codebooks = (4,) if args.quick else tuple(CODEBOOKS)
    args.output.mkdir(parents=True, exist_ok=True)
    console, path = Console(), args.output / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    names = ("method", "codebooks", "seed", "epochs")
    done = {tuple(run[name] for name in names) for run in results}
    for seed in range(args.seeds):
        given = trial(seed)
        exact = given.accuracy(given.network)
        for method, count in points(codebooks):
            epochs = args.epochs if method in ("finetuned", "lut-nn") else 0
            key = (method, count, seed, epochs)
            if key in done:
                continue
            value = given.accuracy(network(given, method, count, epochs))
            results.append({**dict(zip(names, key, strict=True)), "value": value, "exact": exact})
            path.write_text(json.dumps(results, indent=1), encoding="utf-8")
            console.print(f"seed {seed}, {method} {count or ''}: {value:.4f} (exact {exact:.4f})")
    logged = args.output / "accuracy.jsonl"
    log(logged, results, speeds(codebooks, 3 if args.quick else 15))
    runs = read_runs(logged)
    comparisons = compare(runs)
    made = page(comparisons, sources=[str(logged)], made=runs[-1].date)
    (args.output / "accuracy-report.html").write_text(made, encoding="utf-8")
    summary_png(comparisons, args.output / PICTURE)
    text = table(comparisons[0])
    console.print(text, markup=False)
    if args.docs:
        summary_png(comparisons, args.docs.parent / PICTURE)
        block = (
            f"![Accuracy against microseconds a call, a panel for each number of rows]({PICTURE})"
        )
        source = args.docs.read_text(encoding="utf-8")
        note = f"{args.seeds} seeds, means and their 95 % intervals. {one_line(describe())}."
        block = replace_block(source, "accuracy-time", f"{block}\n\n{text}\n\n{note}")
        args.docs.write_text(block, encoding="utf-8")
    return comparisons[0]


if __name__ == "__main__":
    main()
