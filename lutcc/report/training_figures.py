"""The figures of a training report: curves, accuracies with error bars, savings; SVG and PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lutcc.report.figure_style import GRID, INK, LIGHT, MUTED, PAPER, WIDTH, open_figure, to_svg
from lutcc.report.training_data import Method, Task, points

_ROW = 0.3  # inches of a method in the figures that list them
_CURVES = 3.1
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.2, 1.4)), (0, (6, 2, 1.2, 2)))


def colour(task: Task, method: Method) -> str:
    """Return the name of a method's colour, a key of the report's colours."""
    if method is task.baseline:
        return "ink"
    return f"family{task.others.index(method) % 8}"


def curves_svg(task: Task) -> str:
    """Return loss and accuracy over training as inline SVG.

    Raises
    ------
    DependencyError
        Without matplotlib; the same holds for the other figures.
    """
    with open_figure(WIDTH, _CURVES) as figure:
        _curves(figure, task)
        return to_svg(figure, f"curves {task.name}")


def comparison_svg(task: Task) -> str:
    """Return accuracies, differences and savings, a line for each method, as inline SVG."""
    with open_figure(WIDTH, _list_height(task)) as figure:
        _comparison(figure, task)
        return to_svg(figure, f"comparison {task.name}")


def summary_png(tasks: Sequence[Task], path: str | Path, *, dpi: int = 120) -> None:
    """Write one picture of everything.

    Parameters
    ----------
    tasks
        At least one.
    path
        The PNG.
    dpi
        Lowered where the picture would get too tall for the format.
    """
    heights = [h for t in tasks for h in (0.55, _list_height(t) + 0.1, _CURVES)]
    with open_figure(13.0, sum(heights)) as figure:
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        for task, head, lists, curves in zip(
            tasks, parts[::3], parts[1::3], parts[2::3], strict=True
        ):
            _headline(head, task)
            _comparison(lists, task)
            _curves(curves, task)
        figure.savefig(path, dpi=min(dpi, 60_000 / sum(heights)), facecolor=PAPER)


def _headline(figure: Any, task: Task) -> None:
    facts = [f"{len(task.methods)} methods, {task.seeds} seeds"]
    if task.baseline is not None and task.baseline.accuracy is not None:
        facts.append(f"{task.baseline.name}: {points(task.baseline.accuracy)} %")
    facts.append("bars: 95 % confidence intervals")
    figure.text(0.006, 0.9, task.name or "training", fontsize=12, weight="bold", va="top")
    figure.text(0.006, 0.42, " · ".join(facts), fontsize=9, color=MUTED, va="top")


def _list_height(task: Task) -> float:
    return 0.95 + _ROW * max(2, len(task.methods))


# -- a line for each method ------------------------------------------------------------------


def _comparison(figure: Any, task: Task) -> None:
    panels = [_accuracies, _differences] if task.others and task.baseline else [_accuracies]
    panels.append(_savings)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, draw in zip(axes, panels, strict=True):
        draw(axis, task)
    first = axes[0]
    first.set_yticks(range(len(task.methods)), [method.name for method in task.methods])
    for label, method in zip(first.get_yticklabels(), task.methods, strict=True):
        label.set_color(LIGHT[colour(task, method)])
    first.set_ylim(len(task.methods) - 0.4, -0.6)
    for axis in axes:
        axis.tick_params(axis="y", length=0, labelleft=axis is first)
        axis.grid(False, axis="y")


def _accuracies(axis: Any, task: Task) -> None:
    for row, method in enumerate(task.methods):
        _dots(axis, row, method.accuracy, LIGHT[colour(task, method)])
    exact = task.baseline.accuracy if task.baseline else None
    if exact is not None:
        axis.axvline(100 * exact.mean, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    split = f" on {task.split}" if task.split else ""
    axis.set_title(f"accuracy{split}, %: each seed, mean, 95 % interval", loc="left")
    axis.margins(x=0.08)


def _differences(axis: Any, task: Task) -> None:
    for row, method in enumerate(task.methods):
        _dots(axis, row, method.difference, LIGHT[colour(task, method)])
    axis.axvline(0, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    axis.axvspan(-0.5, 0.5, color=GRID, alpha=0.55, linewidth=0, zorder=0)
    axis.set_title(
        f"less {task.baseline.name if task.baseline else ''}, points, by seed", loc="left"
    )
    axis.set_xlabel("shaded: within 0.5 points", labelpad=3)
    axis.margins(x=0.08)


def _dots(axis: Any, row: int, found: Any, tone: str) -> None:
    """Draw each seed as a dot, the mean as a diamond, its interval as a bar."""
    if found is None:
        return
    heights = [row + 0.16 * math.sin(2.4 * i) for i in range(found.n)]
    values = [100 * value for value in found.values]
    axis.plot(values, heights, ".", color=tone, alpha=0.45, markersize=6, markeredgewidth=0)
    if found.half is not None:
        ends = [100 * (found.mean - found.half), 100 * (found.mean + found.half)]
        axis.plot(ends, [row, row], color=tone, linewidth=1.8, solid_capstyle="butt")
    axis.plot(
        100 * found.mean, row, "D", color=tone, markersize=5.5, markeredgecolor=PAPER,
        markeredgewidth=0.9, zorder=5,
    )  # fmt: skip


def _savings(axis: Any, task: Task) -> None:
    """Draw what is left of the compute, and of the communication where there is any."""
    both = any(method.traffic is not None for method in task.methods)
    for row, method in enumerate(task.methods):
        tone = LIGHT[colour(task, method)]
        bars = [(method.compute, 0.0, "compute")]
        if both:
            bars = [(method.compute, -0.2, "compute"), (method.traffic, 0.2, "sent")]
        for share, shift, what in bars:
            if share is None:
                axis.text(
                    0, row + shift, f" {what} not known", va="center", fontsize=7, color=MUTED
                )
                continue
            axis.barh(
                row + shift, 100 * share, height=0.34 if both else 0.6, color=tone,
                alpha=0.85 if what == "compute" else 0.4, linewidth=0,
            )  # fmt: skip
            text = f" {share:.0%}" + (f" {what}" if both else "")
            axis.text(100 * share, row + shift, text, va="center", fontsize=7.5, color=INK)
    title = "multiply-adds" + (" and bytes sent" if both else "") + ", % of exact"
    axis.set_title(title, loc="left")
    most = max([1.0, *(s for m in task.methods for s in (m.compute, m.traffic) if s is not None)])
    axis.set_xlim(0, 100 * most * (1.32 if both else 1.14))
    axis.set_xticks([0, 25, 50, 75, 100])


# -- curves ------------------------------------------------------------------------------------


def _curves(figure: Any, task: Task) -> None:
    loss, accuracy = figure.subplots(1, 2)
    unit = "epochs" if task.by_epoch else "steps"
    ends: list[float] = []
    for index, method in enumerate(task.methods):
        tone = LIGHT[colour(task, method)]
        line = {
            "color": tone,
            "linewidth": 1.9 if method is task.baseline else 1.3,
            "linestyle": _DASHES[index // 9 % len(_DASHES)],
        }
        for axis, name, factor in ((loss, "loss", 1.0), (accuracy, "accuracy", 100.0)):
            curve = method.curve(name, task.by_epoch)
            if not curve.x:
                continue
            mean, low, high = ([factor * v for v in c] for c in (curve.mean, curve.low, curve.high))
            axis.plot(curve.x, mean, label=method.name, **line)
            axis.fill_between(curve.x, low, high, color=tone, alpha=0.1, linewidth=0)
            if name == "accuracy":
                ends += low[len(low) // 3 :]
    losses = [v for line in loss.get_lines() for v in line.get_ydata()]
    if losses and min(losses) > 0:
        loss.set_yscale("log")
        loss.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        loss.yaxis.set_minor_formatter(lambda value, _: "")
    loss.set_title("training loss, nats (mean over seeds; band: all seeds)", loc="left")
    split = f" on {task.split}" if task.split else ""
    accuracy.set_title(f"accuracy{split}, % (mean over seeds; band: all seeds)", loc="left")
    if ends:  # the first third of training would hide the differences
        low = min(ends)
        accuracy.set_ylim(max(0.0, low - 0.15 * (100.2 - low) - 0.2), 100.2)
    for axis in (loss, accuracy):
        axis.set_xlabel(unit, labelpad=3)
        axis.tick_params(axis="y", labelcolor=MUTED)
        axis.tick_params(axis="y", which="minor", length=0)
    handles, names = loss.get_legend_handles_labels()
    if not handles:
        handles, names = accuracy.get_legend_handles_labels()
    if len(names) > 1:
        figure.legend(
            handles, names, loc="outside right center", frameon=False, fontsize=7.5,
            labelcolor="linecolor",
        )  # fmt: skip
