"""How far sampled products are from exact ones: figure 1 of the paper on approximate operations.

Products of 100 x 100 matrices: (a) both with entries from N(1, 1), (b) the first from N(1, 1), as
activations are, the second from N(0, 1), as weights are. The error of equation 18, Frobenius norm
of the difference over the norms of both factors, is averaged over 1000 runs, by mode and sampling
ratio. Writes figure1.png and figure1.json, and prints a table.

The paper's observations hold: in (b) top-k is best and Bernoulli-CRS beats CRS at every ratio; in
(a) Bernoulli-CRS beats CRS above a ratio of about 25 %, and not below. In (a), where the mean that
it leaves out is half the norm, top-k is far worse, and beats CRS again only above 75 %. Norms are
nearly alike here, so the probabilities matter little and WTA-CRS takes few pairs for certain.

Run: python examples/figure1_sampling_error.py               (1000 runs, about a minute of a core)
     python examples/figure1_sampling_error.py --runs 50     (some seconds)
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lutcc.ir.sampling import sample_count, select

SIZE = 100
RATIOS = tuple(round(0.05 * step, 2) for step in range(1, 21))
# Means of both factors, and the panel's title.
CASES = {
    "a": (1.0, 1.0, "(a) both from N(1, 1)"),
    "b": (1.0, 0.0, "(b) one from N(1, 1), the other from N(0, 1)"),
}
# Mode, probabilities, marker, colour, line and name of each curve, in the order of the legend.
METHODS = {
    "crs": ("crs", "optimal", "o", "#d94801", "-", "CRS"),
    "crs_uniform": ("crs", "uniform", "o", "#fdae6b", "--", "CRS, uniform"),
    "bernoulli": ("bernoulli", "optimal", "s", "#08519c", "-", "Bernoulli-CRS"),
    "bernoulli_uniform": ("bernoulli", "uniform", "s", "#6baed6", "--", "Bernoulli-CRS, uniform"),
    "topk": ("topk", "optimal", "^", "#238b45", "-", "top-k"),
    "topk_weights": ("topk_weights", "optimal", "v", "#74c476", "--", "top-k-weights"),
    "wta_crs": ("wta_crs", "optimal", "x", "#111111", ":", "WTA-CRS"),
}


@dataclass(frozen=True)
class Point:
    """The mean error of one mode at one ratio."""

    case: str
    method: str
    ratio: float
    k: int
    error: float
    standard_error: float


def scale_of_pairs(a: np.ndarray, b: np.ndarray, ratios: list[float], run: int) -> np.ndarray:
    """Return what each pair counts, (methods, ratios, pairs): 0 where it is not taken."""
    of_b = np.linalg.norm(b, axis=1)
    of_both = np.linalg.norm(a, axis=0) * of_b
    scales = np.zeros((len(METHODS), len(ratios), len(of_b)))
    for place, (m, r) in enumerate(np.ndindex(scales.shape[:2])):
        mode, probabilities = list(METHODS.values())[m][:2]
        scores = of_b if mode == "topk_weights" else of_both
        k = sample_count(len(of_b), ratios[r])
        # Every sample of a run has random numbers of its own.
        sample = select(scores, k, mode, probabilities, run, place * len(of_b))
        taken = sample.scales > 0
        scales[m, r, sample.indices[taken]] = sample.scales[taken]
    return scales


def errors_of(a: np.ndarray, b: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return equation 18 of each sample, without a product for each.

    The difference is the sum over pairs i of d_i a_i b_i, with d_i = 1 - scale, and the inner
    product of two pairs is that of their columns times that of their rows; so its squared norm is
    d H d, where H is the elementwise product of both Gram matrices.
    """
    inner = (a.T @ a) * (b @ b.T)
    missing = 1.0 - scales
    squares = np.einsum("...i,...i->...", missing @ inner, missing)
    return np.sqrt(np.maximum(squares, 0.0)) / (np.linalg.norm(a) * np.linalg.norm(b))


def measure(runs: int, ratios: list[float], seed: int) -> Iterator[Point]:
    """Yield the points of both panels."""
    for number, (case, (mean_a, mean_b, _)) in enumerate(CASES.items()):
        rng = np.random.default_rng([seed, number])
        found = np.zeros((runs, len(METHODS), len(ratios)))
        for run in range(runs):
            a, b = rng.normal(mean_a, 1, (SIZE, SIZE)), rng.normal(mean_b, 1, (SIZE, SIZE))
            draw = int(rng.integers(2**62))
            found[run] = errors_of(a, b, scale_of_pairs(a, b, ratios, draw))
        spread = found.std(0, ddof=1) / math.sqrt(runs)
        for m, method in enumerate(METHODS):
            for r, ratio in enumerate(ratios):
                k = sample_count(SIZE, ratio)
                mean, error = float(found[:, m, r].mean()), float(spread[m, r])
                yield Point(case, method, ratio, k, mean, error)


def draw(points: list[Point], runs: int, path: Path) -> None:
    """Write the two panels: error against sampling ratio."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(12, 4.9), layout="constrained")
    panels: Any = figure.subplots(1, 2, sharey=True)
    for panel, (case, (_, _, title)) in zip(panels, CASES.items(), strict=True):
        for method, (_, _, marker, colour, line, name) in METHODS.items():
            curve = [p for p in points if p.case == case and p.method == method]
            panel.plot(
                [p.ratio for p in curve],
                [p.error for p in curve],
                marker=marker,
                color=colour,
                linestyle=line,
                label=name,
                markersize=4.5,
                linewidth=1.5,
                clip_on=False,
            )
        panel.set_title(title, fontsize=11)
        panel.set_xlabel("sampling ratio: part of the computation that is done")
        panel.xaxis.set_major_formatter(PercentFormatter(1))
        panel.grid(True, color="#e6e6e6", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xlim(0, 1)
        panel.set_ylim(bottom=0)
    panels[0].set_ylabel("error, relative to the norms of both factors")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.suptitle(
        f"Sampled products of {SIZE} x {SIZE} matrices, mean of {runs:,} runs: lower is better",
        fontsize=12,
    )
    figure.savefig(path, dpi=140)


def table(points: list[Point]) -> str:
    """Return the points as text: a row per ratio, a column per mode."""
    width = max(map(len, METHODS))
    lines: list[str] = []
    for case, (_, _, title) in CASES.items():
        errors = {(p.method, p.ratio): p.error for p in points if p.case == case}
        lines += [title, "ratio  " + "  ".join(name.rjust(width) for name in METHODS)]
        for ratio in sorted({ratio for _, ratio in errors}):
            row = "  ".join(f"{errors[name, ratio]:{width}.4f}" for name in METHODS)
            lines.append(f"{ratio:5.0%}  {row}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> list[Point]:
    """Run the example and return its points."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=1000, help="pairs of matrices (1000)")
    parser.add_argument("--ratios", type=float, nargs="+", default=list(RATIOS), help="in (0, 1]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=Path(), help="folder of the files")
    args = parser.parse_args(argv)
    if args.runs < 2:
        parser.error(f"--runs {args.runs} is below 2, which have no spread")
    if not all(0 < ratio <= 1 for ratio in args.ratios):
        parser.error("--ratios must be above 0 and at most 1")

    points = list(measure(args.runs, args.ratios, args.seed))
    args.output.mkdir(parents=True, exist_ok=True)
    settings = {"size": SIZE, "runs": args.runs, "seed": args.seed}
    text = json.dumps({**settings, "points": [asdict(p) for p in points]}, indent=1)
    (args.output / "figure1.json").write_text(text + "\n", encoding="utf-8")
    draw(points, args.runs, args.output / "figure1.png")
    print(table(points))
    return points


if __name__ == "__main__":
    main()
