"""Tables of sampled products, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from lutcc.bench.ffn_report import faster
from lutcc.bench.sampled import WANTED
from lutcc.report.tables import number, pretty

Row = Mapping[str, Any]


def sampled_tables(rows: Sequence[Row]) -> list[Table]:
    """Return the times of all candidates, and who is faster than whom."""
    return [
        times_table(rows, "forward", "one forward pass"),
        times_table(rows, "training", "forward and both gradients"),
        verdict_table(rows),
    ]


def times_table(rows: Sequence[Row], what: str, title: str) -> Table:
    """Return a block for each shape: every candidate, best and median."""
    amx = any(label.endswith("/amx") for row in rows for label in row[what])
    table = Table(title=f"sampled: milliseconds of {title}, one core", title_justify="left")
    table.add_column("N, K, M", no_wrap=True)
    table.add_column("candidate", no_wrap=True)
    for column in ("best", "median", "of float32"):
        table.add_column(column, justify="right")
    for row in rows:
        workload = _shape(row)
        exact = min(t["best"] for k, t in row[what].items() if _is_exact(k))
        for label, timing in row[what].items():
            sampled = label.startswith(("lutcc", "index_select"))
            name = label if sampled else pretty(label, amx_cpu=amx)
            cells = [number(timing[key] * 1e3) for key in ("best", "median")]
            cells.append(f"{timing['best'] / exact:.2f}")
            table.add_row(workload, name, *cells, style="bold" if _is_own(label) else "")
            workload = ""
        table.add_section()
    return table


def verdict_table(rows: Sequence[Row]) -> Table:
    """Return how lutcc's sampled products compare; losses are called losses."""
    families = list(rows[0]["verdicts"][0]["speedup"])
    table = Table(
        title="sampled: lutcc's kernel with scores and selection, against",
        title_justify="left",
        caption=notes(rows),
        caption_justify="left",
    )
    table.add_column("N, K, M", no_wrap=True)
    table.add_column("type, ratio", no_wrap=True)
    columns = (*families, "index_select", "training: float32", "training: index_select")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        workload = _shape(row)
        for found in row["verdicts"]:
            ratios = [*found["speedup"].values(), found["index_select"], found["training"]]
            cells = [_cell(ratio) for ratio in (*ratios, found["training_index_select"])]
            table.add_row(workload, f"{found['dtype']}, {found['ratio']:g}", *cells)
            workload = ""
        table.add_section()
    return table


def _cell(ratio: float | None) -> str:
    if ratio is None:
        return "not timed"
    return faster(ratio) if ratio >= 1 else f"loss: {faster(ratio)}"


def _shape(row: Row) -> str:
    return f"{row['N']}, {row['K']}, {row['M']}"


def _is_exact(label: str) -> bool:
    return label in ("fp32", "fp32_onednn", "dense float32")


def _is_own(label: str) -> bool:
    return label.startswith("lutcc")


def notes(rows: Sequence[Row]) -> str:
    """Return what the numbers do not say, and which miss the goal."""
    parts = [
        "The largest scores are taken (topk); the second factor is the transpose of a weight",
        goal(rows),
        "int8 is dense and dynamic, and has no gradients",
    ]
    if not rows[0]["bf16_native"]:
        parts.append(
            "this CPU has no bfloat16 products: torch emulates the dense one, and so is slow; it "
            "was timed twice at most"
            + ("" if all(r["bf16_timed"] for r in rows) else ", not at all for the larger shapes")
            + ", and not in training"
        )
    return ". ".join(part[0].upper() + part[1:] for part in parts) + "."


def goal(rows: Sequence[Row]) -> str:
    """Say at which shapes half of the pairs take at most the wanted part of dense float32.

    Examples
    --------
    >>> verdicts = [{"dtype": "float32", "ratio": 0.5, "share": 0.55}]
    >>> goal([{"N": 8, "K": 4, "M": 2, "verdicts": verdicts}])
    '0.5 of the pairs take, of the fastest dense float32: 8, 4, 2 float32 0.55 (goal 0.6: met)'
    """
    found = [
        f"{_shape(row)} {v['dtype']} {v['share']:.2f} "
        f"(goal {WANTED}: {'met' if v['share'] <= WANTED else 'missed'})"
        for row in rows
        for v in row["verdicts"]
        if v["ratio"] == 0.5
    ]
    return "0.5 of the pairs take, of the fastest dense float32: " + ", ".join(found)
