"""The picture of accuracy against latency over the number of codebooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lutcc.bench.machine import one_line
from lutcc.report.figure_style import plain_figure
from lutcc.report.tables import pretty

_DENSE = {
    "compiled": ("P", "#4aa3c7"),
    "fp32": ("o", "#444444"),
    "bf16": ("s", "#b35900"),
    "bf16_cast": ("D", "#e0a060"),
    "int8_onednn": ("^", "#7a3b9a"),
    "int8_x86": ("v", "#c08fd8"),
}


def draw(result: dict[str, Any], path: Path) -> None:
    """Write a PNG: a panel per batch size, look-ups as a line over the codebooks.

    Raises
    ------
    DependencyError
        Without matplotlib.
    """
    batches = list(result["models"][0]["times"])
    figure = plain_figure(4.6 * len(batches), 5.6)
    panels = figure.subplots(1, len(batches), sharey=True, squeeze=False)[0]
    for panel, batch in zip(panels, batches, strict=True):
        _panel(panel, result, batch)
    panels[0].set_ylabel(f"accuracy on {result['test_rows']} test digits")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.suptitle(
        "64-30-30-30-10 MLP on handwritten digits: accuracy against latency over the number of "
        "codebooks\nplain conversion, no fine-tuning; best of repeated calls on one core; up and "
        "to the left is better",
        fontsize=11,
    )
    figure.text(
        0.995,
        0.002,
        one_line(result["machine"]),
        ha="right",
        va="bottom",
        fontsize=6,
        color="#777777",
    )
    figure.savefig(path, dpi=130)


def _panel(panel: Any, result: dict[str, Any], batch: int) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    lookups = [row for row in result["models"] if row["kind"] == "lutcc"]
    x = [row["times"][batch]["best"] * 1e6 for row in lookups]
    y = [row["accuracy"] for row in lookups]
    panel.plot(
        x,
        y,
        "-o",
        color="#1a7f5a",
        linewidth=2,
        markersize=7,
        zorder=4,
        label="lutcc (C codebooks)",
    )
    for index, (row, at_x, at_y) in enumerate(zip(lookups, x, y, strict=True)):
        beside = index > 0 and at_y - y[index - 1] < 0.02  # as accurate as the one before
        panel.annotate(
            f"C={row['ncodebooks']}", (at_x, at_y), xytext=(8, -4) if beside else (-8, 4),
            textcoords="offset points", fontsize=9, color="#1a7f5a",
            ha="left" if beside else "right",
        )  # fmt: skip
    amx = "amx_int8" in result["machine"]["flags"]
    for row in result["models"]:
        if row["kind"] != "dense":
            continue
        marker, color = _DENSE[row["precision"]]
        filled = (
            row["label"].endswith("/amx")
            or not amx
            or row["precision"] in ("compiled", "fp32", "int8_x86")
        )
        panel.plot(
            [row["times"][batch]["best"] * 1e6], [row["accuracy"]], marker, color=color,
            markersize=8,
            markerfacecolor=color if filled else "none", linestyle="none", zorder=3,
            label=pretty(row["label"], amx_cpu=amx),
        )  # fmt: skip
    panel.axhline(result["exact_accuracy"], color="#999999", linewidth=0.8, linestyle=":", zorder=1)
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    left, right = panel.get_xlim()
    panel.set_xlim(left / 1.6, right * 1.2)
    panel.set_title(f"batch {batch}", fontsize=10)
    panel.set_xlabel("microseconds per batch (log scale)")
    panel.grid(True, which="major", color="#dddddd", linewidth=0.6)
    panel.grid(True, which="minor", axis="x", color="#eeeeee", linewidth=0.4)
