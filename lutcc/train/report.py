"""What a comparison of feed-forward blocks shows: table 1's columns and the curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lutcc.errors import DependencyError
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
    """Draw held-out curves, and log perplexity over FLOPs; write a PNG or SVG.

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
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError(
            "matplotlib is missing", where="train.report", fix='pip install "lutcc[examples]"'
        ) from error
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    curves, trade = figure.subplots(1, 2, gridspec_kw={"width_ratios": (1.25, 1)})
    for axes in (curves, trade):
        axes.grid(color=_GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=_MUTED, labelsize=9)
        axes.set_ylabel("log perplexity of held-out masked tokens", fontsize=9)
    for row, colour in zip(rows, _cycle(len(rows)), strict=True):
        steps, losses = curve(records, row.name, "loss")
        curves.plot(steps, losses, color=colour, alpha=0.18, linewidth=0.8)
        steps, values = curve(records, row.name, "log_perplexity")
        curves.plot(steps, values, color=colour, marker="o", markersize=3, label=row.label)
        trade.plot(row.mflop, row.log_perplexity, "o", color=colour, markersize=7)
    _place_labels(trade, rows)
    curves.set_xlabel("steps (pale: training loss of single batches)", fontsize=9)
    curves.set_title("Equal steps, equal batches", fontsize=10, loc="left")
    curves.legend(fontsize=9, frameon=False)
    ends = [row.log_perplexity for row in rows]
    seen = [v for r in rows for v in curve(records, r.name, "log_perplexity")[1]]
    if seen:
        curves.set_ylim(min(ends) - 0.15, max(seen) + 0.15)
    trade.set_xlabel("MFLOP per token of one feed-forward block", fontsize=9)
    trade.set_title("Quality over cost", fontsize=10, loc="left")
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
