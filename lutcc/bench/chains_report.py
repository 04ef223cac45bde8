"""The table of whole networks of look-ups, and what it says of wins and losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from lutcc.report.tables import number, pretty

Row = Mapping[str, Any]
#: Look-ups on two cores, a thread on each; all else has one.
TWO_CORES = "lutcc look-ups on 2 cores"
#: Look-ups whose sums become floats between layers, and all of whose columns are computed.
FLOATS = "lutcc look-ups, floats between"
OWN = "lutcc look-ups"


def chains_table(rows: Sequence[Row]) -> Table:
    """Return a table with the times of all candidates, by batch."""
    table = Table(
        title="chains: microseconds of a whole network of look-ups, one core unless two are named",
        title_justify="left",
        caption=notes(rows),
        caption_justify="left",
    )
    table.add_column("network, N", no_wrap=True)
    table.add_column("candidate", no_wrap=True)
    for column in ("best", "median"):
        table.add_column(column, justify="right")
    amx = any(label.endswith("/amx") for row in rows for label in row["times"])
    for row in rows:
        workload = f"{row['network']}, N = {row['N']}"
        for label, timing in row["times"].items():
            name = label if label.startswith("lutcc") else pretty(label, amx_cpu=amx)
            cells = [number(timing[key] * 1e6) for key in ("best", "median")]
            table.add_row(workload, name, *cells, style="bold" if label == OWN else "")
            workload = ""
        table.add_section()
    return table


def fastest_rival(row: Row) -> tuple[str, float]:
    """Return the fastest network of bfloat16 or int8, and how much slower than look-ups it is.

    Examples
    --------
    >>> times = {"lutcc look-ups": {"best": 1.0}, "bf16": {"best": 4.0}, "fp32": {"best": 2.0}}
    >>> fastest_rival({"times": times})
    ('bf16', 4.0)
    """
    times = {label: timing["best"] for label, timing in row["times"].items()}
    rivals = {label: t for label, t in times.items() if "int8" in label or "bf" in label}
    rival = min(rivals, key=lambda label: rivals[label])
    return rival, rivals[rival] / times[OWN]


def verdict(row: Row) -> str:
    """Say how much faster look-ups are than the fastest network of bfloat16 or int8.

    Examples
    --------
    >>> times = {"lutcc look-ups": {"best": 1.0}, "lutcc int8": {"best": 4.0}}
    >>> verdict({"N": 1, "times": times})
    'N = 1: 4.00x the speed of lutcc int8'
    """
    times = {label: timing["best"] for label, timing in row["times"].items()}
    own, both, floats = times[OWN], times.get(TWO_CORES), times.get(FLOATS)
    rival, ratio = fastest_rival(row)
    text = f"N = {row['N']}: {ratio:.2f}x the speed of {rival}"
    text = text if ratio >= 1 else f"{text}, a loss"
    if floats is not None:
        text += f"; {floats / own:.2f}x that with floats between layers"
    return text if both is None else f"{text}; on two cores {own / both:.2f}x that on one"


def notes(rows: Sequence[Row]) -> str:
    """Return what the numbers do not say."""
    parts = []
    for network in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == network]
        told = ". ".join(verdict(row) for row in own)
        parts.append(f"{network}: {told}. No tree compares {own[0]['dead']} columns between layers")
    parts.append("What look-ups lose in accuracy is not told here")
    return ". ".join(parts) + "."
