"""Show training runs as a page to read: `lutcc report training`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lutcc.cli.console import Console
from lutcc.cli.report_files import log_paths, writable
from lutcc.errors import LogError, UsageError
from lutcc.runtime.files import write_text

if TYPE_CHECKING:
    from rich.table import Table

    from lutcc.report.training_data import Task
    from lutcc.train.runlog import RunRecord


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the report reads and writes."""
    parser.add_argument("logs", nargs="+", metavar="LOG", help="logs of runs, *.jsonl, or folders")
    parser.add_argument("-o", "--output", metavar="HTML", help="the page (training-report.html)")
    parser.add_argument("--png", metavar="PNG", help="a summary as one picture as well")
    parser.add_argument(
        "--baseline", default="exact", metavar="METHOD", help="compare the others with it (exact)"
    )
    parser.add_argument(
        "--within", type=float, default=0.5, metavar="POINTS",
        help="what a method may lose to count as equally good (0.5 percentage points)",
    )  # fmt: skip


def run(args: argparse.Namespace, console: Console) -> int:
    """Write the page, and print its table; under ``--json`` all numbers, no page by itself.

    A page is written under ``--json`` only where ``-o`` names it.
    """
    from lutcc.report.training_data import summarise
    from lutcc.report.training_json import to_json

    output = args.output or (None if args.json else "training-report.html")
    page_path = writable(output, "--output", (".html", ".htm"))
    png_path = writable(args.png, "--png", (".png",))
    if not args.within >= 0:
        raise UsageError(f"{args.within} is below 0", where="--within")
    paths = log_paths(args.logs)
    tasks = summarise(_read(paths, console), args.baseline)
    data: dict[str, Any] = {"tasks": [to_json(task) for task in tasks], "files": []}
    if page_path is not None:
        from lutcc.report.training_page import page

        made = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        text = page(tasks, sources=[str(p) for p in paths], made=made, within=args.within)
        write_text(page_path, text)
        data["files"].append(str(page_path))
    if png_path is not None:
        from lutcc.report.training_figures import summary_png

        summary_png(tasks, png_path)
        data["files"].append(str(png_path))
    written = [f"Written: {', '.join(data['files'])}"] if data["files"] else []
    console.result(data, *map(table, tasks), *written)
    return 0


def _read(paths: Sequence[Path], console: Console) -> list[RunRecord]:
    from lutcc.train.runlog import RunLog

    records: list[RunRecord] = []
    origin: dict[str, Path] = {}
    for path in paths:
        for record in RunLog(path).read(lambda p: console.warning(f"{p}; the line is skipped")):
            first = origin.setdefault(record.run, path)
            if first != path:
                raise LogError(
                    f"run {record.run!r} is in {first} too",
                    where=str(path),
                    fix="name only one of the two logs",
                )
            records.append(record)
    return records


def table(task: Task) -> Table:
    """Return a task's numbers as a table for the terminal."""
    from rich.markup import escape
    from rich.table import Table

    from lutcc.report.training_data import points

    exact = task.baseline.name if task.baseline else None
    title = escape(task.name or "training")
    title += "; accuracy in %, ± half of the 95 % confidence interval over seeds"
    made = Table(title=title, title_justify="left", box=None, pad_edge=False)
    made.add_column("method")
    for column in ("seeds", "accuracy", *([f"less {escape(exact)}"] if exact else []), "compute"):
        made.add_column(column, justify="right", no_wrap=True)
    traffic = any(method.traffic is not None for method in task.methods)
    for column in (*(["sent"] if traffic else []), "loss", "seconds"):
        made.add_column(column, justify="right", no_wrap=True)
    for method in task.methods:
        cells = [escape(method.name), str(len(method.runs)), points(method.accuracy)]
        if exact:
            cells.append(points(method.difference, "{:+.2f}".format))
        cells.append("–" if method.compute is None else f"{method.compute:.0%}")
        if traffic:
            cells.append("–" if method.traffic is None else f"{method.traffic:.0%}")
        cells.append("–" if method.loss is None else f"{method.loss.mean:.4f}")
        cells.append("–" if method.seconds is None else f"{method.seconds.mean:.1f}")
        made.add_row(*cells)
    return made
