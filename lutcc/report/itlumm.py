"""Tables and pictures of ITLUMM's figures 1 and 2 and table 1, from runs of their example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from lutcc.bench.network_speed import NetworkSpeed
from lutcc.bench.readme import markdown_table
from lutcc.report.figure_style import open_figure

LAYERWISE = ", layer by layer"
#: Of tables learnt by the squared error before softmax; those of contiguous groups are MADDNESS's.
LOGITS = ", before softmax"
#: ITLUMM's table 1: accuracy in percent of a network of 30 neurons a layer on MNIST.
PRINTED = {1: 36.1, 2: 36.3, 4: 52.0, 8: 70.5, 16: 84.9}
PRECISIONS = ("float32", "bfloat16", "int8")
#: Means of differences up to this are rounding.
TIE = 1e-9


@dataclass(frozen=True)
class Point:
    """One network: its accuracy, and that of the exact one.

    ``divergence`` is that of the exact network's classes from its own: the mean over test images of
    the Kullback-Leibler divergence, in nats.
    """

    part: str
    method: str
    codebooks: int
    seed: int
    value: float
    exact: float
    divergence: float | None = None

    @property
    def relative(self) -> float:
        """Accuracy in parts of the exact network's."""
        return self.value / self.exact


def summary(points: Sequence[Point], part: str, method: str, codebooks: int) -> tuple[float, float]:
    """Return mean and deviation over seeds of the relative accuracy."""
    found = [
        p.relative for p in points if (p.part, p.method, p.codebooks) == (part, method, codebooks)
    ]
    return float(np.mean(found)), float(np.std(found))


def _own(points: Sequence[Point], part: str) -> tuple[list[str], list[int]]:
    """Return the methods and the codebooks of a part, in the order they were tried."""
    own = [p for p in points if p.part == part]
    return list(dict.fromkeys(p.method for p in own)), sorted({p.codebooks for p in own})


def table(points: Sequence[Point], part: str, speeds: Sequence[NetworkSpeed]) -> str:
    """Return means and deviations of a part, and what is faster, as a table in Markdown.

    A single seed has no deviation.
    """
    methods, counts = _own(points, part)
    rows, single = [], len({p.seed for p in points if p.part == part}) == 1
    for method in methods:
        cells = [summary(points, part, method, count) for count in counts]
        told = [f"{mean:.3f}" + ("" if single else f" ± {spread:.3f}") for mean, spread in cells]
        rows.append([method, *told])
    if part == "network":
        rows.append(["ITLUMM on MNIST, printed, percent", *(f"{PRINTED[c]}" for c in counts)])
    for speed, precision in product(speeds, PRECISIONS):
        found = [speed.faster(str(count), precision) for count in counts]
        label = f"faster than {precision}, {speed.rows} row{'s' if speed.rows > 1 else ''}"
        rows.append([label, *(f"{'yes' if x > 1 else 'no'}, {x:.2f}x" for x in found)])
    return markdown_table(["codebooks", *map(str, counts)], rows)


def paired(
    points: Sequence[Point], part: str, better: str, other: str, codebooks: int
) -> tuple[float, float]:
    """Return by how much relative accuracies differ, seed by seed: mean and standard error."""
    return _mean_and_error(_differences(points, part, better, other, codebooks, "relative"))


def _differences(
    points: Sequence[Point], part: str, better: str, other: str, codebooks: int, what: str
) -> np.ndarray:
    """Return differences of ``what`` between two methods, an entry per seed that has both."""
    found: dict[str, dict[int, float]] = {better: {}, other: {}}
    for p in points:
        if (p.part, p.codebooks) == (part, codebooks) and p.method in found:
            found[p.method][p.seed] = getattr(p, what)
    seeds = sorted(found[better].keys() & found[other].keys())
    return np.array([found[better][seed] - found[other][seed] for seed in seeds])


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Return the mean and its standard error, NaN of a single value."""
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(values.mean()), float(error)


def _signed(found: tuple[float, float]) -> str:
    mean = f"{round(found[0], 4) + 0.0:+.4f}"  # no negative zero
    return mean if np.isnan(found[1]) else f"{mean} ± {found[1]:.4f}"


def told(points: Sequence[Point], part: str, speeds: Sequence[NetworkSpeed]) -> str:
    """Return the table of a part and what it says; of the classifier, divergences as well."""
    exact = list({p.seed: p.exact for p in points if p.part == part}.values())
    seeds = f"{len(exact)} seeds, exact networks: {np.mean(exact):.3f} ± {np.std(exact):.3f}."
    if len(exact) == 1:
        seeds = f"A single seed, exact network: {exact[0]:.3f}."
    text = f"{table(points, part, speeds)}\n\n{seeds} {verdict(points, part)}"
    if part != "classifier":
        return text
    return f"{text}\n\n{divergences(points, part)}\n\n{objectives(points, part)}"


def divergences(points: Sequence[Point], part: str) -> str:
    """Return mean divergences on test images."""
    methods, counts = _own(points, part)

    def mean(method: str, count: int) -> float:
        own = (p for p in points if (p.part, p.method, p.codebooks) == (part, method, count))
        return float(np.mean([p.divergence for p in own if p.divergence is not None]))

    rows = [[method, *(f"{mean(method, count):.3f}" for count in counts)] for method in methods]
    return markdown_table(["divergence on test images, nats", *map(str, counts)], rows)


def objectives(points: Sequence[Point], part: str) -> str:
    """Return paired differences of the objectives, of each setting and of all together."""
    methods, counts = _own(points, part)
    rows, sentences = [], []
    for against, pairs in _objective_pairs(methods).items():
        told = []
        for what, label, sign in (("relative", "accuracy", 1), ("divergence", "divergence", -1)):
            cells = {
                (kld, count): _differences(points, part, kld, mse, count, what)
                for kld, mse in pairs
                for count in counts
            }
            for kld, _ in pairs:
                found = [_signed(_mean_and_error(cells[kld, count])) for count in counts]
                rows.append([f"{kld.removesuffix('-kld')}, {label}, against {against}", *found])
            better = sum(sign * values.mean() > TIE for values in cells.values())
            every = _signed(_mean_and_error(np.mean(list(cells.values()), axis=0)))
            told.append(f"{label} better in {better} of {len(cells)}, over all {every}")
        sentences.append(f"Against {against}: {'; '.join(told)}.")
    text = markdown_table(["KLD less MSE, mean ± standard error", *map(str, counts)], rows)
    return f"{text}\n\nThe divergence as the objective. {' '.join(sentences)}"


def _objective_pairs(methods: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Return methods that differ in the objective alone, KLD first, by which MSE is the other."""
    found: dict[str, list[tuple[str, str]]] = {}
    for kld in (method for method in methods if method.endswith("-kld")):
        name = kld.removesuffix("-kld")
        logits = "maddness" if name == "contiguous" else f"{name}-mse{LOGITS}"
        for against, mse in (("MSE behind softmax", f"{name}-mse"), ("MSE before softmax", logits)):
            if mse in methods:
                found.setdefault(against, []).append((kld, mse))
    return found


def verdict(points: Sequence[Point], part: str) -> str:
    """Say where means are not above plain MADDNESS, and the divergence not above the square.

    A miss comes with the mean of paired differences and its standard error. Plain MADDNESS has no
    training behind its layers; what has it is held to MADDNESS with it, too.
    """
    methods, counts = _own(points, part)
    others = [m for m in methods if not m.startswith("maddness")]
    plain = [(m, "maddness") for m in others]
    trained = [(m, "maddness" + LAYERWISE) for m in others if m.endswith(LAYERWISE)]
    pairs = [(m, m.replace("-kld", "-mse")) for m in others if "-kld" in m]
    pairs = [(kld, mse) for kld, mse in pairs if mse in methods]
    sentences = []
    for what, found in (
        ("Above plain MADDNESS", plain),
        ("Layer by layer above MADDNESS layer by layer", trained),
        ("The divergence above the squared error", pairs),
    ):
        if not found:
            continue
        misses, every, missed = list[str](), 0, 0
        for better, other in found:
            each = {count: paired(points, part, better, other, count) for count in counts}
            at = [f"{count} ({_signed(pair)})" for count, pair in each.items() if pair[0] <= TIE]
            misses += [f"{better} at {', '.join(at)}"] if at else []
            every, missed = every + len(counts), missed + len(at)
        text = f"{what}, by their means: {every - missed} of {every}"
        sentences.append(text + (f" (not: {'; '.join(misses)})." if misses else "."))
    return " ".join(sentences)


def draw(points: Sequence[Point], speeds: Mapping[str, Sequence[NetworkSpeed]], path: Path) -> None:
    """Write the panels as a PNG: accuracy against codebooks, and where int8 is as fast.

    Panels of a part that has no points are left out.
    """
    panels = {
        "Figure 1A: partitions (KLD)": ("classifier", ["contiguous-kld", "opq-kld", "r2-kld"]),
        "Figure 1B: objectives (r2)": ("classifier", [f"r2-mse{LOGITS}", "r2-mse", "r2-kld"]),
        "Figure 1C: objectives (opq)": ("classifier", [f"opq-mse{LOGITS}", "opq-mse", "opq-kld"]),
        "Figure 2: one layer": ("layers", _own(points, "layers")[0]),
        "Table 1: every layer": (
            "network",
            ["r2-kld", "maddness, layer by layer", "r2-kld, layer by layer"],
        ),
        "Table 1: beyond, weight-aware splits": (
            "network",
            ["contiguous-kld weight-aware", "contiguous-kld weight-aware, layer by layer"],
        ),
    }
    parts = {p.part for p in points}
    panels = {title: panel for title, panel in panels.items() if panel[0] in parts}
    rows = -(-len(panels) // 3)
    with open_figure(11, 3.2 * rows) as figure:
        for place, (title, (part, methods)) in enumerate(panels.items(), 1):
            axes = figure.add_subplot(rows, 3, place)
            counts = _own(points, part)[1]
            shown = methods if part == "layers" else ["maddness", *methods]
            for method in shown:
                found = np.array([summary(points, part, method, count) for count in counts])
                axes.errorbar(
                    counts,
                    *found.T,
                    label=method,
                    marker="o",
                    markersize=3,
                    capsize=2,
                    linewidth=1.3,
                )
            axes.axhline(1.0, color="#1f2933", linestyle=":", linewidth=1)
            even = _break_even(speeds["classifier" if part == "classifier" else "network"], counts)
            if even is not None:
                axes.axvline(even, color="#2563eb", linestyle="--", linewidth=1)
                axes.text(
                    even, axes.get_ylim()[0], " int8 is as fast", color="#2563eb", va="bottom"
                )
            axes.set_xscale("log", base=2)
            axes.set_xticks(counts, [str(c) for c in counts])
            axes.set_title(title)
            axes.set_xlabel("codebooks")
            axes.set_ylabel("accuracy, of the exact network's")
            axes.legend(frameon=False, fontsize=7, loc="lower right")
        figure.savefig(path, dpi=140)


def _break_even(speeds: Sequence[NetworkSpeed], counts: Sequence[int]) -> float | None:
    """Return the codebooks beyond which int8 is faster on many rows; None if it nowhere is."""
    if not speeds:
        return None
    gains = [speeds[-1].faster(str(count), "int8") for count in counts]
    slower = [place for place, gain in enumerate(gains) if gain < 1]
    if not slower:
        return None
    place = slower[0]
    return counts[place] if place == 0 else float(np.sqrt(counts[place - 1] * counts[place]))
