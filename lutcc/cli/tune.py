"""Tune the kernels of a model, or of a list of ops, for a processor; what is found goes to a log.

Each MODEL is what `lutcc compile` takes: an exported torch program (.pt2), an IR module (.ir), an
artifact, a folder in Hugging Face's layout or package.module:factory; or it is a list of ops
(.toml, see docs/tuning.md). Kernels of an open batch are tuned at --rows, of an open length at each
of these with each of --length. Trials are kept in LOG_DIR/<cpu>/<level>.jsonl the moment they are
measured: stop with Ctrl-C whenever you like, and the same command goes on from there. `lutcc
compile --tuning-logs LOG_DIR` uses what was found.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lutcc.cli.arrays import existing_file
from lutcc.cli.compile_source import DEFAULT_LENGTH
from lutcc.cli.console import Console
from lutcc.cli.models import is_factory, kind_of
from lutcc.cli.source_options import add_source_options, import_source, lengths_of
from lutcc.errors import UsageError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what to tune, where, and what it may cost."""
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="what lutcc compile takes, or .toml"
    )
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
    add_source_options(
        parser,
        lengths_of,
        f"tokens of a row of a Hugging Face folder's model, one or several: 16,128 "
        f"({DEFAULT_LENGTH}); tokens=16,128 leaves the length open, as compile --length tokens "
        "does, and tunes at these; of a .pt2, what open sizes other than the batch are",
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
    opened, lengths = args.length or (None, ())
    models = [model for name in args.models for model in _read(name, args, console)]
    if not opened and any(map(_is_folder, args.models)):
        lengths = ()  # it is traced at each
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
            lengths=lengths or None,
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


def _read(name: str, args: argparse.Namespace, console: Console) -> list[Any]:
    """Return the models that a MODEL stands for: one, a list of ops, or one for each length."""
    path = Path(name)
    if path.suffix == ".toml":
        from lutcc.tuning import read_ops

        return list(read_ops(existing_file(name, "MODEL")))
    opened, lengths = args.length or (None, ())
    folder = _is_folder(name)
    traced: tuple[Any, ...] = (None,)
    if folder:
        traced = (opened,) if opened else lengths or (None,)
    elif opened:
        raise UsageError(
            f"{opened!r} would name a size of a Hugging Face folder's model",
            where="--length",
            fix="write numbers only: open sizes of other models have names",
        )
    chosen = {**vars(args), "model": name}
    if not is_factory(name):
        existing_file(name, "MODEL")
    elif lengths:
        raise UsageError(
            "a length is for Hugging Face folders, and for programs that leave one open",
            where="--length",
            fix="leave it out: the shapes of --calibration say it",
        )
    return [
        import_source(argparse.Namespace(**{**chosen, "length": length}), console)
        for length in traced
    ]


def _is_folder(name: str) -> bool:
    """Tell whether a MODEL is a Hugging Face folder."""
    return not is_factory(name) and Path(name).is_dir() and kind_of(Path(name)) == "hf"


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
