"""Call an artifact from several threads for a while and check every result.

Inputs are given as for `lutcc run` (with an open batch, they are also called row by row and with
their rows rolled), or drawn at random: floats are normal, integers and booleans 0 or 1. Each result
is compared, bit by bit, with the one of a first, sequential call. The exit code is 1 if a call
fails, a result differs, or memory grows by more than --max-growth after warm-up. Ctrl-C ends the
check early and reports what was found (exit code 130 if that is nothing).
"""

from __future__ import annotations

import argparse
import json
import math
from typing import TYPE_CHECKING, Any

from lutcc.cli.archives import read_inputs
from lutcc.cli.arrays import output_file
from lutcc.cli.console import Console
from lutcc.cli.run import artifact_file
from lutcc.cli.tune import rows_of
from lutcc.errors import UsageError
from lutcc.runtime.files import write_text

if TYPE_CHECKING:
    from rich.table import Table

    from lutcc.runtime.soak import Progress, Soak

ROWS = (1, 2, 7, 32)
MAX_CALLERS = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the artifact, its inputs, how long and how hard."""
    parser.add_argument("artifact", metavar="ARTIFACT")
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="as for run (random ones)")
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help="how long (60)")
    parser.add_argument("--callers", type=int, metavar="N", help="threads that call (usable cores)")
    parser.add_argument(
        "--threads", type=int, metavar="T", help="threads of each call (all usable cores)"
    )
    parser.add_argument(
        "--rows",
        metavar="N,...",
        help=f"batch sizes of random inputs ({','.join(map(str, ROWS))})",
    )
    parser.add_argument(
        "--max-growth",
        type=float,
        metavar="MIB",
        help="by how much memory may grow (16, or 5 %% of what it is after warm-up)",
    )
    parser.add_argument("--isa", help="take this variant instead of the best one for this CPU")
    parser.add_argument("-o", "--output", metavar="REPORT.json", help="write the JSON there too")


def run(args: argparse.Namespace, console: Console) -> int:
    """Load, call, report."""
    artifact_file(args.artifact)
    _check_numbers(args)
    output = output_file(args.output, folder=False) if args.output else None
    rows = ROWS if args.rows is None else rows_of(args.rows)
    from lutcc.runtime import cpu, load
    from lutcc.runtime.signature import bounds_from
    from lutcc.runtime.soak import soak
    from lutcc.runtime.soak_cases import given_inputs, make_cases, random_inputs

    artifact = load(args.artifact, isa=args.isa)
    if args.threads is not None:
        artifact.num_threads = args.threads
    if args.inputs:
        named = given_inputs(artifact.inputs, read_inputs(args.inputs, artifact.inputs))
    else:
        bounds = bounds_from(artifact.extra)
        named = random_inputs(artifact.inputs, rows, args.seed, bounds)
    with console.working("calling once with each input"):
        cases, longest = make_cases(artifact, named)
    callers = cpu.allowed_cpus() if args.callers is None else args.callers
    console.progress(
        f"calling from {callers} threads for {args.seconds:g} s; Ctrl-C ends it and reports"
    )

    def progress(state: Progress) -> None:
        console.progress(
            f"{state.seconds:.0f} of {args.seconds:g} s: {state.calls:,} calls, {state.errors} "
            f"errors, {state.wrong} wrong results, {state.resident / 2**20:.1f} MiB"
        )

    found = soak(
        artifact,
        cases,
        callers=callers,
        seconds=args.seconds,
        max_growth=None if args.max_growth is None else int(args.max_growth * 2**20),
        grace=max(30.0, 20 * longest * callers),
        on_progress=progress,
    )
    data = {
        "artifact": args.artifact,
        "kind": artifact.kind,
        "isa": artifact.isa,
        "threads": artifact.num_threads,
        "inputs": args.inputs or "random",
        **found.to_dict(),
    }
    if output is not None:
        text = json.dumps(data, indent=2, allow_nan=False) + "\n"
        write_text(output, text)
    console.result(
        data,
        f"variant {artifact.isa}, {artifact.num_threads} threads a call, {callers} callers",
        times_table(found),
        *summary(found),
    )
    if found.problems:
        return 1
    return 130 if found.interrupted else 0


def _check_numbers(args: argparse.Namespace) -> None:
    if not (math.isfinite(args.seconds) and args.seconds > 0):
        raise UsageError(f"{args.seconds:g} s is no time", where="--seconds", fix="more than 0")
    if args.callers is not None and not 1 <= args.callers <= MAX_CALLERS:
        raise UsageError(
            f"{args.callers} threads cannot call", where="--callers", fix=f"use 1 to {MAX_CALLERS}"
        )
    if args.max_growth is not None and not (args.max_growth >= 0 and args.max_growth < 2**40):
        raise UsageError(
            f"{args.max_growth:g} MiB is no bound", where="--max-growth", fix="use 0 or more"
        )
    if args.inputs and args.rows is not None:
        raise UsageError(
            "batch sizes are for random inputs, but inputs are given",
            where="--rows",
            fix="leave one of them out",
        )


def times_table(found: Soak) -> Table:
    """Return the latencies of each case, and of all, in microseconds."""
    from rich.table import Table

    from lutcc.report.tables import number

    table = Table(title="latency in microseconds, checks not counted", title_justify="left")
    table.add_column("inputs")
    for name in ("timed calls", "p50", "p90", "p99", "max"):
        table.add_column(name, justify="right", no_wrap=True)
    for index, times in enumerate(found.times):
        values: list[Any] = [times.p50, times.p90, times.p99, times.max]
        cells = ["-" if value is None else number(value * 1e6) for value in values]
        last = index == len(found.times) - 2
        table.add_row(times.name, f"{times.calls:,}", *cells, end_section=last)
    return table


def summary(found: Soak) -> list[str]:
    """Return the rest of the report in lines; the last one is the verdict."""
    lines = [
        f"{found.calls:,} calls in {found.seconds:.1f} s: {found.calls / found.seconds:,.1f} a "
        f"second, checks included; {found.errors.count} errors, {found.wrong.count} wrong results"
    ]
    for failures in (found.errors, found.wrong):
        lines += [f"  {count:,} times: {text}" for text, count in failures.first.items()]
    memory = found.memory
    if memory is None:
        lines.append("memory: too short to tell")
    else:
        lines.append(
            f"memory: {memory.start / 2**20:.1f} MiB after warm-up, {memory.end / 2**20:.1f} at "
            f"the end; {memory.bytes_per_minute / 2**20:+.2f} MiB a minute, bound "
            f"{memory.bound / 2**20:.1f} MiB in all"
        )
    early = " (interrupted)" if found.interrupted else ""
    return [*lines, f"{'FAILED: ' + '; '.join(found.problems) if found.problems else 'ok'}{early}"]
