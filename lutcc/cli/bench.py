"""Measure kernels and whole layers against this machine's limits and against torch.

Everything runs on one core, candidates in turns. Sections: limits (register-only loops, memcpy),
kernels (each lutcc kernel and its share of the limit), layers (a whole look-up layer against torch
float32, bf16 and int8; with and without AMX where the CPU has it). A ratio below 1 is a loss and
printed as one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.table import Table

from lutcc.cli.console import Console
from lutcc.errors import UsageError, suggest

SECTIONS = ("limits", "kernels", "layers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what to measure and for how long."""
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)} (all)"
    )
    parser.add_argument("--only", metavar="TEXT", help="kernels whose name contains TEXT")
    parser.add_argument("--quick", action="store_true", help="fewer shapes and turns")
    parser.add_argument(
        "--isa", help="one ISA level (default: all that the CPU has; layers: the best)"
    )
    parser.add_argument("--core", type=int, help="core to run on (default: the last usable one)")
    parser.add_argument("-o", "--output", metavar="FILE", help="write the JSON there as well")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the chosen sections and print their tables."""
    for name in args.sections:
        if name not in SECTIONS:
            raise UsageError(f"no section {name!r}", where="bench", fix=suggest(name, SECTIONS))
    from lutcc.bench.machine import describe, one_line
    from lutcc.bench.options import BenchOptions
    from lutcc.bench.timing import pin_to_core
    from lutcc.runtime import cpu

    if args.isa is not None and args.isa not in cpu.supported_isas():
        fix = f"this CPU has {', '.join(cpu.supported_isas()) or 'none of the levels'}"
        raise UsageError(f"ISA level {args.isa!r} does not run here", where="--isa", fix=fix)
    core = pin_to_core(args.core)
    brief = {"seconds": 0.01, "rounds": 5} if args.quick else {}
    options = BenchOptions(quick=args.quick, isa=args.isa, seed=args.seed, core=core, **brief)
    machine = describe(core)
    data: dict[str, Any] = {"machine": machine, "sections": {}}
    shown: list[Any] = [one_line(machine)]
    for section in [name for name in SECTIONS if name in args.sections or not args.sections]:
        rows, tables = _SECTIONS[section](options, args.only, console)
        data["sections"][section] = rows
        shown += tables
    if args.output:
        Path(args.output).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    console.result(data, *shown)
    return 0


def _layers(
    options, only: str | None, console: Console
) -> tuple[list[dict[str, Any]], list[Table]]:
    from lutcc.bench.layers import bench_layers

    with console.working("whole layers against torch"):
        rows = bench_layers(options, lambda r: console.detail(f"N={r['N']} {r['D']}x{r['M']} done"))
    return rows, [layers_table(rows)]


def layers_table(rows: list[dict[str, Any]]) -> Table:
    """Return a table of layer times in microseconds, best of all calls (median in brackets)."""
    labels = [label for label in rows[0]["times"] if label != "lutcc"]
    amx = any(label.endswith("/amx") for label in labels)
    table = Table(
        title="layers: best (median) microseconds, float32 in and out", title_justify="left"
    )
    table.add_column("N x D x M, C")
    table.add_column("lutcc", justify="right")
    for label in labels:
        table.add_column(label.replace("_", " ").replace("/", " "), justify="right")
    table.add_column("against the fastest dense")
    if amx:
        table.add_column("without AMX")
    for row in rows:
        cells = [f"{row['N']} x {row['D']} x {row['M']}, {row['C']}"]
        for label in ["lutcc", *labels]:
            timing = row["times"][label]
            cells.append(f"{timing['best'] * 1e6:.1f} ({timing['median'] * 1e6:.1f})")
        cells.append(verdict_text(row["speedup"], row["fastest"]))
        if amx:
            cells.append(verdict_text(row["speedup_without_amx"], row["fastest_without_amx"]))
        table.add_row(*cells)
    return table


def verdict_text(speedup: float, fastest: str) -> str:
    """Say who is faster and by how much, be it the look-ups or the dense layer."""
    name = fastest.replace("_", " ").replace("/", " ")
    if speedup >= 1:
        return f"look-ups {speedup:.2f}x faster than {name}"
    return f"dense {name} is {1 / speedup:.2f}x faster"


_SECTIONS = {"layers": _layers}
