"""Tables of feed-forward blocks, for the terminal and for README.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from lutcc.bench.ffn import FAMILIES, TABLES, family_of
from lutcc.report.tables import number, pretty

Row = Mapping[str, Any]


def ffn_table(rows: Sequence[Row]) -> Table:
    """Return a block for each shape and batch: every candidate, and who is faster than whom."""
    amx = has_amx(rows)
    title = "ffn: microseconds per call, one core; LookupFFN against dense d -> 4d -> d (GELU)"
    table = Table(title=title, title_justify="left", caption=notes(rows), caption_justify="left")
    table.add_column("d, h, tau; batch", no_wrap=True)
    table.add_column("candidate", no_wrap=True)
    for column in ("best", "median", *(f"against {family}" for family in FAMILIES)):
        table.add_column(column, justify="right")
    for row in rows:
        workload = f"{row['d']}, {row['h']}, {row['tau']}; {row['batch']}"
        for label, timing in row["times"].items():
            own = row["tables"].get(label.removeprefix("lutcc "))
            name = f"{label} tables" if own else pretty(label, amx_cpu=amx)
            times = [number(timing[key] * 1e6) for key in ("best", "median")]
            table.add_row(workload, name, *times, *_against(own, amx), style="bold" if own else "")
            workload = ""
        table.add_section()
    return table


def _against(own: Row | None, amx: bool) -> list[str]:
    """Return who is faster, a cell for each family of dense candidates."""
    if own is None:
        return []
    cells = []
    for family, ratio in own["speedup"].items():
        cell, plain = faster(ratio), faster(own["speedup_without_amx"][family])
        cells.append(f"{cell}, without AMX {plain}" if amx and cell != plain else cell)
    return cells


def faster(ratio: float) -> str:
    """Say how much faster look-ups are, or how much slower.

    Examples
    --------
    >>> faster(2.5), faster(0.8)
    ('2.50x', '1.25x slower')
    """
    return f"{ratio:.2f}x" if ratio >= 1 else f"{1 / ratio:.2f}x slower"


def has_amx(rows: Sequence[Row]) -> bool:
    """Tell whether candidates with AMX are among those measured."""
    return any(label.endswith("/amx") for label in rows[0]["times"])


def notes(rows: Sequence[Row]) -> str:
    """Return what the tables' numbers do not say."""
    parts = [
        "batches taken in turn from up to 4096 rows",
        types(rows),
        errors(rows),
    ]
    parts += scaling(rows)
    if not rows[0]["bf16_native"]:
        parts.append("this CPU has no bfloat16 products: dense bfloat16 is slow on it")
    return ". ".join(part[0].upper() + part[1:] for part in parts) + "."


def types(rows: Sequence[Row]) -> str:
    """Return which layers have a bfloat16 projection, or bfloat16 scores."""
    found = []
    for table_dtype in TABLES:
        own = rows[0]["tables"][table_dtype]
        parts = [part for part in ("projection", "score") if own[f"{part}_dtype"] == "bfloat16"]
        if parts:
            found.append(f"with {table_dtype} tables {' and '.join(parts)}s are bfloat16")
    return "; ".join(found) or "projections and scores are float32"


def errors(rows: Sequence[Row]) -> str:
    """Return the largest error of each table type, against float32 tables."""
    worst = {t: max(row["tables"][t]["error"] for row in rows) for t in TABLES[1:]}
    text = ", ".join(f"{t} {error:.2%}" for t, error in worst.items())
    return f"relative error of the output against float32 tables: {text}"


def scaling(rows: Sequence[Row]) -> list[str]:
    """Return a sentence on two cores for each shape that was measured on two."""
    found = []
    for row in rows:
        if row["two_cores"]:
            times = ", ".join(f"{t} {ratio:.2f}x" for t, ratio in row["two_cores"].items())
            shape = f"d={row['d']} h={row['h']} tau={row['tau']} batch {row['batch']}"
            found.append(f"two cores against one, {shape}: {times}")
    return found


def ffn_header(rows: Sequence[Row]) -> list[str]:
    """Return the columns of README's table."""
    return [
        "d, h, tau", "batch", *(f"lutcc, {t}" for t in TABLES), *_columns(rows),
        *(f"{t} tables against the fastest" for t in TABLES),
    ]  # fmt: skip


def _columns(rows: Sequence[Row]) -> dict[str, tuple[str, bool]]:
    """Return the dense columns: title -> (family, with AMX)."""
    columns = {}
    for family in FAMILIES:
        labels = [label for label in rows[0]["times"] if _is_dense(label, family)]
        if any(label.endswith("/amx") for label in labels):
            columns[f"{family}, AMX"] = (family, True)
        columns[family] = (family, False)
    return columns


def _is_dense(label: str, family: str) -> bool:
    return not label.startswith("lutcc ") and family_of(label) == family


def ffn_cells(row: Row, rows: Sequence[Row]) -> list[str]:
    """Return one line of README's table: best microseconds, and the verdicts."""
    best = {label: timing["best"] * 1e6 for label, timing in row["times"].items()}
    cells = [f"{row['d']}, {row['h']}, {row['tau']}", str(row["batch"])]
    cells += [number(best[f"lutcc {t}"]) for t in TABLES]
    for family, amx in _columns(rows).values():
        found = [
            time
            for label, time in best.items()
            if _is_dense(label, family) and label.endswith("/amx") == amx
        ]
        cells.append(number(min(found)))
    return cells + [faster(min(row["tables"][t]["speedup"].values())) for t in TABLES]
