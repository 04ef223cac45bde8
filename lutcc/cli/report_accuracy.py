"""Show accuracies against times as a page to read: `lutcc report accuracy`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lutcc.cli.console import Console
from lutcc.cli.report_files import log_paths, writable
from lutcc.runtime.files import write_text

if TYPE_CHECKING:
    from rich.table import Table

    from lutcc.report.accuracy_data import Comparison
    from lutcc.report.accuracy_log import AccuracyRun

_NAME = "accuracy-report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the report reads and writes."""
    parser.add_argument(
        "logs", nargs="+", metavar="LOG", help="logs of accuracies, *.jsonl, or folders"
    )
    parser.add_argument(
        "-o", "--output", metavar="HTML",
        help=f"the page ({_NAME}.html), or a folder for page and picture",
    )  # fmt: skip
    parser.add_argument("--png", metavar="PNG", help="the panels as one picture as well")


def run(args: argparse.Namespace, console: Console) -> int:
    """Write the page, and print its tables; under ``--json`` all numbers, no page by itself.

    A page is written under ``--json`` only where ``-o`` names it.
    """
    from lutcc.report.accuracy_data import compare
    from lutcc.report.accuracy_json import to_json

    page_path, png_path = _outputs(args)
    paths = log_paths(args.logs)
    runs, skipped = _read(paths, console)
    comparisons = compare(runs)
    data: dict[str, Any] = {
        "comparisons": [to_json(each) for each in comparisons],
        "skipped": skipped,
        "files": [],
    }
    if page_path is not None:
        from lutcc.report.accuracy_page import page

        made = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        sources = [str(path) for path in paths]
        write_text(page_path, page(comparisons, sources=sources, made=made, skipped=skipped))
        data["files"].append(str(page_path))
    if png_path is not None:
        from lutcc.report.accuracy_figures import summary_png

        summary_png(comparisons, png_path)
        data["files"].append(str(png_path))
    written = [f"Written: {', '.join(data['files'])}"] if data["files"] else []
    console.result(data, *map(table, comparisons), *written)
    return 0


def _outputs(args: argparse.Namespace) -> tuple[Path | None, Path | None]:
    """Return where the page and the picture go."""
    if args.output is not None and Path(args.output).is_dir():
        folder = Path(args.output)
        png = writable(args.png, "--png", (".png",)) or folder / f"{_NAME}.png"
        return folder / f"{_NAME}.html", png
    output = args.output or (None if args.json else f"{_NAME}.html")
    page_path = writable(output, "--output", (".html", ".htm"))
    return page_path, writable(args.png, "--png", (".png",))


def _read(paths: Sequence[Path], console: Console) -> tuple[list[AccuracyRun], int]:
    """Return the runs of all logs, and how many lines are none."""
    from lutcc.report.accuracy_log import read_runs

    runs: list[AccuracyRun] = []
    problems: list[str] = []
    for path in paths:
        runs += read_runs(path, problems.append)
    for problem in problems:
        console.warning(f"{problem}; the line is skipped")
    return runs, len(problems)


def table(comparison: Comparison) -> Table:
    """Return a comparison as a table for the terminal."""
    from rich.markup import escape
    from rich.table import Table

    from lutcc.report.accuracy_data import percent, written
    from lutcc.report.accuracy_page import timing

    metric = comparison.metric + (" in %" if percent(comparison.metric) else "")
    title = f"{comparison.model} on {comparison.task}; {metric}, ± half of the 95 % confidence "
    title += "interval over seeds; * is not beaten"
    made = Table(title=escape(title), title_justify="left", box=None, pad_edge=False)
    made.add_column("method")
    for column in ("seeds", comparison.metric, "of exact"):
        made.add_column(escape(column), justify="right", no_wrap=True)
    for under in comparison.conditions:
        made.add_column(f"µs, {escape(str(under))}", justify="right")
        made.add_column("against exact", justify="right", no_wrap=True)
    for point in comparison.points:
        cells = [escape(point.name), str(point.value.n), written(point.value, comparison.metric)]
        cells.append(written(point.relative, "", part=True))
        for under in comparison.conditions:
            star = "*" if point in comparison.front(under) else " "
            gain = comparison.gain(point, under)
            cells += [timing(point.times.get(under)), f"{gain:.2f}×{star}" if gain else f"–{star}"]
        made.add_row(*cells)
    return made
