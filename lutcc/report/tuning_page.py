"""The tuning report as one page that stands alone: no scripts, no links to anything outside."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from lutcc.report import tuning_figures as figures
from lutcc.report.html_page import or_dash, render
from lutcc.report.tuning_data import Kernel, Target
from lutcc.tuning.logfile import WORTHWHILE
from lutcc.tuning.names import digits, duration, gain, knob_value

_SHOWN_MESSAGES = 8


@dataclass(frozen=True)
class Figures:
    """The figures of a target as SVG: tuning curves, all trials, roofline."""

    curves: str
    trials: str
    roofline: str


def page(targets: tuple[Target, ...], *, sources: list[str], made: str) -> str:
    """Return the page's HTML.

    Parameters
    ----------
    targets
        At least one.
    sources
        The logs that were read.
    made
        When the page was made.

    Raises
    ------
    DependencyError
        Without matplotlib.
    """
    drawn = [
        Figures(figures.curves_svg(t), figures.trials_svg(t), figures.roofline_svg(t))
        for t in targets
    ]
    return render(
        "tuning.html",
        {
            "duration": or_dash(duration),
            "digits": or_dash(digits),
            "gain": or_dash(gain),
            "knob": knob_value,
            "colour": figures.colour,
            "failures": failures_of,
            "width": _bar,
        },
        targets=list(zip(targets, drawn, strict=True)),
        sources=sources,
        made=made,
        least=1 - WORTHWHILE,
    )


def _bar(share: float | None, whole: float = 1.0) -> str:
    """Return the width of a bar in percent of its cell."""
    return f"{100 * min(1.0, max(0.0, (share or 0) / whole)):.1f}%"


def failures_of(kernel: Kernel) -> list[tuple[str, str, int]]:
    """Return (status, message, how often) of a kernel's failures, the most frequent first."""
    counts = Counter((r.outcome.status, r.outcome.message) for r in kernel.failures)
    return [
        (status, message, count) for (status, message), count in counts.most_common(_SHOWN_MESSAGES)
    ]
