"""What a comparison of feed-forward blocks shows: table 1's columns and the curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lutcc.report.figure_style import plain_figure
from lutcc.train.losses import curve

_COLOURS = ("#1f2933", "#0f766e", "#2563eb", "#b45309", "#7c3aed", "#be185d")
_MUTED, _GRID = "#5f6c79", "#e3e7eb"


@dataclass(frozen=True, slots=True)
class Row:
    """A trained model in the comparison.

    Parameters
    ----------
    name
        As in the log.
    label
        In words.
    num_tables, code_length
        Of a look-up block, else None.
    mflop
        Million floating-point operations of one feed-forward block per token, counted as the paper
        does.
    parameters
        Of the whole model.
    log_perplexity
        Mean negative log likelihood of held-out masked tokens.
    """

    name: str
    label: str
    num_tables: int | None
    code_length: int | None
    mflop: float
    parameters: int
    log_perplexity: float


def table(rows: Sequence[Row], base: str) -> str:
    """Return table 1's columns as Markdown, and what each model gains or loses against ``base``.

    Examples
    --------
    >>> print(table([Row("v", "dense", None, None, 0.26, 1000, 3.5)], "v"))
    | FFN | h | tau | MFLOP per token | parameters | log perplexity | difference |
    | --- | ---: | ---: | ---: | ---: | ---: | ---: |
    | dense | - | - | 0.260 | 1,000 | 3.500 | - |
    """
    first = next(row for row in rows if row.name == base)
    lines = [
        "| FFN | h | tau | MFLOP per token | parameters | log perplexity | difference |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        gap = "-" if row is first else f"{row.log_perplexity - first.log_perplexity:+.3f}"
        cells = [row.label, _or_dash(row.num_tables), _or_dash(row.code_length)]
        cells += [f"{row.mflop:.3f}", f"{row.parameters:,}", f"{row.log_perplexity:.3f}", gap]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


def picture(rows: Sequence[Row], records: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Draw held-out curves, gaps to the first model, and quality over FLOPs; write a PNG or SVG.

    Parameters
    ----------
    rows
        The trained models.
    records
        Of :class:`lutcc.train.losses.LossLog`.
    path
        Its suffix says the format.

    Raises
    ------
    DependencyError
        Without matplotlib.
    """
    figure = plain_figure(13, 4.0)
    curves, gaps, trade = figure.subplots(1, 3)
    for axes in (curves, gaps, trade):
        axes.grid(color=_GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=_MUTED, labelsize=9)
    base = dict(zip(*curve(records, rows[0].name, "log_perplexity"), strict=True))
    for row, colour in zip(rows, _cycle(len(rows)), strict=True):
        steps, values = curve(records, row.name, "log_perplexity")
        style = {"color": colour, "marker": "o", "markersize": 3}
        curves.plot(steps, values, label=row.label, **style)
        shared = [
            (step, v - base[step]) for step, v in zip(steps, values, strict=True) if step in base
        ]
        gaps.plot([step for step, _ in shared], [gap for _, gap in shared], **style)
        trade.plot(row.mflop, row.log_perplexity, "o", color=colour, markersize=7)
    _place_labels(trade, rows)
    curves.set_title("Log perplexity of held-out masked tokens", fontsize=10, loc="left")
    curves.legend(fontsize=9, frameon=False)
    gaps.set_title(f"The same, less that of the {rows[0].label}", fontsize=10, loc="left")
    for axes in (curves, gaps):
        axes.set_xlabel("steps", fontsize=9)
    trade.set_title("Log perplexity at the end", fontsize=10, loc="left")
    trade.set_xlabel("MFLOP per token of one feed-forward block", fontsize=9)
    figure.savefig(path, dpi=130)


def _cycle(count: int) -> list[str]:
    return [_COLOURS[index % len(_COLOURS)] for index in range(count)]


def _place_labels(axes: Any, rows: Sequence[Row]) -> None:
    """Write each point's name beside it, on the side where there is room."""
    costs = [row.mflop for row in rows]
    values = [row.log_perplexity for row in rows]
    middle = (min(costs) + max(costs)) / 2
    axes.margins(0.12, 0.2)
    axes.autoscale_view()
    for row, colour in zip(rows, _cycle(len(rows)), strict=True):
        right = row.mflop <= middle
        axes.annotate(
            row.label,
            (row.mflop, row.log_perplexity),
            xytext=(8 if right else -8, 5 if row.log_perplexity < max(values) else -9),
            textcoords="offset points",
            ha="left" if right else "right",
            fontsize=9,
            color=colour,
        )
