"""The table of dense products, and what it says of wins and losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from lutcc.report.tables import number, pretty

Row = Mapping[str, Any]
#: Which of torch's candidates each of lutcc's is held against, the fastest of them, how they are
#: called together, and the part of their speed that is wanted.
RIVALS = {
    "float32": (("fp32_onednn",), "fp32_onednn", 0.9),
    "bfloat16": (("bf16_cast", "bf16_onednn_cast"), "bf16_cast", 0.85),
    "bfloat16 in/out": (("bf16", "bf16_onednn"), "bf16", 0.85),
    "int8": (("int8_onednn", "int8_x86"), "int8", 0.85),
}
#: The time to read the weights, over which a product of one row may take so much more.
READ_SHARE = 1.1


def dense_table(rows: Sequence[Row]) -> Table:
    """Return a table with the times of all candidates."""
    table = Table(
        title="dense: microseconds of a product, one core",
        title_justify="left",
        caption=notes(rows),
        caption_justify="left",
    )
    table.add_column("N x K x M", no_wrap=True)
    table.add_column("candidate", no_wrap=True)
    for column in ("best", "median", "GFLOP/s"):
        table.add_column(column, justify="right")
    amx = any(label.endswith("/amx") for row in rows for label in row["times"])
    for row in rows:
        workload = shape_of(row)
        work = 2.0 * row["N"] * row["K"] * row["M"]
        for label, timing in row["times"].items():
            own = label.startswith(("lutcc", "read"))
            name = label if own else pretty(label, amx_cpu=amx)
            cells = [number(timing[key] * 1e6) for key in ("best", "median")]
            cells.append("" if label.startswith("read") else number(work / timing["best"] / 1e9))
            table.add_row(workload, name, *cells, style="bold" if "lutcc" in label else "")
            workload = ""
        table.add_section()
    return table


def shape_of(row: Row) -> str:
    """Return a row's sizes."""
    return f"{row['N']} x {row['K']} x {row['M']}"


def best(row: Row, *names: str) -> float | None:
    """Return the best time of the candidates of these names, with or without AMX, if any."""
    allowed = {f"{name}{suffix}" for name in names for suffix in ("", "/amx")}
    found = [t["best"] for label, t in row["times"].items() if label in allowed]
    return min(found, default=None)


def verdicts(row: Row) -> list[str]:
    """Say how fast each arithmetic is, as a part of its rival's speed, and whether that was wanted.

    Examples
    --------
    >>> times = {"lutcc int8": {"best": 2.0}, "int8_x86": {"best": 1.0}}
    >>> verdicts({"times": times})
    ['int8 0.50x the speed of int8 (goal 0.85: missed), a loss']
    """
    said = []
    for compute, (names, rival, goal) in RIVALS.items():
        own, other = best(row, f"lutcc {compute}"), best(row, *names)
        if own is None or other is None:
            continue
        ratio = other / own
        text = f"{compute} {ratio:.2f}x the speed of {rival} (goal {goal}: "
        text += f"{'met' if ratio >= goal else 'missed'})"
        read = best(row, f"read {compute}")
        if read is not None:
            over = own / read
            text += f" and {over:.2f}x the time to read the weights (goal {READ_SHARE}: "
            text += f"{'met' if over <= READ_SHARE else 'missed'})"
        said.append(text + ("" if ratio >= 1 else ", a loss"))
    return said


def notes(rows: Sequence[Row]) -> str:
    """Return what the numbers do not say."""
    parts = [f"{shape_of(row)}: " + "; ".join(verdicts(row)) for row in rows]
    if not all(row["bf16_native"] for row in rows):
        parts.append("This CPU has no bfloat16 products: torch emulates them")
    return ". ".join(parts) + "."
