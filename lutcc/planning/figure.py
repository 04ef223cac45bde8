"""The picture of a plan: time against error of the recipes that were weighed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lutcc.planning.result import Plan, Recipe
from lutcc.report.figure_style import BAD, INK, LIGHT, MUTED, PAPER, open_figure


def draw(plan: Plan, path: str | Path) -> None:
    """Write a PNG.

    A line leads through the recipes that are the cheapest for what their layers do to the output,
    as predicted from layers swapped alone; recipes that were converted have their measured drop;
    grey dots are single layers swapped.

    Raises
    ------
    DependencyError
        Without matplotlib.
    """
    with open_figure(7.2, 4.4) as figure:
        figure.set_facecolor(PAPER)
        axes = figure.subplots()
        axes.set_facecolor(PAPER)
        _draw(axes, plan)
        figure.savefig(Path(path), dpi=150, format="png")


def _draw(axes: Any, plan: Plan) -> None:
    time = plan.objective == "time"
    scale, unit = _unit(plan) if time else (1e3, "kB")

    def cost(recipe: Recipe) -> float:
        return (recipe.seconds if time else recipe.nbytes) / scale

    _single_layers(axes, plan, time, scale)
    axes.plot(
        [cost(r) for r in plan.front], [r.damage * 100 for r in plan.front], "o-",
        color=LIGHT["family1"], markersize=4, linewidth=1.2, markerfacecolor=PAPER,
        label="cheapest recipes, predicted from single layers", zorder=3,
    )  # fmt: skip
    *others, taken = plan.tried
    failed = [recipe for recipe in others if (recipe.drop or 0) > plan.max_drop]
    within = [recipe for recipe in others if recipe not in failed]
    if within:
        axes.plot(
            [cost(r) for r in within], [max(0, r.drop or 0) * 100 for r in within], "o",
            color=LIGHT["family0"], markersize=4, zorder=4,
            label="converted, measured: slower or too careful",
        )  # fmt: skip
    if failed:
        axes.plot(
            [cost(r) for r in failed], [(r.drop or 0) * 100 for r in failed], "x", color=BAD,
            markersize=7, markeredgewidth=1.6, label="converted, measured: too coarse", zorder=4,
        )  # fmt: skip
    at = cost(taken), max(0.0, taken.drop or 0) * 100
    axes.plot(
        *at, "o", color=LIGHT["family0"], markersize=9, zorder=5,
        label=f"the plan: converted, measured on {plan.checked_rows} other rows",
    )  # fmt: skip
    exact = plan.exact_seconds if time else plan.exact_bytes
    axes.plot(exact / scale, 0, "D", color=INK, markersize=6, label="the exact model", zorder=4)
    axes.axhline(plan.max_drop * 100, color=BAD, linewidth=0.9, linestyle="--", zorder=2)
    axes.annotate(
        f"at most {plan.max_drop:.2%}",
        (1, plan.max_drop * 100), xycoords=("axes fraction", "data"), xytext=(-3, 3),
        textcoords="offset points", ha="right", fontsize=7.5, color=BAD,
    )  # fmt: skip
    threshold = max(plan.max_drop * 100, 0.01)
    axes.set_yscale("symlog", linthresh=threshold, linscale=1.0)
    axes.set_ylim(bottom=-0.08 * threshold)
    top = axes.get_ylim()[1]
    ticks = [threshold * part for part in (0, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000)]
    axes.set_yticks([tick for tick in ticks if tick <= top], minor=False)
    axes.set_yticks([], minor=True)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylabel(_NAMES[plan.measure])
    what = f"{unit} a call at batch {plan.rows}" if time else f"{unit} as compiled"
    timed = "plan and exact: timed" if plan.timed_whole else "exact: measured"
    axes.set_xlabel(f"{what}, predicted ({timed}); down and to the left is better")
    axes.set_title(f"What each recipe costs: target {plan.target}", loc="left")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)
    axes.tick_params(colors=MUTED)


_NAMES = {
    "agreement": "rows whose arg max changes, % (linear up to the budget)",
    "accuracy": "accuracy lost, points (linear up to the budget)",
    "error": "relative error of the output, % (linear up to the budget)",
}


def _unit(plan: Plan) -> tuple[float, str]:
    return (1e-3, "milliseconds") if plan.exact_seconds > 2e-3 else (1e-6, "microseconds")


def _single_layers(axes: Any, plan: Plan, time: bool, scale: float) -> None:
    """Draw every option of every layer, as if the others stayed exact."""
    base = plan.exact_seconds if time else plan.exact_bytes
    points = []
    for layer in plan.layers:
        for option in layer.options[1:]:
            if not option.measured:
                continue
            less = option.cost(plan.objective) - layer.exact.cost(plan.objective)
            alone = plan.expected(option.damage)
            points.append(((base + less) / scale, alone * 100))
    if points:
        axes.plot(
            *zip(*points, strict=True), ".", color=MUTED, markersize=4, alpha=0.6,
            label="one layer swapped alone", zorder=2,
        )  # fmt: skip
