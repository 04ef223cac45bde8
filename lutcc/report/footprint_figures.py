"""The figures of a footprint report: memory before and after, and every layer; SVG and PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lutcc.report.figure_style import INK, LIGHT, MUTED, PAPER, WIDTH, open_figure, to_svg
from lutcc.report.footprint_data import FootprintReport, Layer, shown

#: What memory is made of -> its colour.
PARTS = {
    "indices": "family0",
    "codebooks": "family1",
    "scales": "family2",
    "order": "family3",
    "outliers": "family4",
    "exact": "family7",
    "activations": "family5",
}
MOST_LAYERS = 64
_ROW = 0.235
_MEMORY = 1.85


def memory_svg(report: FootprintReport) -> str:
    """Return memory before and after as inline SVG.

    Raises
    ------
    DependencyError
        Without matplotlib; the same holds for the other figures.
    """
    with open_figure(WIDTH, _MEMORY) as figure:
        _memory(figure, report)
        return to_svg(figure, f"memory {report.name}")


def layers_svg(report: FootprintReport) -> str:
    """Return bits, error and share of memory, a line for each compressed layer, as inline SVG."""
    layers = shown(report.compressed, MOST_LAYERS)
    with open_figure(WIDTH, _list_height(len(layers))) as figure:
        _layers(figure, report, layers)
        return to_svg(figure, f"layers {report.name}")


def summary_png(report: FootprintReport, path: str | Path, *, dpi: int = 120) -> None:
    """Write one picture of everything."""
    layers = shown(report.compressed, MOST_LAYERS)
    heights = [0.6, _MEMORY, _list_height(len(layers))]
    with open_figure(13.0, sum(heights)) as figure:
        head, memory, lines = figure.subfigures(3, 1, height_ratios=heights)
        _headline(head, report)
        _memory(memory, report)
        _layers(lines, report, layers)
        figure.savefig(path, dpi=dpi, facecolor=PAPER)


def parts_of(report: FootprintReport) -> dict[str, float]:
    """Return megabytes of what a compressed model is made of, by part."""
    found = report.parts
    bits = {name: getattr(found, name) for name in list(PARTS)[:5]}
    bits["exact"] = sum(layer.bits for layer in report.exact)
    bits["activations"] = report.activations or 0
    return {name: value / 8e6 for name, value in bits.items() if value}


def _headline(figure: Any, report: FootprintReport) -> None:
    facts = [f"{report.alpha:.2f} times smaller than at 16 bits"]
    if report.goal is not None:
        facts.append(f"asked for {report.goal:g} a layer")
    facts.append(f"{len(report.compressed)} of {len(report.layers)} tensors compressed")
    if report.alpha_with_activations is not None:
        facts.append(f"{report.alpha_with_activations:.2f} times with activations")
    figure.text(0.006, 0.9, report.name, fontsize=12, weight="bold", va="top")
    figure.text(0.006, 0.42, " · ".join(facts), fontsize=9, color=MUTED, va="top")


def _memory(figure: Any, report: FootprintReport) -> None:
    axis = figure.subplots(1, 1)
    after = parts_of(report)
    compressed = sum(layer.before for layer in report.compressed) / 8e6
    exact = sum(layer.before for layer in report.exact) / 8e6
    before = {"compressed": compressed, "exact": exact, "activations": after.get("activations", 0)}
    used: list[str] = []
    for row, parts in enumerate((before, after)):
        left = 0.0
        for name, size in parts.items():
            if not size:
                continue
            tone = LIGHT[PARTS.get(name, "muted")]
            label = "weights at 16 bits" if name == "compressed" else name
            axis.barh(
                row, size, left=left, height=0.62, color=tone, linewidth=0.8, edgecolor=PAPER,
                label=None if label in used else label,
            )  # fmt: skip
            used.append(label)
            left += size
        axis.text(left, row, f" {_megabytes(left)}", va="center", fontsize=8.5, color=INK)
    axis.set_yticks([0, 1], ["before", "after"])
    axis.set_ylim(1.55, -0.55)
    axis.set_xlim(0, 1.12 * sum(before.values()))
    axis.grid(False, axis="y")
    axis.tick_params(axis="y", length=0)
    axis.set_title("memory, MB", loc="left")
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", frameon=False, fontsize=7.5)


def _list_height(count: int) -> float:
    return 0.85 + _ROW * max(2, count)


def _layers(figure: Any, report: FootprintReport, layers: tuple[Layer, ...]) -> None:
    bits, error, share = figure.subplots(1, 3, sharey=True, width_ratios=(1, 1, 1.15))
    for row, layer in enumerate(layers):
        record = layer.record
        tone = LIGHT[f"family{max(record.bits - 2, 0)}"]
        each = record.footprint.bits_per_weight
        bits.barh(row, each, height=0.66, color=tone, linewidth=0)
        bits.text(each, row, f" {each:.2f}", va="center", fontsize=7, color=INK)
        error.plot([0, 100 * record.error], [row, row], color=tone, linewidth=1.1, alpha=0.5)
        error.plot(100 * record.error, row, "o", color=tone, markersize=4.5, markeredgewidth=0)
        share.barh(row - 0.17, 100 * layer.share_before, height=0.3, color=MUTED, alpha=0.45)
        share.barh(row + 0.17, 100 * layer.share, height=0.3, color=tone)
    bits.set_yticks(range(len(layers)), [_short(layer.record.name) for layer in layers])
    bits.set_ylim(len(layers) - 0.4, -0.6)
    bits.set_xlim(0, 1.16 * max([4.0, *(x.record.footprint.bits_per_weight for x in layers)]))
    bits.set_title("bits a weight, everything included", loc="left")
    data = any(layer.record.rows for layer in layers)
    error.set_title(f"relative error of {'outputs' if data else 'weights'}, %", loc="left")
    error.set_xlim(left=0)
    error.margins(x=0.08)
    share.set_title("share of memory, %: grey before, colour after", loc="left")
    for axis in (bits, error, share):
        axis.tick_params(axis="y", length=0, labelleft=axis is bits)
        axis.grid(False, axis="y")
    left_out = len(report.compressed) - len(layers)
    if left_out:
        share.set_xlabel(f"the {left_out} smallest layers are not shown", labelpad=3)
    tones = {f"{n} bits": f"family{n - 2}" for n in sorted({x.record.bits for x in layers})}
    for name, tone in tones.items():
        bits.barh([0], [0], color=LIGHT[tone], label=name)
    if len(tones) > 1:
        bits.legend(frameon=False, fontsize=7.5, loc="lower right")


def _short(name: str) -> str:
    text = name.removesuffix(".weight")
    return text if len(text) <= 44 else f"…{text[-43:]}"


def _megabytes(size: float) -> str:
    if size < 0.1:
        return f"{1000 * size:,.1f} kB"
    return f"{size:,.1f} MB" if size >= 10 else f"{size:,.2f} MB"
