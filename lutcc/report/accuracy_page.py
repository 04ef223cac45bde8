"""The accuracy report as one page that stands alone."""

from __future__ import annotations

from collections.abc import Sequence

from lutcc.report import accuracy_figures as figures
from lutcc.report.accuracy_data import Comparison, Timing, written
from lutcc.report.html_page import or_dash, render
from lutcc.report.tables import number


def page(
    comparisons: Sequence[Comparison], *, sources: Sequence[str], made: str, skipped: int = 0
) -> str:
    """Return the page's HTML.

    Parameters
    ----------
    comparisons
        At least one.
    sources
        The logs that were read.
    made
        When the page was made.
    skipped
        How many lines of the logs were no runs.

    Raises
    ------
    DependencyError
        Without matplotlib.
    """
    drawn = [
        [(under, figures.panel_svg(each, under)) for under in each.conditions]
        for each in comparisons
    ]
    return render(
        "accuracy.html",
        {
            "value": written,
            "part": lambda spread: written(spread, "", part=True),
            "timing": timing,
            "times": or_dash("{:.2f}×".format),
        },
        comparisons=list(zip(comparisons, drawn, strict=True)),
        tone=figures.tone,
        sources=sources,
        made=made,
        skipped=skipped,
    )


def timing(found: Timing | None) -> str:
    """Return the median in microseconds, and from least to most where runs differ.

    Examples
    --------
    >>> timing(Timing(3.5, 3.5, 3.5, 1)), timing(Timing(3.5, 3.4, 12.34, 3)), timing(None)
    ('3.50', '3.50 (3.40 to 12.3)', '–')
    """
    if found is None:
        return "–"
    between = f" ({number(found.low)} to {number(found.high)})" if found.low < found.high else ""
    return number(found.median) + between
