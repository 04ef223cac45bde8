"""Names and numbers of tuned kernels as people read them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from lutcc.schedules.space import Config, KnobValue
from lutcc.tuning.workload import Workload

#: Families of kernels, in the order in which they are shown.
FAMILIES = (
    "look-up layer",
    "look-up chain",
    "scan",
    "encoder",
    "gather layer",
    "Hadamard and block-diagonal",
    "matrix product",
    "elementwise and other",
)
_PRODUCTS = ("linear", "matmul", "dense", "conv", "gemm", "bmm")
_ALWAYS = 2**31 - 1  # as a threshold: there is no number of rows beyond it


def family(workload: Workload) -> str:
    """Return the family of a workload, one of :data:`FAMILIES`.

    Examples
    --------
    >>> family(Workload("stage", "tree_encode+lut_accumulate+lut_dequantize", "...", 64))
    'look-up layer'
    """
    ops = workload.op.split("+")
    if "weighted_gather" in ops:
        return "gather layer"
    if "hadamard" in ops or "block_diagonal_matmul" in ops:
        return "Hadamard and block-diagonal"
    scans = ops.count("lut_accumulate")
    encoders = sum(op.endswith("_encode") for op in ops)
    if scans > 1:
        return "look-up chain"
    if scans:
        return "look-up layer" if encoders else "scan"
    if workload.dims.get("k") or any(name in workload.op for name in _PRODUCTS):
        return "matrix product"
    return "encoder" if encoders else "elementwise and other"


def short_name(workload: Workload) -> str:
    """Return a few words: what it does and its shape, without the number of rows.

    Examples
    --------
    >>> dims = {"columns_in": 512, "outputs": 256, "codebooks": 64, "entries": 16}
    >>> short_name(Workload("stage", "tree_encode+lut_accumulate", "...", 64, dims=dims))
    'look-up 512→256 C64'
    """
    size = {key: f"{value:g}" for key, value in workload.dims.items() if value}
    ops = workload.op.split("+")
    columns, out = size.get("columns_in", "?"), size.get("columns_out", "?")
    tables = f"C{size.get('codebooks', '?')}"
    if size.get("entries", "16") != "16":
        tables += f" K{size['entries']}"
    if "mean" in size:
        tables += " mean"
    match family(workload):
        case "look-up layer":
            words = ["look-up", f"{columns}→{size.get('outputs', out)}", tables]
            words[0] = "nearest look-up" if "nearest_encode" in ops else "look-up"
            words += ["+linear"] if "linear" in ops else []
        case "look-up chain":
            words = [f"{ops.count('lut_accumulate')} look-ups", f"{columns}→{out}", tables]
        case "scan":
            words = ["scan", f"C{size.get('codebooks', columns)}→{size.get('outputs', out)}"]
            words += tables.split()[1:]
        case "encoder":
            words = [ops[0].replace("_", " "), f"{columns}→C{out}"]
        case "gather layer":
            words = ["gather", f"{columns}→{out}", f"h{size.get('codes', '?')}"]
            dtype = {"1": "int8", "2": "bf16"}.get(size.get("itemsize", ""), "")
            words += [f"K{size.get('entries', '?')}", dtype]
        case "Hadamard and block-diagonal":
            words = ["hadamard" if "hadamard" in ops else "blocks", f"{columns}→{out}"]
        case _ if workload.kind == "product":
            dtype = {"1": "int8", "2": "bf16"}.get(size.get("multiplied", ""), "")
            bits = f"{size['bits']} bit" if "bits" in size else ""
            words = [workload.op.replace("_", " "), f"{size.get('depth', columns)}→"]
            words[-1] += size.get("width", out)
            words += [dtype, bits]
        case "matrix product" if workload.kind == "stage":
            words = ["+".join(ops), f"{size.get('depth', columns)}→{size.get('width', out)}"]
        case _ if workload.kind == "stage":
            words = [workload.op, columns]
        case _:
            op = workload.op.removeprefix("fused_").replace("_", " ")
            words = [op, _nest_size(workload)]
    return _shortened(" ".join(filter(None, words)))


def _nest_size(workload: Workload) -> str:
    """Return the size of a loop nest: of a product depth→width, of others values of a row."""
    dims = workload.dims
    if dims.get("k"):
        text = f"{dims['k']:g}→{dims.get('j', 0):g}"
        i, batch = dims.get("i", 0), dims.get("batch", 1)
        text = text if i == workload.rows else f"{i:g}×{text}"
        return text if batch <= 1 else f"{batch:g}×({text})"
    return f"{dims['elements'] / max(1, workload.rows):g}" if "elements" in dims else ""


def _shortened(text: str, limit: int = 44) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def rows_of(workload: Workload) -> int:
    """Return the rows of a workload; 0 where they are unknown."""
    return int(workload.dims.get("rows", 0)) or workload.rows


def full_names(workloads: Sequence[Workload]) -> list[str]:
    """Return a name for each workload that no other has: short name, rows, and what else differs.

    Examples
    --------
    >>> relu = Workload("stage", "relu", "...", 8, dims={"columns_in": 32})
    >>> full_names([relu])
    ['relu 32, N 8']
    """
    names = []
    for workload in workloads:
        rows = rows_of(workload)
        parts = [short_name(workload), f"N {rows:,}" if rows else ""]
        parts += [f"{workload.threads} threads"] if workload.threads > 1 else []
        parts += ["cold"] if workload.cache == "cold" else []
        names.append(", ".join(filter(None, parts)))
    seen = Counter(names)
    numbered = [
        name if seen[name] == 1 else f"{name} #{workload.kernel_id[:6]}"
        for name, workload in zip(names, workloads, strict=True)
    ]
    return numbered


def duration(seconds: float) -> str:
    """Return a time with three digits and its unit.

    Examples
    --------
    >>> [duration(s) for s in (4.2e-8, 1.234e-5, 0.0123, 2.5, 150, 7300)]
    ['42.0 ns', '12.3 µs', '12.3 ms', '2.50 s', '2 min 30 s', '2 h 02 min']
    """
    if seconds >= 3600:
        minutes = round(seconds / 60)
        return f"{minutes // 60} h {minutes % 60:02d} min"
    if seconds >= 60:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= 0.9995 * scale:
            return f"{digits(seconds / scale)} {unit}"
    return f"{digits(seconds * 1e9)} ns"


def digits(value: float) -> str:
    """Return three significant digits, without an exponent.

    Examples
    --------
    >>> [digits(v) for v in (0.0123, 1.234, 12.34, 1234.5)]
    ['0.0123', '1.23', '12.3', '1,234']
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value)) + 1e-9))
    return f"{value:,.{decimals}f}"


def gain(relative: float) -> str:
    """Return how many times as fast a relative time is.

    Examples
    --------
    >>> gain(0.5), gain(1.0)
    ('2.00×', '1.00×')
    """
    return f"{1 / relative:.2f}×"


def knob_value(value: KnobValue | None) -> str:
    """Return a knob's value; the greatest threshold is called ``always``."""
    if value is None:
        return "none"
    return "always" if value == _ALWAYS else str(value)


def changed_knobs(default: Config, config: Config) -> list[tuple[str, str, str]]:
    """Return (knob, value before, value after) of what a config changes, in the config's order.

    Examples
    --------
    >>> changed_knobs({"a": 1, "b": 2}, {"a": 1, "b": 4})
    [('b', '2', '4')]
    """
    return [
        (name, knob_value(default.get(name)), knob_value(config.get(name)))
        for name in dict.fromkeys((*default, *config))
        if default.get(name) != config.get(name)
    ]
