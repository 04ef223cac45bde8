"""Pages that stand alone: no scripts, no links to anything outside, light and dark."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from lutcc.report.figure_style import COLOURS


def render(template: str, filters: Mapping[str, Callable[..., Any]], **values: Any) -> str:
    """Return a page's HTML.

    Parameters
    ----------
    template
        A file beside this one; it extends ``page.html``.
    filters
        What the template writes values with, beside the common ones.
    values
        What it shows. All texts are escaped.
    """
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(_asset),
    )
    environment.filters |= {
        "percent": or_dash("{:.0%}".format),
        "count": "{:,}".format,
        "svg": Markup,  # drawn here; its texts are escaped by what drew it
        "css": Markup,
        **filters,
    }
    return environment.get_template(template).render(
        css=_asset("page.css"),
        light=[(name, pair[0]) for name, pair in COLOURS.items()],
        dark=[(name, pair[1]) for name, pair in COLOURS.items()],
        **values,
    )


def or_dash(write: Callable[[Any], str]) -> Callable[[Any], str]:
    """Return a filter that writes None as a dash."""
    return lambda value: "–" if value is None else write(value)


def _asset(name: str) -> str:
    return (files("lutcc.report") / name).read_text(encoding="utf-8")
