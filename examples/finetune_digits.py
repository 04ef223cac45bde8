"""Look-ups in every layer, fine-tuned: what is left of a network's accuracy, and what it gains.

A network 64-30-30-30-10 on scikit-learn's handwritten digits, every layer by look-ups
(``lutcc.recipes.Maddness``), as converted and after ``lutcc.finetune`` with the exact network as
the teacher; 4, 8 and 16 codebooks a layer, several seeds. Accuracy is relative to the exact
network's. ITLUMM's table 1 has, for this shape on MNIST, 0.54, 0.72 and 0.87.

Writes results.json.

Run: python examples/finetune_digits.py                  (some 4 minutes)
     python examples/finetune_digits.py --docs docs/look-up-accuracy.md
     python examples/finetune_digits.py --quick          (see that it runs)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

import lutcc
from lutcc.bench.readme import markdown_table, replace_block
from lutcc.data import digits

WIDTHS = (64, 30, 30, 30, 10)
#: Codebooks, and the deviation of the noise that is added to pixels (0 to 1) in fine-tuning.
SETTINGS = {4: 0.08, 8: 0.05, 16: 0.03}
PRINTED = {4: 0.54, 8: 0.72, 16: 0.87}


def exact_network(images: torch.Tensor, labels: torch.Tensor, seed: int, steps: int) -> nn.Module:
    """Train the network that is replaced."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in pairwise(WIDTHS):
        layers += [nn.Linear(before, after), nn.ReLU()]
    network = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return network.eval()


def accuracy(network: Any, images: torch.Tensor, labels: np.ndarray) -> float:
    """Return the share of images that are told right."""
    with torch.inference_mode():
        return float((np.asarray(network(images)).argmax(1) == labels).mean())


def one_run(codebooks: int, seed: int, epochs: int, steps: int) -> dict[str, float]:
    """Return the accuracies of one seed: exact, converted, fine-tuned, and that compiled."""
    data = digits.load(seed=seed)
    train, test = (torch.from_numpy(part) for part in (data.train_x, data.test_x))
    classes = torch.from_numpy(data.train_y)
    exact = exact_network(train, classes, seed, steps)
    recipe = {"*": lutcc.recipes.Maddness(ncodebooks=codebooks)}
    converted = lutcc.convert(exact, recipe, train)
    tuned = lutcc.finetune(
        converted,
        (train, classes),
        epochs=epochs,
        teacher=exact,
        noise=SETTINGS[codebooks],
        seed=seed,
    )
    found: dict[str, Any] = {"exact": exact, "converted": converted, "fine-tuned": tuned}
    found["compiled"] = lutcc.compile(tuned, test)
    return {name: accuracy(network, test, data.test_y) for name, network in found.items()}


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Return the means over seeds, relative to the exact network, as a table in Markdown."""
    rows = []
    for codebooks in SETTINGS:
        own = [run for run in runs if run["codebooks"] == codebooks]
        if not own:
            continue
        cells = [str(codebooks)]
        for name in ("converted", "fine-tuned"):
            relative = [run[name] / run["exact"] for run in own]
            cells.append(f"{np.mean(relative):.3f} ({min(relative):.3f} to {max(relative):.3f})")
        rows.append([*cells, f"{PRINTED[codebooks]:.2f}"])
    header = ["codebooks", "converted", "fine-tuned", "ITLUMM on MNIST, printed"]
    return markdown_table(header, rows)


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run everything; return the accuracies of each run."""
    parser = argparse.ArgumentParser(description="Fine-tune look-ups on digits.")
    parser.add_argument("--output", type=Path, default=Path("out/finetune_digits"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=250)
    parser.add_argument("--quick", action="store_true", help="1 seed, few epochs, 8 codebooks")
    parser.add_argument("--docs", type=Path, help="page whose table is rewritten")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    console, runs = Console(), []
    chosen = (8,) if args.quick else tuple(SETTINGS)
    epochs, seeds, steps = (5, 1, 100) if args.quick else (args.epochs, args.seeds, 400)
    for codebooks in chosen:
        for seed in range(seeds):
            found = one_run(codebooks, seed, epochs, steps)
            if found["compiled"] != found["fine-tuned"]:
                raise SystemExit(
                    f"compiled {found['compiled']}, but {found['fine-tuned']} in torch"
                )
            runs.append({"codebooks": codebooks, "seed": seed, **found})
            told = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
            console.print(f"{codebooks} codebooks, seed {seed}: {told}")
    text = json.dumps({"runs": runs, "epochs": epochs}, indent=1)
    (args.output / "results.json").write_text(text, encoding="utf-8")
    console.print(table(runs), markup=False)
    if args.docs:
        page = replace_block(args.docs.read_text(encoding="utf-8"), "finetune", table(runs))
        args.docs.write_text(page, encoding="utf-8")
    return runs


if __name__ == "__main__":
    main()
