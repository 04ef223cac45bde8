"""The figures of a tuning report: curves, distributions, rooflines; as SVG and as one PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lutcc.report.figure_style import (
    BAD,
    INK,
    LIGHT,
    MUTED,
    PAPER,
    WIDTH,
    open_figure,
    to_svg,
)
from lutcc.report.tuning_data import Kernel, Target
from lutcc.tuning.names import FAMILIES, duration, gain

_ROW = 0.25  # inches of a kernel in the figures that list them
_SLOWEST = 4.0  # relative times beyond are drawn at the edge


def colour(family: str) -> str:
    """Return the name of a family's colour, a key of :data:`COLOURS`."""
    return f"family{FAMILIES.index(family)}"


def curves_svg(target: Target) -> str:
    """Return the tuning curves of a target's kernels, a small panel each, as inline SVG.

    Raises
    ------
    DependencyError
        Without matplotlib; the same holds for the other figures.
    """
    with open_figure(WIDTH, _curves_height(target)) as figure:
        _curves(figure, target)
        return to_svg(figure, f"curves {target.name}")


def trials_svg(target: Target) -> str:
    """Return the relative times of all trials, a line for each kernel, as inline SVG."""
    with open_figure(WIDTH, _list_height(target)) as figure:
        axes = figure.subplots()
        _trials(axes, target.kernels)
        _name_rows(axes, target.kernels)
        return to_svg(figure, f"trials {target.name}")


def roofline_svg(target: Target) -> str:
    """Return the part of the roofline that each kernel achieves, as inline SVG."""
    with open_figure(WIDTH, _list_height(target)) as figure:
        axes = figure.subplots()
        _roofline(axes, target.kernels)
        _name_rows(axes, target.kernels)
        return to_svg(figure, f"roofline {target.name}")


def summary_png(targets: Sequence[Target], path: str | Path, *, dpi: int = 120) -> None:
    """Write one picture of everything: for each target gains, trials, roofline and curves.

    Parameters
    ----------
    targets
        At least one.
    path
        The PNG.
    dpi
        Lowered where the picture would get too tall for the format.
    """
    heights = [h for t in targets for h in (0.6, _list_height(t) + 0.3, _curves_height(t) + 0.1)]
    with open_figure(14.0, sum(heights)) as figure:
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        for target, head, lists, curves in zip(
            targets, parts[::3], parts[1::3], parts[2::3], strict=True
        ):
            _headline(head, target)
            gains, trials, roofline = lists.subplots(
                1, 3, sharey=True, gridspec_kw={"width_ratios": (1.0, 1.45, 1.25)}
            )
            _gains(gains, target.kernels)
            _trials(trials, target.kernels, column="")
            _roofline(roofline, target.kernels)
            _name_rows(gains, target.kernels)
            for axes in (trials, roofline):
                axes.tick_params(axis="y", labelleft=False, length=0)
                axes.grid(False, axis="y")
            gains.set_title("speed-up over the default", loc="left")
            trials.set_title("every trial", loc="left")
            roofline.set_title("achieved part of the roofline", loc="left")
            _curves(curves, target)
        figure.savefig(path, dpi=min(dpi, 60_000 / sum(heights)), facecolor=PAPER)


def _headline(figure: Any, target: Target) -> None:
    total, place = target.total, target.place
    failed = target.trials - target.statuses["ok"]
    kernels = f"{len(target.kernels)} kernel{'s' if len(target.kernels) > 1 else ''}"
    facts = [
        f"{total.gain:.2f}× in geometric mean over {kernels}, {total.faster} faster"
        if total
        else f"{kernels}, no config ran",
        f"{target.trials:,} trials, {failed:,} failed",
    ]
    facts += [duration(target.seconds)] if target.seconds is not None else []
    known = target.limits is not None and target.limits.measured
    lines = f"{place.model} · {', '.join(facts)}"
    lines += "" if known else " · limits of the roofline are assumed, not measured"
    figure.text(0.006, 0.86, target.name, fontsize=12, weight="bold", va="top")
    figure.text(0.006, 0.42, lines, fontsize=9, color=MUTED, va="top")


def _list_height(target: Target) -> float:
    return 0.75 + _ROW * max(2, len(target.kernels))


def _curves_height(target: Target) -> float:
    return 0.45 + 1.6 * math.ceil(len(_searched(target)) / _columns(target))


def _columns(target: Target) -> int:
    return min(4, max(2, len(_searched(target))))


def _searched(target: Target) -> list[Kernel]:
    """Return the kernels that have trials to show; all if none has."""
    return [k for k in target.kernels if k.trials] or list(target.kernels)


# -- what lists kernels, one a line ----------------------------------------------------------


def _name_rows(axes: Any, kernels: Sequence[Kernel]) -> None:
    """Write the kernels' names at the left, in the colours of their families."""
    axes.set_yticks(range(len(kernels)), [k.name for k in kernels])
    for label, kernel in zip(axes.get_yticklabels(), kernels, strict=True):
        label.set_color(LIGHT[colour(kernel.family)])
    axes.set_ylim(len(kernels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")


def _gains(axes: Any, kernels: Sequence[Kernel]) -> None:
    values = [1 / k.relative if k.relative else math.nan for k in kernels]
    finite = [v for v in values if math.isfinite(v)]
    right = max([1.2, *finite])
    for row, (kernel, value) in enumerate(zip(kernels, values, strict=True)):
        fill = LIGHT[colour(kernel.family)]
        if not math.isfinite(value):
            axes.text(1.0, row, " no config ran", va="center", fontsize=7.5, color=BAD)
            continue
        axes.barh(row, value - 1, left=1, height=0.62, color=fill)
        text = f" {value:.2f}×" if kernel.tuned else " default is best"
        tone = INK if kernel.tuned else MUTED
        axes.text(value, row, text, va="center", fontsize=7.5, color=tone)
    axes.axvline(1.0, color=MUTED, linewidth=0.9)
    axes.set_xlim(1.0, 1 + (right - 1) * 1.3)
    axes.xaxis.get_major_locator().set_params(nbins=5)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")


def _trials(axes: Any, kernels: Sequence[Kernel], column: str = "failed") -> None:
    """Draw every trial as a dot at its relative time; failures are counted at the right."""
    for row, kernel in enumerate(kernels):
        tone = LIGHT[colour(kernel.family)]
        times = [r.relative for r in kernel.trials if r.relative is not None]
        heights = [row + 0.3 * math.sin(7.0 * i) for i in range(len(times))]
        x = [min(t, _SLOWEST) for t in times]
        axes.plot(x, heights, ".", color=tone, alpha=0.4, markersize=5, markeredgewidth=0)
        if kernel.relative is not None:
            axes.plot(
                kernel.relative, row, "D", color=tone, markersize=5, markeredgecolor=PAPER,
                markeredgewidth=0.9,
            )  # fmt: skip
        if failed := len(kernel.failures):
            axes.annotate(
                f"× {failed}", (1.0, row), xycoords=("axes fraction", "data"), xytext=(4, 0),
                textcoords="offset points", va="center", fontsize=7.5, color=BAD,
                annotation_clip=False,
            )  # fmt: skip
    if column:
        axes.set_title(column, loc="right", fontsize=7.5, color=BAD)
    axes.axvline(1.0, color=MUTED, linewidth=0.9)
    axes.set_xlabel("time relative to the default (log scale); ◆ chosen config", labelpad=3)
    found = [r.relative for k in kernels for r in k.trials if r.relative is not None]
    found += [k.relative for k in kernels if k.relative is not None]
    slow = max([1.3, *(min(t, _SLOWEST) for t in found)])
    axes.set_xscale("log")
    axes.set_xlim(min([0.8, *found]) * 0.93, slow * 1.06)
    _relative_ticks(axes.xaxis, edge=_SLOWEST if slow == _SLOWEST else None)


def _roofline(axes: Any, kernels: Sequence[Kernel]) -> None:
    shares = [s for k in kernels for s in (k.share, k.default_share) if s is not None]
    right = max([1.0, *shares])
    for row, kernel in enumerate(kernels):
        tone = LIGHT[colour(kernel.family)]
        share, before, bound = kernel.share, kernel.default_share, kernel.bound
        if share is None or before is None or bound is None:
            axes.text(0, row, " not known", va="center", fontsize=7.5, color=MUTED)
            continue
        axes.barh(row, share, height=0.62, color=tone, alpha=0.75)
        axes.plot([before] * 2, [row - 0.4, row + 0.4], color=INK, linewidth=1.4)
        edge = max(share, before) + 0.012 * right
        axes.text(
            edge, row, f"{share:.0%} of {bound.resource}", va="center", fontsize=7.5, color=INK,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.6},
        )  # fmt: skip
    axes.axvline(1.0, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set_xlim(0, right * 1.42)
    step = 0.2 if right < 1.3 else 0.5 if right < 4 else math.ceil(right / 6)
    axes.set_xticks([t * step for t in range(1 + int(right / step + 1e-9))])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("least possible time over the time taken; ┃ the default config", labelpad=3)


def _relative_ticks(axis: Any, edge: float | None = None) -> None:
    """Put readable ticks on a logarithmic axis of relative times."""
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    low, high = axis.get_view_interval()
    ticks = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4)
    if high / low < 2:
        ticks = (0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.5, 1.7)
    axis.set_major_locator(FixedLocator([t for t in ticks if low <= t <= high]))
    axis.set_major_formatter(lambda value, _: f"≥{value:g}" if value == edge else f"{value:g}")
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


# -- tuning curves ---------------------------------------------------------------------------


def _curves(figure: Any, target: Target) -> None:
    """Draw best-so-far against trials, a small panel for each kernel that was searched."""
    columns, kernels = _columns(target), _searched(target)
    rows = math.ceil(len(kernels) / columns)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    low = min([0.8, *(k.relative for k in target.measured if k.relative), *_lows(target)])
    for panel, kernel in zip(grid, kernels, strict=False):
        _curve(panel, kernel)
        panel.set_yscale("log")
        panel.set_ylim(low * 0.93, 1.75)
        _relative_ticks(panel.yaxis)
        panel.tick_params(axis="y", labelsize=7, labelcolor=MUTED, length=0)
        panel.tick_params(axis="x", labelsize=7, length=2)
    for panel in grid[len(kernels) :]:
        panel.set_visible(False)
    figure.supxlabel("trials", fontsize=8, color=MUTED)
    figure.supylabel("time relative to the default", fontsize=8, color=MUTED)


def _lows(target: Target) -> list[float]:
    return [k.curve[-1] for k in target.kernels if k.curve]


def _curve(panel: Any, kernel: Kernel) -> None:
    tone = LIGHT[colour(kernel.family)]
    high = 1.6
    good = [
        (i, min(r.relative, high))
        for i, r in enumerate(kernel.trials, start=1)
        if r.relative is not None
    ]
    failed = [i for i, r in enumerate(kernel.trials, start=1) if r.outcome.status != "ok"]
    panel.plot(*_columns_of(good), ".", color=tone, alpha=0.4, markersize=5, markeredgewidth=0)
    panel.plot(failed, [high] * len(failed), "x", color=BAD, markersize=3.5, markeredgewidth=0.9)
    sessions = [r.session for r in kernel.trials]
    for i in range(1, len(sessions)):
        if sessions[i] != sessions[i - 1]:
            panel.axvline(i + 0.5, color=MUTED, linewidth=0.7, linestyle=(0, (2, 2)))
    count = len(kernel.trials)
    panel.axhline(1.0, color=MUTED, linewidth=0.8)
    panel.step(range(count + 1), (1.0, *kernel.curve), where="post", color=tone, linewidth=1.6)
    if kernel.relative is not None and kernel.finals:
        panel.plot(
            count + 0.02 * max(count, 1), kernel.relative, "D", color=tone, markersize=4.5,
            markeredgecolor=PAPER, markeredgewidth=0.8, clip_on=False, zorder=5,
        )  # fmt: skip
    panel.set_xlim(0, max(count, 1) * 1.04)
    panel.xaxis.get_major_locator().set_params(integer=True, nbins=5)
    panel.set_title(kernel.name, loc="left", fontsize=7.5, color=tone, pad=13)
    if kernel.relative is None:
        facts, shade = "no config ran", BAD
    else:
        facts = gain(kernel.relative) if kernel.tuned else "default is best"
        facts += f" · {duration(kernel.best_s)}" if kernel.best_s else ""
        shade = INK if kernel.tuned else MUTED
    panel.annotate(
        f"{facts} · {count:,} trials", (0, 1), xycoords="axes fraction", xytext=(0, 3),
        textcoords="offset points", fontsize=7, color=shade,
    )  # fmt: skip


def _columns_of(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
