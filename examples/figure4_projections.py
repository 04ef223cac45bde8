"""How well cheap projections approximate a random matrix: figure 4 of the LookupFFN paper.

Each projection is trained by Adam to be a matrix of independent normal numbers, which has no
structure to exploit. Its relative squared error is drawn against its FLOPs and its parameters:
BH1 to BH8 over block sizes, ACDC and its Hadamard variant over their number of layers, ShuffleNet's
blocks with a channel shuffle. Writes figure4.png, figure4.csv and figure4.json, and prints a table.

Run: python examples/figure4_projections.py                 (256 x 256, some 20 minutes of one core)
     python examples/figure4_projections.py --quick         (32 x 32, some seconds)
     python examples/figure4_projections.py --size 512      (as large as the paper's layers; hours)
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lutcc.nn import DiagonalProjection, Projection, make_projection

# Marker, colour and name of each family, in the order of the legend.
STYLES = {
    "bh1": ("o", "#9ecae1", "BH1"),
    "bh2": ("o", "#6baed6", "BH2"),
    "bh3": ("o", "#4292c6", "BH3"),
    "bh4": ("o", "#08519c", "BH4"),
    "bh6": ("s", "#74c476", "BH6"),
    "bh8": ("s", "#238b45", "BH8"),
    "shuffle": ("x", "#111111", "ShuffleNet"),
    "acdc": ("^", "#d94801", "ACDC (cosine)"),
    "hadamard": ("v", "#ae017e", "ACDC (Hadamard)"),
}


@dataclass(frozen=True)
class Point:
    """One projection and how near it came to the matrix."""

    family: str
    name: str
    block_size: int
    flops: int
    parameters: int
    error: float
    learning_rate: float


def cases(size: int) -> Iterator[tuple[str, str, int]]:
    """Yield (family, projection's name, block size), as far as FLOPs are near the dense one's."""
    for family in STYLES:
        if family in ("acdc", "hadamard"):
            grid = [(f"{family}{k}", 64) for k in (1, 2, 4, 8, 16, 32, 64)]
        else:
            smallest = 1 if size < 128 else 2
            grid = [(family, 1 << b) for b in range(smallest, size.bit_length() - 1)]
        for name, block_size in grid:
            made = make_projection(name, size, size, block_size, device="meta")
            if made.flops <= 1.3 * 2 * size * size:
                yield family, name, block_size


def starts(name: str, size: int, block_size: int, seed: int) -> Iterator[Projection]:
    """Yield fresh projections to train; ACDC also from near the identity, as its authors do."""
    torch.manual_seed(seed)
    projection = make_projection(name, size, size, block_size)
    yield projection
    if isinstance(projection, DiagonalProjection):
        torch.manual_seed(seed)
        near_identity = make_projection(name, size, size)
        torch.nn.init.normal_(near_identity.get_parameter("diagonals"), mean=1.0, std=0.1)
        yield near_identity


def train(projection: Projection, target: torch.Tensor, steps: int, rate: float) -> float:
    """Return the relative squared error after ``steps`` of Adam, whose rate falls to zero."""
    rows, norm = torch.eye(len(target)), target.square().sum()
    optimizer = torch.optim.Adam(projection.parameters(), lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = (projection(rows) - target).square().sum() / norm
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return float((projection.matrix() - target).square().sum() / norm)


def measure(size: int, steps: int, rates: list[float], seed: int) -> list[Point]:
    """Train every case and keep its best learning rate and start."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(size, size, generator=generator) / size**0.5
    points = []
    for family, name, block_size in cases(size):
        found = []
        for rate in rates:
            for projection in starts(name, size, block_size, seed):
                found.append((train(projection, target, steps, rate), rate, projection))
        error, rate, projection = min(found, key=lambda each: each[0])
        count = projection.parameter_count
        points.append(Point(family, name, block_size, projection.flops, count, error, rate))
        where = (
            f"{name} block {block_size}" if "blocks" in dict(projection.named_children()) else name
        )
        print(f"{where}: error {error:.4f}", file=sys.stderr)
    return points


def draw(points: list[Point], size: int, path: Path) -> None:
    """Write the two panels: error against FLOPs and against parameters."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.9), layout="constrained")
    panels: Any = figure.subplots(1, 2, sharey=True)
    for panel, attribute, dense, label in (
        (panels[0], "flops", 2 * size * size, "FLOPs per row"),
        (panels[1], "parameters", size * size, "parameters"),
    ):
        for family, (marker, colour, name) in STYLES.items():
            line = sorted((p for p in points if p.family == family), key=lambda p: p.parameters)
            panel.plot(
                [getattr(p, attribute) for p in line],
                [p.error for p in line],
                marker=marker,
                color=colour,
                label=name,
                linestyle=":" if family == "shuffle" else "-",
                linewidth=2.2 if family == "bh4" else 1.2,
                markersize=7 if family in ("bh4", "shuffle") else 5,
                zorder=3 if family in ("bh4", "shuffle") else 2,
            )
        panel.axvline(dense, color="#555555", linestyle="--", linewidth=1)
        panel.annotate(
            "dense",
            (dense, 0.02),
            xycoords=("data", "axes fraction"),
            xytext=(-4, 0),
            textcoords="offset points",
            ha="right",
            color="#555555",
        )
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xlabel(f"{label} (of the dense projection: {dense:,})")
        panel.grid(True, which="both", color="#e6e6e6", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("squared error, relative to the matrix")
    _label_powers(panels, [p.error for p in points])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.suptitle(
        f"Approximating a random {size} x {size} matrix: to the left and down is better",
        fontsize=12,
    )
    figure.savefig(path, dpi=140)


def _label_powers(panels: Any, errors: list[float]) -> None:
    """Write plain numbers at the ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for panel in panels:
        panel.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value / 1024:g}k" if value >= 1024 else f"{value:g}")
        )
        panel.set_ylim(max(min(errors) * 0.8, 1e-4), 1.15)


def table(points: list[Point], size: int) -> str:
    """Return the points as text."""
    lines = [
        f"{'projection':12} {'block':>5} {'FLOPs':>9} {'of dense':>8} {'params':>8} {'error':>7}"
    ]
    for p in points:
        block = "" if p.family in ("acdc", "hadamard") else str(p.block_size)
        share = p.flops / (2 * size * size)
        lines.append(
            f"{p.name:12} {block:>5} {p.flops:9,} {share:8.2f} {p.parameters:8,} {p.error:7.4f}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> list[Point]:
    """Run the example and return its points."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="32 x 32, 100 steps, one rate")
    parser.add_argument("--size", type=int, help="of the matrix, a power of two (256)")
    parser.add_argument("--steps", type=int, help="of Adam (300)")
    parser.add_argument("--rates", type=float, nargs="+", help="learning rates, the best counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=Path(), help="folder of the files")
    args = parser.parse_args(argv)
    size = args.size or (32 if args.quick else 256)
    steps = args.steps or (100 if args.quick else 300)
    rates = args.rates or ([0.03] if args.quick else [0.01, 0.03])
    if size < 8 or size & (size - 1):
        parser.error(f"--size {size} is no power of two from 8 on")

    points = measure(size, steps, rates, args.seed)
    args.output.mkdir(parents=True, exist_ok=True)
    rows = [asdict(p) for p in points]
    with (args.output / "figure4.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    settings = {"size": size, "steps": steps, "rates": rates, "seed": args.seed}
    text = json.dumps({**settings, "points": rows}, indent=1)
    (args.output / "figure4.json").write_text(text + "\n", encoding="utf-8")
    draw(points, size, args.output / "figure4.png")
    print(table(points, size))
    return points


if __name__ == "__main__":
    main()
