"""The training report as one page that stands alone."""

from __future__ import annotations

from dataclasses import dataclass

from lutcc.report import training_figures as figures
from lutcc.report.html_page import or_dash, render
from lutcc.report.training_data import Spread, Task, points


@dataclass(frozen=True)
class Figures:
    """The figures of a task as SVG: a line for each method, curves."""

    comparison: str
    curves: str


def page(tasks: tuple[Task, ...], *, sources: list[str], made: str, within: float = 0.5) -> str:
    """Return the page's HTML.

    Parameters
    ----------
    tasks
        At least one.
    sources
        The logs that were read.
    made
        When the page was made.
    within
        Percentage points that a method may lose against the exact one to be called as good.

    Raises
    ------
    DependencyError
        Without matplotlib.
    """
    drawn = [Figures(figures.comparison_svg(task), figures.curves_svg(task)) for task in tasks]
    return render(
        "training.html",
        {
            "points": points,
            "gap": lambda spread: points(spread, "{:+.2f}".format),
            "std": _std,
            "seconds": or_dash(lambda s: f"{s.mean:.1f}"),
            "megabytes": or_dash(lambda size: f"{size / 1e6:,.2f}"),
            "loss": or_dash(lambda s: f"{s.mean:.4f}"),
            "saved": or_dash(lambda share: f"{1 - share:.0%}"),
            "width": lambda share: f"{100 * min(1.0, max(0.0, share or 0.0)):.1f}%",
            "good": lambda spread: spread is not None and 100 * spread.mean >= -within - 1e-9,
        },
        tasks=list(zip(tasks, drawn, strict=True)),
        colour=figures.colour,
        sources=sources,
        made=made,
        within=within,
    )


def _std(found: Spread | None) -> str:
    return "–" if found is None or found.std is None else f"{100 * found.std:.2f}"
