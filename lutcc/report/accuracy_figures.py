"""The figures of an accuracy report: accuracy against time, a panel for each size; SVG and PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lutcc.report.accuracy_data import Comparison, Conditions, Point, labels, percent
from lutcc.report.figure_style import GRID, LIGHT, MUTED, PAPER, WIDTH, open_figure, to_svg

#: Told apart by people with any colour vision, and by their markers where there are more methods.
_TONES = ("safe0", "safe1", "safe2", "safe3", "safe4", "safe5")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h", "<", ">")
_EXACT_MARKERS = ("*", "p", "H", "8", "d")
_PANEL = 4.4  # inches
_LOG_SPAN = 4.0  # times are on a logarithmic scale if they span more than that
_FONT = 6.8


def tone(comparison: Comparison, method: str) -> str:
    """Return the name of a method's colour, a key of the report's colours."""
    exact, others = _kinds(comparison)
    return "ink" if method in exact else _TONES[others.index(method) % len(_TONES)]


def marker(comparison: Comparison, method: str) -> str:
    """Return matplotlib's name of a method's marker."""
    exact, others = _kinds(comparison)
    if method in exact:
        return _EXACT_MARKERS[exact.index(method) % len(_EXACT_MARKERS)]
    return _MARKERS[others.index(method) % len(_MARKERS)]


def _kinds(comparison: Comparison) -> tuple[list[str], list[str]]:
    exact = [p.method for p in comparison.points if p.exact]
    others = [p.method for p in comparison.points if not p.exact]
    return list(dict.fromkeys(exact)), list(dict.fromkeys(others))


def panel_svg(comparison: Comparison, conditions: Conditions) -> str:
    """Return the panel of some conditions as inline SVG.

    Raises
    ------
    DependencyError
        Without matplotlib.
    """
    with open_figure(WIDTH, _PANEL) as figure:
        _panel(figure, comparison, conditions)
        return to_svg(figure, f"{comparison.task} {comparison.model} {conditions}")


def summary_png(comparisons: Sequence[Comparison], path: str | Path, *, dpi: int = 120) -> None:
    """Write one picture of all panels; dpi is lowered where it would get too tall for a PNG.

    Raises
    ------
    DependencyError
        Without matplotlib.
    """
    panels = [(each, under) for each in comparisons for under in each.conditions]
    height = max(1.0, sum([_PANEL + 0.45] * len(panels)))
    with open_figure(WIDTH, height) as figure:
        if not panels:
            figure.text(0.5, 0.5, "no run has a time: nothing to draw", ha="center", color=MUTED)
        else:
            parts = figure.subfigures(
                2 * len(panels), 1, height_ratios=[0.45, _PANEL] * len(panels), squeeze=False
            )[:, 0]
            for (comparison, under), head, part in zip(
                panels, parts[::2], parts[1::2], strict=True
            ):
                title = f"{comparison.model} on {comparison.task}"
                head.text(0.006, 0.9, title, fontsize=11, weight="bold", va="top")
                head.text(0.006, 0.22, headline(comparison, under), fontsize=8, color=MUTED)
                _panel(part, comparison, under)
        figure.savefig(path, dpi=min(dpi, 60_000 / height), facecolor=PAPER)


def headline(comparison: Comparison, conditions: Conditions) -> str:
    """Return what a panel is of."""
    low, high = comparison.seeds
    seeds = f"{low}" if low == high else f"{low} to {high}"
    bars = " · upright bars: 95 % interval of the mean" if high > 1 else ""
    return f"{conditions} · {seeds} seed{'s' if high > 1 else ''}{bars} · up and left is better"


def _panel(figure: Any, comparison: Comparison, conditions: Conditions) -> None:
    axis = figure.subplots()
    factor = 100 if percent(comparison.metric) else 1
    points = comparison.timed(conditions)
    for method in comparison.methods:
        own = [point for point in points if point.method == method]
        if own:
            _method(axis, comparison, own, conditions, factor)
    front = comparison.front(conditions)
    axis.step(
        [p.times[conditions].median for p in front], [factor * p.value.mean for p in front],
        where="post", color=MUTED, linewidth=5.0, alpha=0.18, zorder=1, label="not beaten",
    )  # fmt: skip
    _limits(axis, points, conditions, factor)
    _exact_lines(axis, comparison, conditions, factor)
    unit = "%" if factor == 100 else ""
    axis.set_ylabel(", ".join(filter(None, [comparison.metric, unit])))
    axis.set_xlabel("microseconds per call" + (", log" if axis.get_xscale() == "log" else ""))
    axis.tick_params(axis="y", labelcolor=MUTED)
    figure.legend(loc="outside right center", frameon=False, fontsize=7.5)
    figure.figure.draw_without_rendering()  # where points lie is known from here on
    tones = [tone(comparison, point.method) for point in points]
    _label(axis, list(zip(points, tones, labels(points), strict=True)), conditions, factor)


def _method(
    axis: Any, comparison: Comparison, own: Sequence[Point], under: Conditions, factor: int
) -> None:
    """Draw a method's points with bars, joined in the order of their settings."""
    colour = LIGHT[tone(comparison, own[0].method)]
    ordered = [point for point in comparison.points if point in own]
    x = [point.times[under].median for point in ordered]
    y = [factor * point.value.mean for point in ordered]
    for point, at_x, at_y in zip(ordered, x, y, strict=True):
        if point.value.half is not None:
            half = factor * point.value.half
            axis.plot([at_x, at_x], [at_y - half, at_y + half], color=colour, linewidth=1.2)
        timing = point.times[under]
        if timing.low < timing.high:
            axis.plot([timing.low, timing.high], [at_y, at_y], color=colour, linewidth=1.2)
    axis.plot(x, y, color=colour, linewidth=0.7, zorder=2)
    axis.plot(
        x, y, color=colour, marker=marker(comparison, own[0].method), linestyle="none",
        markersize=9 if own[0].exact else 6.5, markeredgecolor=PAPER, markeredgewidth=0.8,
        zorder=4, label=own[0].method,
    )  # fmt: skip


def _limits(axis: Any, points: Sequence[Point], under: Conditions, factor: int) -> None:
    """Show all points and seeds; intervals of few seeds may leave the picture."""
    times = [t for p in points for t in (p.times[under].low, p.times[under].high)]
    low, high = min(times), max(times)
    if high > _LOG_SPAN * low:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        room = max(1.12, (high / low) ** 0.06)
        axis.set_xlim(low / room, high * room)
        if high < 40 * low:
            from matplotlib.ticker import FixedLocator

            axis.xaxis.set_major_locator(FixedLocator(_ticks(low / room, high * room)))
        axis.xaxis.set_minor_formatter(lambda value, _: "")
    else:
        axis.set_xlim(max(0.0, low - 0.12 * high), 1.1 * high)
    values = [factor * value for p in points for value in p.value.values]
    room = 0.09 * max(max(values) - min(values), 0.002 * factor)
    axis.set_ylim(min(values) - room, max(values) + room)


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers between two numbers: fewer of a decade where there are several.

    Examples
    --------
    >>> _ticks(3, 60), _ticks(50, 340)
    ([5.0, 10.0, 20.0, 50.0], [50.0, 70.0, 100.0, 150.0, 200.0, 300.0])
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 1.5, 2, 3, 5, 7) if high < 12 * low else (1, 2, 5)
    ticks = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
    return [tick for tick in ticks if low <= tick <= high]


def _exact_lines(axis: Any, comparison: Comparison, under: Conditions, factor: int) -> None:
    """Mark what the exact network is worth, and the time of its fastest form."""
    dashes = (0, (4, 3))
    value, fastest = comparison.exact_value, comparison.fastest_exact(under)
    if value is not None:
        axis.axhline(
            factor * value, color=MUTED, linewidth=0.8, linestyle=dashes, zorder=0,
            label=f"exact {comparison.metric}",
        )  # fmt: skip
        low, high = axis.get_ylim()
        room = 0.05 * (high - low)
        axis.set_ylim(min(low, factor * value - room), max(high, factor * value + room))
    if fastest is not None:
        taken = fastest.times[under].median
        axis.axvline(
            taken, color=MUTED, linewidth=0.8, linestyle=(0, (1.2, 1.6)), zorder=0,
            label=f"time of {fastest.name}",
        )  # fmt: skip
    axis.grid(True, which="major", color=GRID, linewidth=0.6)


# -- labels ------------------------------------------------------------------------------------

#: Left, bottom, right, top, in pixels.
Box = tuple[float, float, float, float]


def _label(
    axis: Any, points: Sequence[tuple[Point, str, str]], under: Conditions, factor: int
) -> None:
    """Write texts beside points, in their colour, where there is room; the table has them all."""
    scale = axis.figure.figure.dpi / 72
    places, taken = [], []
    for point, _, _ in points:
        timing, half = point.times[under], factor * (point.value.half or 0.0)
        middle = factor * point.value.mean
        x, y = axis.transData.transform((timing.median, middle))
        left, low = axis.transData.transform((timing.low, middle - half))
        right, high = axis.transData.transform((timing.high, middle + half))
        places.append((x, y))
        taken += [_around(x, y, 9 * scale, 9 * scale), (left, y - scale, right, y + scale)]
        taken.append((x - scale, low, x + scale, high))
    frame = axis.get_window_extent()
    for (point, colour, text), (x, y) in zip(points, places, strict=True):
        width, height = 0.56 * _FONT * len(text) * scale, 1.15 * _FONT * scale
        for dx, dy in _offsets(width, height, scale) if text else ():
            box = _around(x + dx, y + dy, width, height)
            inside = (
                frame.x0 <= box[0] and box[2] <= frame.x1
                and frame.y0 <= box[1] and box[3] <= frame.y1
            )  # fmt: skip
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                axis.annotate(
                    text, (point.times[under].median, factor * point.value.mean),
                    xytext=(dx / scale, dy / scale), textcoords="offset points", ha="center",
                    va="center", fontsize=_FONT, color=LIGHT[colour], zorder=3,
                    bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.85, "pad": 0.4},
                ).set_in_layout(False)  # fmt: skip
                break


def _offsets(width: float, height: float, scale: float) -> list[tuple[float, float]]:
    """Return where a label of that size may lie around its point, the best place first."""
    aside, above = width / 2 + 6 * scale, height / 2 + 6 * scale
    return [
        (0, -above), (aside, 0), (0, above), (-aside, 0),
        (aside, -above), (-aside, -above), (aside, above), (-aside, above),
    ]  # fmt: skip


def _around(x: float, y: float, width: float, height: float) -> Box:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
