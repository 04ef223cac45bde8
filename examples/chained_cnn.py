"""A network of convolutions by look-ups that stays in integers from layer to layer.

A small CNN learns scikit-learn's handwritten digits; all its convolutions but the first become
look-ups (``lutcc.recipes.Maddness``), and it is compiled. What is told: what both get right, for
how many images the compiled network gives what the torch module gives, and which sums stay integers
(``artifact.explain()``). ``--docs`` measures the larger networks of ``lutcc bench chains``, layers
of rows and convolutions, beside bfloat16 and int8, and writes this CPU's part of a page.

Run: python examples/chained_cnn.py                                         (half a minute)
     python examples/chained_cnn.py --docs docs/look-up-chains.md         (five minutes, idle)
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import lutcc
from lutcc.bench.chains_images import ALL_LAYERS
from lutcc.bench.chains_report import FLOATS, OWN, TWO_CORES, fastest_rival
from lutcc.bench.machine import describe, one_line
from lutcc.bench.readme import markdown_table, replace_block
from lutcc.data import digits
from lutcc.report.tables import number, pretty
from lutcc.tuning.host import cpu_name

#: Candidates of the table, and what they are called there.
SHOWN = {
    OWN: "look-ups, first convolution exact",
    ALL_LAYERS: "look-ups in all convolutions",
    FLOATS: "look-ups, first exact, float32 between layers",
    "lutcc int8": "lutcc int8",
    "lutcc bfloat16": "lutcc bfloat16",
    "fp32_onednn": "oneDNN float32",
    "bf16": "torch bfloat16",
    "bf16_onednn": "oneDNN bfloat16",
    "int8_onednn": "torch int8 (oneDNN)",
    "int8_x86": "torch int8 (x86 engine)",
    "int8_onnxruntime": "onnxruntime int8",
}


def network() -> nn.Sequential:
    """Return an untrained network for images of 8 x 8."""

    def block(channels: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]

    convolutions = [*block(1, 16), *block(16, 32), nn.MaxPool2d(2), *block(32, 32)]
    return nn.Sequential(*convolutions, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10))


def train(net: nn.Sequential, x: torch.Tensor, labels: torch.Tensor, steps: int) -> None:
    """Fit a network to its labels."""
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(steps):
        some = torch.randint(0, len(x), (128,))
        loss = nn.functional.cross_entropy(net(x[some]), labels[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()


def agreement(found: np.ndarray, expected: np.ndarray) -> str:
    """Return for how many images outputs are the same to rounding, and how far others are apart.

    They are apart where a float of an exact layer rounds to the other side of a tree's threshold.
    Sums of look-ups do not, however a batch norm rounds them: thresholds are half way between two.
    """
    apart = np.abs(found - expected).max(1)
    same = np.count_nonzero(apart <= 1e-5 * np.abs(expected).max())
    return (
        f"{same} of {len(apart)} images are the same to rounding, others within {apart.max():.1e}"
    )


def images_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return microseconds an image, and how much faster the look-ups are."""
    batches = [int(row["N"]) for row in rows]
    times = {
        label: [row["times"][label]["best"] / row["N"] * 1e6 for row in rows]
        for label in SHOWN
        if all(label in row["times"] for row in rows)
    }
    table = []
    for label, own in times.items():
        ratios = [t / first for t, first in zip(own, times[OWN], strict=True)]
        cells = [f"{t:.1f} ({r:.2f}x)" for t, r in zip(own, ratios, strict=True)]
        table.append([SHOWN[label], *cells])
    header = ["microseconds an image (and times the first row)", *(f"batch {n}" for n in batches)]
    return markdown_table(header, table)


def rows_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return microseconds of networks of rows, and the fastest of bfloat16 and int8 beside them."""
    table = []
    for row in rows:
        times = {label: timing["best"] * 1e6 for label, timing in row["times"].items()}
        own, both = times[OWN], times.get(TWO_CORES)
        rival, slower = fastest_rival(row)
        cells = [row["network"], str(row["N"]), number(own), number(times[FLOATS])]
        name = rival if rival.startswith("lutcc") else pretty(rival)
        float32 = min(t for label, t in times.items() if label.startswith("fp32"))
        cells += [number(float32), f"{number(own * slower)} ({name})", f"{slower:.2f}x as fast"]
        table.append([*cells, "" if both is None else f"{own / both:.2f}x"])
    header = ["microseconds", "N", "look-ups", "floats between layers", "fastest float32",
              "fastest bfloat16 or int8", "look-ups are", "two cores"]  # fmt: skip
    return markdown_table(header, table)


def block_name() -> str:
    """Return the name of this processor's block in the page."""
    return f"chains-{cpu_name()}"


def page_part(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what stands in this processor's block."""
    images = [row for row in rows if ALL_LAYERS in row["times"]]
    parts = (
        rows_table([row for row in rows if row not in images]),
        images_table(images),
        f"{one_line(describe())}; two cores where they are named.",
    )
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> float:
    """Run the example; returns the look-ups' accuracy relative to the exact network's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1300, help="images to learn from")
    parser.add_argument("--steps", type=int, default=300, help="steps of training")
    parser.add_argument("--docs", type=Path, help="page whose table of times is rewritten")
    args = parser.parse_args(argv)
    if args.docs:  # before it takes minutes to measure
        replace_block(args.docs.read_text(encoding="utf-8"), block_name(), "")

    torch.manual_seed(0)
    data = digits.load()
    images = [torch.from_numpy(x.reshape(-1, 1, 8, 8)) for x in (data.train_x, data.test_x)]
    x, labels = images[0][: args.rows], torch.from_numpy(data.train_y[: args.rows])
    net = network()
    train(net, x, labels, args.steps)
    recipe = {f"{i}": lutcc.recipes.Maddness(ncodebooks=c) for i, c in ((3, 16), (7, 32))}
    small = lutcc.convert(net, recipe, x)

    with torch.inference_mode():
        exact, expected = (model(images[1]).numpy() for model in (net, small))
    artifact = lutcc.compile(small, images[1][:8])
    found = np.asarray(artifact(images[1]))
    right = [float((y.argmax(1) == data.test_y).mean()) for y in (exact, expected, found)]
    print(f"right: exact {right[0]:.4f}, by look-ups {right[1]:.4f}, compiled {right[2]:.4f}")
    print(f"compiled and torch: {agreement(found, expected)}\n")
    print(artifact.explain())
    if args.docs:
        from lutcc.bench.chains import bench_chains
        from lutcc.bench.options import BenchOptions

        cores = tuple(sorted(os.sched_getaffinity(0)))[:2]
        part = page_part(bench_chains(BenchOptions(cores=cores)))
        page = replace_block(args.docs.read_text(encoding="utf-8"), block_name(), part)
        args.docs.write_text(page, encoding="utf-8")
    return right[2] / right[0]


if __name__ == "__main__":
    main()
