"""Results of compressing models in several ways: kept line by line, as tables, as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lutcc.bench.readme import markdown_table
from lutcc.report.figure_style import LIGHT, WIDTH, open_figure

#: Figures of merit that are better when larger, whose distance from 1 is drawn.
_UP_TO_ONE = ("cosine", "accuracy", "agreement")


@dataclass(frozen=True, slots=True)
class CompressionResult:
    """What one way of compressing a model made of it.

    Attributes
    ----------
    model, method
        Names.
    alpha
        The goal: 16 bits over the bits of a weight; 1 for the exact model.
    bits_per_weight
        Of the layers that were compressed, as stored.
    seconds
        That it took.
    figures
        How well the result does, by the name of the measure; the first one leads.
    note
        What else is worth knowing.
    """

    model: str
    method: str
    alpha: float
    bits_per_weight: float
    seconds: float
    figures: Mapping[str, float]
    note: str = ""


class CompressionResults:
    """Results in a file, a line each; an interrupted comparison goes on from there.

    Parameters
    ----------
    path
        A JSON lines file; made with the first result.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.rows = [CompressionResult(**json.loads(line)) for line in lines if line.strip()]

    def find(self, model: str, alpha: float, method: str) -> CompressionResult | None:
        """Return a result that is there."""
        key = (model, alpha, method)
        return next((r for r in self.rows if (r.model, r.alpha, r.method) == key), None)

    def add(self, row: CompressionResult) -> None:
        """Keep a result, in the file at once."""
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")


def results_table(rows: Sequence[CompressionResult]) -> str:
    """Return the results of one model as a Markdown table.

    Examples
    --------
    >>> row = CompressionResult("net", "rounded", 4.0, 3.98, 1.25, {"accuracy": 0.9})
    >>> print(results_table([row]))
    | method | goal | bits a weight | alpha | accuracy | seconds |
    | --- | ---: | ---: | ---: | ---: | ---: |
    | rounded | 4 | 3.980 | 4.02 | 0.9000 | 1.2 |
    """
    measures = list(rows[0].figures)
    header = ["method", "goal", "bits a weight", "alpha", *measures, "seconds"]
    lines = []
    for row in rows:
        note = f" ({row.note})" if row.note else ""
        cells = [row.method + note, f"{row.alpha:g}", f"{row.bits_per_weight:.3f}"]
        cells.append(f"{16 / row.bits_per_weight:.2f}")
        cells += [f"{row.figures[measure]:.4f}" for measure in measures]
        lines.append([*cells, f"{row.seconds:.1f}"])
    return markdown_table(header, lines)


def results_picture(rows: Sequence[CompressionResult], path: Path) -> None:
    """Draw, for each model, how much is lost at how many bits, a line for each method.

    Parameters
    ----------
    rows
        Results; exact models are left out.
    path
        The PNG.
    """
    models = list(dict.fromkeys(row.model for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows if row.method != "exact"))
    families = [colour for name, colour in LIGHT.items() if name.startswith("family")]
    colours = {method: families[i % len(families)] for i, method in enumerate(methods)}
    with open_figure(WIDTH, 3.6) as figure:
        axes = figure.subplots(1, len(models), squeeze=False)[0]
        for axis, model in zip(axes, models, strict=True):
            of_model = [row for row in rows if row.model == model and row.method != "exact"]
            measure = _lost_measure(of_model[0].figures)
            for method in methods:
                points = sorted(
                    (row.bits_per_weight, _lost(row.figures, measure))
                    for row in of_model
                    if row.method == method
                )
                if points:
                    bits, lost = zip(*points, strict=True)
                    axis.plot(bits, lost, "o-", ms=3.5, lw=1.2, color=colours[method], label=method)
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.set_title(model, loc="left")
            axis.set_xlabel("bits a weight, as stored")
            axis.set_ylabel(f"1 - {measure}" if measure in _UP_TO_ONE else measure)
        handles = {
            label: handle
            for axis in axes
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False
        )
        figure.savefig(path, dpi=150)


def _lost_measure(figures: Mapping[str, float]) -> str:
    """Return what is drawn: the divergence where there is one, which resolves more."""
    return "divergence" if "divergence" in figures else next(iter(figures))


def _lost(figures: Mapping[str, float], measure: str) -> float:
    value = figures[measure]
    return max(1 - value if measure in _UP_TO_ONE else value, 1e-6)
