"""The demonstration's tables for the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

NAMES = {
    "compiled": "lutcc, exact float32",
    "fp32": "torch float32",
    "bf16": "torch bfloat16",
    "bf16_cast": "torch bfloat16, float32 in/out",
    "fp32_onednn": "oneDNN float32",
    "bf16_onednn": "oneDNN bfloat16",
    "bf16_onednn_cast": "oneDNN bfloat16, float32 in/out",
    "int8_onednn": "torch int8 (oneDNN)",
    "int8_x86": "torch int8 (x86 engine)",
    "int8_onnxruntime": "onnxruntime int8",
}


def pretty(label: str, *, amx_cpu: bool = False) -> str:
    """Return a candidate's name in words; says so where AMX is used or withheld."""
    base, _, suffix = label.partition("/")
    if base.startswith("lutcc "):
        return f"lutcc, {base.split()[1]} codebooks"
    name = NAMES.get(base, base)
    if suffix == "amx":
        return f"{name}, AMX"
    if amx_cpu and base in ("bf16", "bf16_cast", "bf16_onednn", "bf16_onednn_cast", "int8_onednn"):
        return f"{name}, without AMX"
    return name


def microseconds(timing: dict[str, Any]) -> str:
    """Return the best time, and the median in brackets."""
    return f"{number(timing['best'] * 1e6)} ({number(timing['median'] * 1e6)})"


def number(value: float) -> str:
    """Return three significant digits without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def models_table(result: dict[str, Any]) -> Table:
    """Return the table of whole models: accuracy, size, latency per batch."""
    rows = result["models"]
    amx = _has_amx(result)
    batches = list(rows[0]["times"])
    table = Table(
        title=f"64-30-30-30-10 MLP on {result['test_rows']} test digits; "
        "latency in microseconds per batch: best (median), one core",
        title_justify="left",
    )
    table.add_column("model", no_wrap=True)
    table.add_column("accuracy", justify="right")
    table.add_column("of exact", justify="right")
    table.add_column("bytes", justify="right")
    for batch in batches:
        table.add_column(f"batch {batch}", justify="right", no_wrap=True)
    table.add_column("kernels")
    fastest = {b: min(row["times"][b]["best"] for row in rows) for b in batches}
    for index, row in enumerate(rows):
        cells = [pretty(row["label"], amx_cpu=amx), f"{row['accuracy']:.4f}"]
        cells += [f"{row['relative_accuracy']:.3f}", f"{row.get('table_bytes', row['bytes']):,}"]
        for batch in batches:
            text = microseconds(row["times"][batch])
            best = row["times"][batch]["best"] == fastest[batch]
            cells.append(f"[bold green]{text}[/]" if best else text)
        cells.append(row["isa"] or "torch")
        last = index + 1 < len(rows) and rows[index + 1]["kind"] != row["kind"]
        table.add_row(*cells, end_section=last)
    return table


def layers_table(result: dict[str, Any]) -> Table:
    """Return the table that tells for each layer and batch whether the look-up pays."""
    layers = result["layers"]
    amx = _has_amx(result)
    batches = list(layers[0]["batches"])
    table = Table(
        title=f"Does the look-up pay? Each layer alone, {layers[0]['ncodebooks']} codebooks, "
        "against the fastest dense layer",
        title_justify="left",
    )
    table.add_column("layer", no_wrap=True)
    table.add_column("compared", no_wrap=True)
    for batch in batches:
        table.add_column(f"batch {batch}")
    for layer in layers:
        shape = f"{layer['name']}: {layer['in']} to {layer['out']}" + (
            " + ReLU" if layer["relu"] else ""
        )
        kinds = (
            ("speedup", "fastest", "all"),
            ("speedup_without_amx", "fastest_without_amx", "without AMX"),
        )
        for index, (speedup, fastest, kind) in enumerate(kinds if amx else kinds[:1]):
            cells = [
                verdict(layer["batches"][b][speedup], layer["batches"][b][fastest]) for b in batches
            ]
            table.add_row(shape if index == 0 else "", kind, *cells)
    return table


def verdict(speedup: float, fastest: str) -> str:
    """Return ``pays: 2.10x (fp32)`` or ``dense int8 ... is 1.40x faster``, in rich markup."""
    name = pretty(fastest).removeprefix("torch ").replace("lutcc, exact", "lutcc's own")
    if speedup >= 1:
        return f"[green]pays: {speedup:.2f}x[/] ({name})"
    return f"[yellow]dense {name} is {1 / speedup:.2f}x faster[/]"


def minilm_table(found: dict[str, Any]) -> Table:
    """Return what a compiled transformer takes beside torch."""
    shapes = list(found["models"][0]["times"])
    table = Table(
        title="all-MiniLM-L6-v2, any batch and length; latency in milliseconds of batch x tokens: "
        "best (median), one core",
        title_justify="left",
    )
    table.add_column("model", no_wrap=True)
    table.add_column("MB", justify="right")
    table.add_column("compiled in", justify="right")
    table.add_column("least cosine", justify="right")
    for shape in shapes:
        table.add_column(shape, justify="right", no_wrap=True)
    for row in found["models"]:
        taken = f"{row['compile_s']:.1f} s" if "compile_s" in row else ""
        cells = [row["label"], f"{row['bytes'] / 1e6:.1f}", taken, f"{row['cosine']:.5f}"]
        for shape in shapes:
            best, median = (row["times"][shape][name] * 1e3 for name in ("best", "median"))
            fastest = best <= min(r["times"][shape]["best"] for r in found["models"]) * 1e3
            text = f"{number(best)} ({number(median)})"
            cells.append(f"[bold green]{text}[/]" if fastest else text)
        table.add_row(*cells)
    return table


def minilm_notes(found: dict[str, Any]) -> list[str]:
    """Return how near the embeddings are, and an example."""
    reference, pairs = "torch float32", found["pairs"]
    lines = ["Least cosine: of a sentence's embedding and that of torch. Nearest sentences:"]
    for name in [row["label"] for row in found["models"] if row["label"] != reference]:
        same = sum(pair[name] == pair[reference] for pair in pairs)
        lines[0] += f" {name} names the same as torch for {same} of {len(pairs)};"
    lines[0] = lines[0].removesuffix(";") + "."
    first = pairs[0]
    lines.append(f'"{first["sentence"]}" is nearest to "{first[found["models"][0]["label"]]}"')
    return lines


def _has_amx(result: dict[str, Any]) -> bool:
    return "amx_int8" in result["machine"]["flags"]
