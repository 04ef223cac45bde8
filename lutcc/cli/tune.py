"""Tune the kernels of a model, or of a list of ops, for a processor; what is found goes to a log.

Each MODEL is an exported torch program (.pt2), an IR module (.ir), an artifact, or a list of ops
(.toml, see docs/tuning.md). Trials are kept in LOG_DIR/<cpu>/<level>.jsonl the moment they are
measured: stop with Ctrl-C whenever you like, and the same command goes on from there. `lutcc
compile --tuning-logs LOG_DIR` uses what was found.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lutcc.cli.arrays import existing_file
from lutcc.cli.console import Console
from lutcc.cli.models import kind_of, read_model
from lutcc.errors import UsageError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what to tune, where, and what it may cost."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help=".pt2, .ir, artifact or .toml")
    parser.add_argument(
        "-t", "--target", default="host", help="host, all, or levels: avx2,avx512 (host)"
    )
    parser.add_argument(
        "--log-dir", default="tuning_logs", metavar="DIR", help="folder of logs (tuning_logs)"
    )
    spend = parser.add_argument_group("what it may cost")
    spend.add_argument("--trials", type=int, metavar="N", help="per kernel, on average (64)")
    spend.add_argument(
        "--effort",
        choices=("none", "quick", "full"),
        help="in place of --trials: 0, 16 or 128 per kernel",
    )
    spend.add_argument("--budget", metavar="TIME", help="no new trial after this: 90s, 10m, 2h")
    how = parser.add_argument_group("how to measure")
    how.add_argument(
        "--rows",
        default="1,64,1024",
        metavar="N,...",
        help="batch sizes for models whose batch is open (1,64,1024)",
    )
    how.add_argument("--threads", type=int, default=1, metavar="N", help="of each kernel (1)")
    how.add_argument(
        "--cache", choices=("hot", "cold"), default="hot", help="caches before each call (hot)"
    )
    how.add_argument(
        "--runner", default="local", metavar="R", help="local or rpc://host:port/key (local)"
    )
    how.add_argument(
        "--search", choices=("metaschedule", "random", "exhaustive"), default="metaschedule"
    )
    resume = parser.add_mutually_exclusive_group()
    resume.add_argument(
        "--resume", action="store_true", default=True, help="go on where the log ends (default)"
    )
    resume.add_argument(
        "--no-resume",
        dest="resume",
        action="store_false",
        help="measure everything again (the log is still only appended to)",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the session and print what it found."""
    if args.trials is not None and args.effort is not None:
        raise UsageError("--trials and --effort exclude each other", fix="give one of them")
    if args.trials is not None and args.trials < 0:
        raise UsageError(f"--trials is {args.trials}", fix="use 0 or more")
    if args.threads < 1:
        raise UsageError(f"--threads is {args.threads}", fix="use 1 or more")
    budget = None if args.budget is None else seconds_of(args.budget)
    rows = rows_of(args.rows)
    paths = [existing_file(model, "MODEL") for model in args.models]
    models: list[Any] = []
    for path in paths:
        with console.working(f"reading {path}"):
            models.extend(_read(path))
    from lutcc.cli.tune_display import Display, summary_data, summary_table
    from lutcc.tuning import tune

    with Display(console, budget) as display:
        summaries = tune(
            models,
            target=args.target,
            log_dir=Path(args.log_dir),
            trials=64 if args.trials is None else args.trials,
            effort=args.effort,
            budget_s=budget,
            seed=args.seed,
            runner=args.runner,
            rows=rows,
            threads=args.threads,
            cache=args.cache,
            resume=args.resume,
            search=args.search,
            on_event=display.on_event,
        )
    data = [summary_data(summary) for summary in summaries]
    console.result(data, *(part for s in summaries for part in summary_table(s)))
    if any(s.interrupted for s in summaries):
        console.error("interrupted: everything measured is in the log; the same command goes on")
        return 130
    return 0


def _read(path: Path) -> list[Any]:
    if path.suffix == ".toml":
        from lutcc.tuning import read_ops

        return list(read_ops(path))
    return [read_model(path, kind_of(path))]


def seconds_of(text: str) -> float:
    """Return the seconds that ``90s``, ``10m``, ``1.5h`` or ``90`` mean.

    Raises
    ------
    UsageError
        For anything else, and for 0.

    Examples
    --------
    >>> seconds_of("10m"), seconds_of("45")
    (600.0, 45.0)
    """
    number, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS else (text, "s")
    try:
        value = float(number) * _UNITS[unit]
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise UsageError(f"{text!r} is no time", where="--budget", fix="write 90s, 10m or 2h")
    return value


def rows_of(text: str) -> tuple[int, ...]:
    """Return the batch sizes that ``1,64,1024`` lists.

    Raises
    ------
    UsageError
        If one is no whole number above 0.
    """
    try:
        rows = tuple(int(part) for part in text.split(","))
    except ValueError:
        rows = (0,)
    if min(rows) < 1:
        raise UsageError(f"{text!r} lists no batch sizes", where="--rows", fix="write 1,64,1024")
    return tuple(dict.fromkeys(rows))
