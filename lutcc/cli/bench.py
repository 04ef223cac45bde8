"""Measure kernels and whole layers against this machine's limits and against torch.

Everything runs on one core, candidates in turns. Sections: limits (register-only loops, memcpy),
kernels (each lutcc kernel and its share of the limit), layers (a whole look-up layer against torch
float32, bf16 and int8; with and without AMX where the CPU has it), ffn (LookupFFN against the dense
feed-forward block that it replaces; Hadamard transforms against memcpy), sampled (products over
part of the column-row pairs, forward and in training, against dense ones), codebook (products with
2-, 3- and 4-bit weights against onnxruntime's and dense ones, hot and cold), dense (exact products
in float32, bfloat16 and int8 against torch's), chains (whole networks of look-ups against bfloat16
and int8). A ratio below 1 is a loss and printed as one.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

from rich.table import Table

from lutcc.bench.options import BenchOptions
from lutcc.cli.arrays import output_file
from lutcc.cli.console import Console
from lutcc.errors import UsageError, suggest
from lutcc.runtime.files import write_text

SECTIONS = ("limits", "kernels", "layers", "ffn", "sampled", "codebook", "dense", "chains")
Section = tuple[Any, list[Table]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what to measure and for how long."""
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)} (all)"
    )
    parser.add_argument("--only", metavar="TEXT", help="kernels whose name contains TEXT")
    parser.add_argument("--quick", action="store_true", help="fewer shapes and turns")
    parser.add_argument("--full", action="store_true", help="ffn: also at batch 32768")
    parser.add_argument(
        "--isa", help="one ISA level (default: all that the CPU has; layers and ffn: the best)"
    )
    parser.add_argument("--core", type=int, help="core to run on (default: the last usable one)")
    parser.add_argument("-o", "--output", metavar="FILE", help="write the JSON there as well")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the chosen sections and print their tables."""
    for name in args.sections:
        if name not in SECTIONS:
            raise UsageError(f"no section {name!r}", where="bench", fix=suggest(name, SECTIONS))
    output = output_file(args.output, folder=False) if args.output else None
    from lutcc.bench.machine import describe, one_line
    from lutcc.bench.timing import pin_to_core
    from lutcc.runtime import cpu, set_num_threads

    if args.isa is not None and args.isa not in cpu.supported_isas():
        fix = f"this CPU has {', '.join(cpu.supported_isas()) or 'none of the levels'}"
        raise UsageError(f"ISA level {args.isa!r} does not run here", where="--isa", fix=fix)
    usable = os.sched_getaffinity(0)
    core = pin_to_core(args.core)
    cores = (core, *sorted(usable - {core}))
    set_num_threads(1)
    brief = {"seconds": 0.01, "rounds": 5} if args.quick else {}
    options = BenchOptions(
        quick=args.quick,
        full=args.full,
        isa=args.isa,
        seed=args.seed,
        core=core,
        cores=cores,
        **brief,
    )
    machine = describe(core)
    data: dict[str, Any] = {"machine": machine, "sections": {}}
    shown: list[Any] = [one_line(machine)]
    for section in [name for name in SECTIONS if name in args.sections or not args.sections]:
        rows, tables = _SECTIONS[section](options, args.only, console)
        data["sections"][section] = rows
        shown += tables
    if output is not None:
        write_text(output, json.dumps(data, indent=2) + "\n")
    console.result(data, *shown)
    return 0


def _layers(options: BenchOptions, only: str | None, console: Console) -> Section:
    from lutcc.bench.layers import bench_layers

    with console.working("whole layers against torch"):
        rows = bench_layers(options, lambda r: console.detail(f"N={r['N']} {r['D']}x{r['M']} done"))
    return rows, [layers_table(rows)]


def _ffn(options: BenchOptions, only: str | None, console: Console) -> Section:
    from lutcc.bench.ffn import bench_ffn
    from lutcc.bench.ffn_report import ffn_table
    from lutcc.bench.kernels import bench_hadamard

    with console.working("feed-forward blocks against torch"):
        rows = bench_ffn(options, lambda r: console.detail(f"d={r['d']} batch {r['batch']} done"))
        transforms = bench_hadamard(options)
    return {"blocks": rows, "hadamard": transforms}, [ffn_table(rows), kernels_table(transforms)]


def _sampled(options: BenchOptions, only: str | None, console: Console) -> Section:
    from lutcc.bench.sampled import bench_sampled
    from lutcc.bench.sampled_report import sampled_tables

    with console.working("sampled products against dense ones"):
        rows = bench_sampled(
            options, lambda r: console.detail(f"{r['N']}, {r['K']}, {r['M']} done")
        )
    return rows, sampled_tables(rows)


def _codebook(options: BenchOptions, only: str | None, console: Console) -> Section:
    from lutcc.bench.codebook import bench_codebook
    from lutcc.bench.codebook_report import codebook_tables

    with console.working("products with codebook weights against others"):
        rows = bench_codebook(
            options, lambda r: console.detail(f"{r['N']} x {r['K']} x {r['M']} done")
        )
    return rows, codebook_tables(rows)


def _dense(options: BenchOptions, only: str | None, console: Console) -> Section:
    from lutcc.bench.dense import bench_dense
    from lutcc.bench.dense_report import dense_table

    with console.working("dense products against torch"):
        rows = bench_dense(
            options, lambda r: console.detail(f"{r['N']} x {r['K']} x {r['M']} done")
        )
    return rows, [dense_table(rows)]


def _chains(options: BenchOptions, only: str | None, console: Console) -> Section:
    from lutcc.bench.chains import bench_chains
    from lutcc.bench.chains_report import chains_table

    with console.working("whole networks of look-ups against others"):
        rows = bench_chains(options, lambda r: console.detail(f"N={r['N']} done"))
    return rows, [chains_table(rows)]


def layers_table(rows: list[dict[str, Any]]) -> Table:
    """Return a table with a block for each layer and batch: every candidate, and who is faster."""
    from lutcc.report.tables import number, pretty

    amx = any(label.endswith("/amx") for label in rows[0]["times"])
    table = Table(
        title="layers: microseconds per call; float32 row-major in and out", title_justify="left"
    )
    table.add_column("N x D x M, codebooks", no_wrap=True)
    table.add_column("candidate", no_wrap=True)
    for column in ("best", "median", "of lutcc's best"):
        table.add_column(column, justify="right")
    for row in rows:
        own = row["times"]["lutcc"]["best"]
        kept = (row["fastest"], row["fastest_without_amx"])
        for label, timing in row["times"].items():
            first = label == "lutcc"
            name = f"lutcc ({row['isa']})" if first else pretty(label, amx_cpu=amx)
            ratio = "" if first else f"{timing['best'] / own:.2f}x"
            cells = [number(timing["best"] * 1e6), number(timing["median"] * 1e6), ratio]
            style = "bold" if first or label in kept else ""
            workload = f"{row['N']} x {row['D']} x {row['M']}, {row['C']}" if first else ""
            table.add_row(workload, name, *cells, style=style)
        table.add_row("", verdict_text(row["speedup"], row["fastest"], amx), "", "", "")
        if amx:
            text = verdict_text(row["speedup_without_amx"], row["fastest_without_amx"], amx)
            table.add_row("", f"without AMX: {text}", "", "", "")
        table.add_section()
    return table


def verdict_text(speedup: float, fastest: str, amx: bool) -> str:
    """Say who is faster and by how much, be it the look-ups or the dense layer."""
    from lutcc.report.tables import pretty

    name = pretty(fastest, amx_cpu=amx)
    if speedup >= 1:
        return f"look-ups are {speedup:.2f}x faster than {name}"
    return f"dense {name} is {1 / speedup:.2f}x faster"


def _limits(options: BenchOptions, only: str | None, console: Console) -> Section:
    from lutcc.bench.sections import limit_rows

    with console.working("limits of this machine"):
        rows = limit_rows(options)
    table = Table(title="limits: best of repeated runs, one core", title_justify="left")
    for column in ("limit", "level", "rate", ""):
        table.add_column(column, justify="right" if column == "rate" else "left")
    for row in rows:
        table.add_row(row["limit"], row["isa"] or "", f"{row['rate']:.1f}", row["unit"])
    return rows, [table]


def _kernels(options: BenchOptions, only: str | None, console: Console) -> Section:
    from lutcc.bench.sections import kernel_rows

    rows = kernel_rows(options, only, console.progress)
    return rows, [kernels_table(rows)]


def kernels_table(rows: list[dict[str, Any]]) -> Table:
    """Return a table with a line for each kernel and workload, and its share of the limit."""
    table = Table(
        title="kernels: best (median) microseconds, rate, and share of the limit that bounds it",
        title_justify="left",
    )
    for column in ("kernel", "workload", "level"):
        table.add_column(column, no_wrap=column != "workload")
    for column in ("us", "rate", "limit", "share"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("limited by")
    for row in rows:
        cells = [row["kernel"], row["workload"], row["isa"]]
        cells.append(f"{row['best'] * 1e6:.1f} ({row['median'] * 1e6:.1f})")
        cells.append(f"{row['rate']:.1f} {row['unit']}")
        if row["limit"] is None:
            cells += ["", "", "not measured"]
        else:
            cells += [f"{row['limit']:.1f}", f"{row['share']:.2f}", row["limit_name"]]
        table.add_row(*cells)
    return table


_SECTIONS: dict[str, Callable[[BenchOptions, str | None, Console], Section]] = {
    "limits": _limits,
    "kernels": _kernels,
    "layers": _layers,
    "ffn": _ffn,
    "sampled": _sampled,
    "codebook": _codebook,
    "dense": _dense,
    "chains": _chains,
}
