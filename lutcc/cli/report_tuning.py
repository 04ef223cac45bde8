"""Show what tuning found as a page to read: `lutcc report tuning`."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lutcc.cli.console import Console
from lutcc.cli.report_files import writable
from lutcc.errors import InputError, suggest
from lutcc.runtime.files import write_text

if TYPE_CHECKING:
    from rich.table import Table

    from lutcc.report.tuning_data import Target
    from lutcc.tuning.records import Record


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the report reads and writes."""
    parser.add_argument(
        "logs", nargs="*", default=["tuning_logs"], metavar="LOG",
        help="logs, a processor's folder or a folder of those (tuning_logs)",
    )  # fmt: skip
    parser.add_argument("-o", "--output", metavar="HTML", help="the page (tuning-report.html)")
    parser.add_argument("--png", metavar="PNG", help="a summary as one picture as well")
    parser.add_argument(
        "--session", metavar="ID", help="only this session: its id, the start of it, or latest"
    )
    parser.add_argument(
        "--measure", action="store_true",
        help="measure this machine's limits, for the roofline, and keep them beside the logs",
    )  # fmt: skip


def run(args: argparse.Namespace, console: Console) -> int:
    """Write the page, and print its main numbers; under ``--json`` all numbers, no page by itself.

    A page is written under ``--json`` only where ``-o`` names it.
    """
    from lutcc.report.tuning_data import summarise
    from lutcc.report.tuning_json import to_json
    from lutcc.report.tuning_limits import LimitsFinder

    output = args.output or (None if args.json else "tuning-report.html")
    page_path = writable(output, "--output", (".html", ".htm"))
    png_path = writable(args.png, "--png", (".png",))
    records, folders = _read(args.logs, console)
    if args.session:
        records = _of_session(records, args.session)
    finder = LimitsFinder(folders, measure=args.measure, progress=console.progress)
    targets = summarise(records, finder)
    data: dict[str, Any] = {"targets": [to_json(target) for target in targets], "files": []}
    if page_path is not None:
        from lutcc.report.tuning_page import page

        made = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        text = page(targets, sources=[str(log) for log in args.logs], made=made)
        write_text(page_path, text)
        data["files"].append(str(page_path))
    if png_path is not None:
        from lutcc.report.tuning_figures import summary_png

        summary_png(targets, png_path)
        data["files"].append(str(png_path))
    written = [f"Written: {', '.join(data['files'])}"] if data["files"] else []
    console.result(data, *map(_table, targets), *written)
    return 0


def _read(logs: list[str], console: Console) -> tuple[list[Record], list[Path]]:
    """Return the records of all logs, each once, and the folders they lie in."""
    from lutcc.tuning.logfile import LogFile, log_files

    paths: dict[Path, Path] = {}
    for given in logs:
        for path in log_files(given):
            paths.setdefault(path.resolve(), path)
    records: list[Record] = []
    for path in paths.values():
        records += LogFile(path).read(lambda p: console.warning(f"{p}; the line is skipped"))
    return records, list(dict.fromkeys(path.parent for path in paths.values()))


def _of_session(records: list[Record], wanted: str) -> list[Record]:
    """Return the records of the one session whose id starts with ``wanted``, or of the latest."""
    started: dict[str, str] = {}
    for record in records:
        started[record.session] = min(record.time, started.get(record.session, record.time))
    if wanted == "latest" and started:
        found = [max(started, key=lambda session: started[session])]
    else:
        found = [s for s in started if s == wanted] or [s for s in started if s.startswith(wanted)]
    if len(found) != 1:
        problem = f"{len(found)} sessions start with" if found else "there is no session"
        raise InputError(
            f"{problem} {wanted!r}", where="--session", fix=suggest(wanted, found or started)
        )
    return [record for record in records if record.session == found[0]]


def _table(target: Target) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from lutcc.tuning.names import duration, gain

    total = target.total
    title = f"{target.name}: " + (
        f"{total.gain:.2f}× in geometric mean, {total.faster} of {total.kernels} kernels faster"
        if total
        else "no config ran"
    )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("kernel")
    for column in ("default", "tuned", "speed-up", "roofline"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("bound by")
    for column in ("trials", "failed"):
        table.add_column(column, justify="right")
    for kernel in target.kernels:
        speedup = gain(kernel.relative) if kernel.relative else "no config ran"
        table.add_row(
            escape(kernel.name),
            duration(kernel.default_s) if kernel.default_s else "–",
            duration(kernel.best_s) if kernel.tuned and kernel.best_s else "–",
            speedup if kernel.tuned or not kernel.relative else "[dim]default is best[/]",
            "–" if kernel.share is None else f"{kernel.share:.0%}",
            kernel.bound.resource if kernel.bound else "not known",
            str(len(kernel.trials)),
            str(len(kernel.failures)),
        )
    return table
