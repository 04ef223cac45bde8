"""The footprint report as one page that stands alone, and its numbers as JSON values."""

from __future__ import annotations

from typing import Any

from lutcc.report import footprint_figures as figures
from lutcc.report.footprint_data import FootprintReport, Layer
from lutcc.report.html_page import or_dash, render


def page(report: FootprintReport, *, sources: list[str], made: str) -> str:
    """Return the page's HTML.

    Parameters
    ----------
    report
        The numbers.
    sources
        The files that were read.
    made
        When the page was made.

    Raises
    ------
    DependencyError
        Without matplotlib.
    """
    return render(
        "footprint.html",
        {
            "megabytes": or_dash(lambda bits: f"{bits / 8e6:,.3f}"),
            "file": or_dash(lambda size: f"{size / 1e6:,.3f}"),
            "times": or_dash("{:.2f}".format),
            "bits": "{:.3f}".format,
            "error": or_dash(lambda value: f"{100 * value:.2f}"),
            "share": or_dash(lambda value: f"{100 * value:.2f}"),
            "width": lambda value: f"{100 * min(1.0, max(0.0, value)):.1f}%",
            "shape": lambda shape: " × ".join(map(str, shape)),
        },
        report=report,
        parts=figures.parts_of(report),
        colours=figures.PARTS,
        memory=figures.memory_svg(report),
        layers=figures.layers_svg(report) if report.compressed else "",
        learnt=any(layer.record.rows for layer in report.compressed),
        largest=max([layer.share for layer in report.layers], default=1.0) or 1.0,
        sources=sources,
        made=made,
    )


def to_json(report: FootprintReport) -> dict[str, Any]:
    """Return everything that a report shows."""
    return {
        "name": report.name,
        "goal": report.goal,
        "alpha": report.alpha,
        "alpha_with_activations": report.alpha_with_activations,
        "activation_bits": report.activations,
        "weight_bits": {"before": report.weights_before, "after": report.weights_after},
        "bytes": {"before": report.bytes_before, "after": report.bytes_after},
        "layers": [_layer(layer) for layer in report.layers],
    }


def _layer(layer: Layer) -> dict[str, Any]:
    record = layer.record
    return {
        **record.to_dict(),
        "bits_per_weight": record.footprint.bits_per_weight if record.footprint.weights else None,
        "share_before": layer.share_before,
        "share": layer.share,
        "weight_error": layer.weight_error,
    }
