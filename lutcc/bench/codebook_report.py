"""Tables of products with codebook weights, for the terminal and for README.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from lutcc.bench.ffn_report import faster
from lutcc.report.tables import number, pretty

Row = Mapping[str, Any]


def codebook_tables(rows: Sequence[Row]) -> list[Table]:
    """Return the times of all candidates, hot and cold."""
    table = Table(
        title="codebook: microseconds of a product, one core",
        title_justify="left",
        caption=notes(rows),
        caption_justify="left",
    )
    table.add_column("N x K x M", no_wrap=True)
    table.add_column("candidate", no_wrap=True)
    for column in ("hot: best", "median", "cold: best", "median"):
        table.add_column(column, justify="right")
    amx = any(label.endswith("/amx") for row in rows for label in row["hot"])
    for row in rows:
        workload = shape_of(row)
        for label, hot in row["hot"].items():
            own = label.startswith(("lutcc", "read", "onnxruntime"))
            cells = _cells(hot)
            cells += _cells(row["cold"][label]) if row["cold"] else ["", ""]
            name = label if own else pretty(label, amx_cpu=amx)
            style = "bold" if label.startswith("lutcc") else ""
            table.add_row(workload, name, *cells, style=style)
            workload = ""
        table.add_section()
    return [table]


def _cells(timing: Mapping[str, float]) -> list[str]:
    return [number(timing[key] * 1e6) for key in ("best", "median")]


def shape_of(row: Row) -> str:
    """Return a row's sizes."""
    return f"{row['N']} x {row['K']} x {row['M']}"


def best(row: Row, prefix: str, state: str = "hot") -> float | None:
    """Return the best time of the candidates whose label begins with ``prefix``, if any.

    Examples
    --------
    >>> best({"hot": {"int8_x86": {"best": 2.0}, "int8_onednn": {"best": 1.0}}}, "int8")
    1.0
    """
    times = row[state] or {}
    found = [t["best"] for label, t in times.items() if label.startswith(prefix)]
    return min(found, default=None)


def codebook_cells(row: Row) -> list[list[str]]:
    """Return lines of README's table: a line for each number of bits, its fastest arithmetic."""
    lines = []
    for bits in row["bits"]:
        cells = [shape_of(row), str(bits)]
        own = f"lutcc {bits} bits"
        cells += [_number(best(row, own)), _number(best(row, own, "cold"))]
        cells.append(_number(best(row, f"read {bits} bits", "cold")))
        cells.append(_number(best(row, "onnxruntime 4 bits block 128")))
        cells += [_number(best(row, family)) for family in ("fp32", "bf16", "int8")]
        lines.append(cells)
    return lines


#: Columns of README's table.
HEADER = [
    "N x K x M", "bits", "lutcc, hot", "cold", "reading the indices, cold",
    "onnxruntime, 4 bits, block 128", "dense fp32", "bf16", "int8",
]  # fmt: skip


def _number(seconds: float | None) -> str:
    return "-" if seconds is None else number(seconds * 1e6)


def _against(name: str, ratio: float) -> str:
    """Say who is faster.

    Examples
    --------
    >>> _against("dense int8", 2.0), _against("dense int8", 0.5)
    ('2.00x faster than dense int8', 'a loss, 2.00x slower than dense int8')
    """
    if ratio >= 1:
        return f"{faster(ratio)} faster than {name}"
    return f"a loss, {faster(ratio)} than {name}"


def notes(rows: Sequence[Row]) -> str:
    """Return what the numbers do not say: comparisons, losses as losses, and what was left out."""
    parts = ["Hot: one call after the other. Cold: 64 MiB are written before each call"]
    for row in rows:
        own = best(row, "lutcc 4 bits")
        assert own is not None
        against = {
            "onnxruntime block 128": best(row, "onnxruntime 4 bits block 128"),
            "dense bf16": best(row, "bf16"),
            "dense fp32": best(row, "fp32"),
            "dense int8": best(row, "int8"),
        }
        said = [_against(name, t / own) for name, t in against.items() if t is not None]
        parts.append(f"{shape_of(row)} at 4 bits: " + ", ".join(said))
        read, cold = best(row, "read 4 bits", "cold"), best(row, "lutcc 4 bits", "cold")
        if read and cold:
            parts[-1] += f"; cold {cold / read:.2f}x the time to read the indices"
        if row["threads"]:
            one, two = (row["threads"][label]["best"] for label in ("one core", "two cores"))
            parts[-1] += f"; two cores {one / two:.2f}x"
        else:
            parts[-1] += "; two cores not timed: there is one"
    if not rows[0]["onnxruntime"]:
        parts.append("onnxruntime is not installed (pip install 'lutcc[bench]'): not compared")
    if not rows[0]["bf16_native"]:
        parts.append("This CPU has no bfloat16 products: torch emulates them")
    return ". ".join(parts) + "."
