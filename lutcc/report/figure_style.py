"""The style of the reports' figures, and how they become SVG in a page."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lutcc.errors import DependencyError

#: Name of a colour -> on white paper, on a dark screen. Pages refer to them by name.
COLOURS: dict[str, tuple[str, str]] = {
    "ink": ("#1f2933", "#e4e9ee"),
    "muted": ("#5f6c79", "#9aa6b2"),
    "grid": ("#e3e7eb", "#2f3a45"),
    "paper": ("#fefefe", "#12181e"),
    "bad": ("#c62828", "#ff8a80"),
    "family0": ("#0f766e", "#2dd4bf"),
    "family1": ("#2563eb", "#6ea8fe"),
    "family2": ("#7c3aed", "#b197fc"),
    "family3": ("#b45309", "#f5b942"),
    "family4": ("#be185d", "#f783ac"),
    "family5": ("#4d7c0f", "#a9d94b"),
    "family6": ("#0369a1", "#4cc9f0"),
    "family7": ("#57534e", "#c3bdb5"),
    # after Okabe and Ito: told apart by people with any colour vision
    "safe0": ("#0072b2", "#56a9e0"),
    "safe1": ("#d55e00", "#ff8a3d"),
    "safe2": ("#009e73", "#2fd3a5"),
    "safe3": ("#cc79a7", "#e8a3c8"),
    "safe4": ("#e69f00", "#f6bf4a"),
    "safe5": ("#56b4e9", "#8ed0f7"),
}
#: The colours on white paper.
LIGHT = {name: pair[0] for name, pair in COLOURS.items()}
INK, MUTED, GRID, PAPER, BAD = (LIGHT[name] for name in ("ink", "muted", "grid", "paper", "bad"))
WIDTH = 11.0  # inches; points in the SVG
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
}


@contextmanager
def open_figure(width: float, height: float) -> Iterator[Any]:
    """Open a figure in the style of the reports, of so many inches.

    Raises
    ------
    DependencyError
        Without matplotlib.
    """
    with _matplotlib().rc_context(_STYLE):
        yield plain_figure(width, height)


def plain_figure(width: float, height: float) -> Any:
    """Return a figure of so many inches, as matplotlib makes it.

    Raises
    ------
    DependencyError
        Without matplotlib.
    """
    return _matplotlib().figure.Figure(figsize=(width, height), layout="constrained")


def _matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as error:
        raise DependencyError(
            "matplotlib, which draws the figures, is not installed",
            where="report",
            fix="pip install lutcc[report]",
        ) from error
    return matplotlib


def to_svg(figure: Any, salt: str) -> str:
    """Return a figure as SVG to be put into a page: its colours are the page's variables."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):  # ids that no other figure has
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>", "", text, flags=re.S)
    head, rest = text.split(">", 1)
    head = re.sub(r' (xmlns(:\w+)?|width|height|version)="[^"]*"', "", head)
    text = f'{head} role="img">{rest}'.replace("xlink:href", "href")
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", text)
    for name, value in LIGHT.items():
        text = text.replace(value, f"var(--{name})")
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # nothing refers to groups
    return re.sub(r"\n\s*", "\n", text)
