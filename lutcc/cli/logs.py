"""Merge, check, compare and export tuning logs, and show what they found best.

A PATH is a log (tuning_logs/<cpu>/<level>.jsonl), a processor's folder, or a folder of those.

  lutcc logs best tuning_logs              the best config of every kernel
  lutcc logs validate tuning_logs          all that is wrong, with line numbers
  lutcc logs diff old/znver5 new/znver5    which kernels changed, and by how much
  lutcc logs merge a b -o tuning_logs      each record once, in order of time
  lutcc logs export tuning_logs --format csv -o trials.csv
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from lutcc.cli.arrays import output_file
from lutcc.cli.console import Console
from lutcc.cli.options import shared_options
from lutcc.runtime.files import write_text

if TYPE_CHECKING:
    from lutcc.tuning.logfile import Problem
    from lutcc.tuning.logtools import Difference
    from lutcc.tuning.records import Record

_LOGS = "tuning_logs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, text: str) -> argparse.ArgumentParser:
        return actions.add_parser(
            name, parents=[shared_options(nested=True)], help=text, description=text
        )

    best = action("best", "Show the best config of every kernel.")
    best.add_argument("paths", nargs="*", metavar="PATH", help=f"({_LOGS})")
    best.add_argument("--all", action="store_true", help="also kernels whose default is the best")
    check = action("validate", "Report all that is wrong with logs; exit code 1 if anything is.")
    check.add_argument("paths", nargs="*", metavar="PATH", help=f"({_LOGS})")
    diff = action("diff", "Compare the best configs of two logs.")
    diff.add_argument("before", metavar="A", help="log or folder of one processor")
    diff.add_argument("after", metavar="B", help="the same, or of another processor")
    diff.add_argument("--all", action="store_true", help="also kernels with the same best config")
    merge = action("merge", "Put logs together: each record once, in order of time.")
    merge.add_argument("paths", nargs="+", metavar="PATH")
    merge.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="a folder of logs, or a file *.jsonl"
    )
    export = action("export", "Write every record as CSV, or the best configs as one JSON file.")
    export.add_argument("paths", nargs="*", metavar="PATH", help=f"({_LOGS})")
    export.add_argument("--format", choices=("csv", "best"), default="csv", help="(csv)")
    export.add_argument("-o", "--output", metavar="FILE", help="(standard output)")


def run(args: argparse.Namespace, console: Console) -> int:
    """Do what the sub-command says."""
    actions = {"best": _best, "validate": _validate, "diff": _diff, "merge": _merge}
    return (actions | {"export": _export})[args.action](args, console)


def _paths(args: argparse.Namespace) -> list[str]:
    return args.paths or [_LOGS]


class _Reporter:
    """Warns of lines that are no records, and counts them."""

    def __init__(self, console: Console) -> None:
        self.console, self.count = console, 0

    def __call__(self, problem: Problem) -> None:
        self.count += 1
        self.console.warning(f"{problem}; the line is skipped")


# -- best ----------------------------------------------------------------------------------------


def _best(args: argparse.Namespace, console: Console) -> int:
    from lutcc.tuning.logfile import best
    from lutcc.tuning.logtools import by_target, read_all

    records = read_all(_paths(args), _Reporter(console))
    data, shown = [], []
    for (cpu, isa), group in by_target(records).items():
        found = list(best(group).values())
        better = [r for r in found if _gained(r)]
        listed = found if args.all else better
        data.append({"cpu": cpu, "isa": isa, "records": len(group), "kernels": _facts(found)})
        summary = f"{cpu} {isa}: {len(group):,} records, {_count(found, 'kernel')}"
        shown.append(f"{summary}, {len(better)} faster than their default")
        if listed:
            shown.append(_best_table(sorted(listed, key=_order), group))
    console.result(data, *(shown or ["no records"]))
    return 0


def _best_table(records: Sequence[Record], group: Sequence[Record]) -> Table:
    from lutcc.tuning.names import duration, gain, short_name

    table = _table("kernel", "rows", "time", "gain", "measured", "what differs from the default")
    for record in records:
        work, timing = record.workload, record.outcome.timing
        better = _gained(record)
        table.add_row(
            Text(short_name(work)),
            _rows(record),
            duration(timing.median) if timing else "",
            gain(record.relative or 1.0) if better else "",
            "at the end" if record.phase == "final" else "in the search",
            Text(_changes(record, group) if better else "default is best"),
        )
    return table


def _changes(record: Record, group: Sequence[Record]) -> str:
    """Return ``knob old→new`` of all that a config changes of its session's default."""
    from lutcc.tuning.names import changed_knobs

    defaults = [
        r.config
        for r in group
        if r.phase == "default"
        and r.workload.id == record.workload.id
        and r.session == record.session
    ]
    if not defaults:
        return " ".join(f"{k}={v}" for k, v in record.config.items())
    return _changed(changed_knobs(defaults[-1], record.config))


def _changed(knobs: Sequence[tuple[str, str, str]]) -> str:
    return ", ".join(f"{name} {old}→{new}" for name, old, new in knobs) or "nothing"


def _gained(record: Record | None) -> bool:
    return record is not None and record.relative is not None and record.relative < 1.0


def _facts(records: Sequence[Record]) -> list[dict[str, Any]]:
    from lutcc.tuning.names import short_name

    return [
        {
            "kernel": short_name(r.workload),
            "op": r.workload.op,
            "kernel_id": r.workload.kernel_id,
            "workload_id": r.workload.id,
            "rows": r.workload.rows,
            "threads": r.workload.threads,
            "cache": r.workload.cache,
            "config": dict(r.config),
            "config_id": r.config_id,
            "phase": r.phase,
            "relative": r.relative,
            "median_s": r.outcome.timing.median if r.outcome.timing else None,
            "session": r.session,
            "time": r.time,
        }
        for r in records
    ]


# -- validate ------------------------------------------------------------------------------------


def _validate(args: argparse.Namespace, console: Console) -> int:
    from lutcc.tuning.logfile import LogFile, log_files
    from lutcc.tuning.logtools import validate

    files = list(dict.fromkeys(file for path in _paths(args) for file in log_files(path)))
    data, shown = [], []
    for file in files:
        problems = validate(file)
        records = len(_readable(LogFile(file)))
        data.append(
            {
                "file": str(file),
                "records": records,
                "problems": [{"line": p.line, "message": p.message} for p in problems],
            }
        )
        verdict = _count(problems, "problem") if problems else "all well"
        shown.append(f"{file}: {records:,} records, {verdict}")
        if problems:
            table = _table("line", "what is wrong")
            for problem in problems:
                table.add_row(str(problem.line), Text(problem.message))
            shown.append(table)
    bad = any(entry["problems"] for entry in data)
    if bad:
        shown.append(
            "Lines that are no records are skipped by every reader; "
            "'lutcc logs merge PATH -o NEW' writes a log without them."
        )
    console.result(data, *(shown or ["no logs"]))
    return 1 if bad else 0


def _readable(log: Any) -> list[Record]:
    from lutcc.errors import LogError

    try:
        return log.read(lambda problem: None)
    except LogError:  # of another version: reported as a problem
        return []


# -- diff ----------------------------------------------------------------------------------------


def _diff(args: argparse.Namespace, console: Console) -> int:
    from lutcc.tuning.logtools import diff, read_all

    report = _Reporter(console)
    sides = [read_all([path], report) for path in (args.before, args.after)]
    found = diff(*sides)
    changed = [d for d in found if d.changed]
    data = [
        {"isa": d.isa, "changed": d.changed, "before": _side(d.before), "after": _side(d.after)}
        for d in found
    ]
    shown: list[Any] = [f"{_count(found, 'kernel')}, {len(changed)} with another best config"]
    listed = found if args.all else changed
    if listed:
        shown.append(_diff_table(sorted(listed, key=lambda d: (d.isa, *_order(d)))))
    console.result(data, *shown)
    return 0


def _side(record: Record | None) -> dict[str, Any] | None:
    return None if record is None else {"cpu": record.place.cpu, **_facts([record])[0]}


def _diff_table(differences: Sequence[Difference]) -> Table:
    from lutcc.tuning.names import changed_knobs, short_name

    table = _table("level", "kernel", "rows", "gain in A", "gain in B", "from A to B")
    for d in differences:
        if d.before is None:
            what = "only in B"
        elif d.after is None:
            what = "only in A"
        else:
            what = _changed(changed_knobs(d.before.config, d.after.config)) if d.changed else "same"
        table.add_row(
            d.isa,
            Text(short_name(d.workload)),
            _rows(d),
            _gain(d.before),
            _gain(d.after),
            Text(what),
        )
    return table


def _gain(record: Record | None) -> str:
    from lutcc.tuning.names import gain

    if record is None:
        return "none"
    return gain(record.relative or 1.0) if _gained(record) else "default"


# -- merge, export -------------------------------------------------------------------------------


def _merge(args: argparse.Namespace, console: Console) -> int:
    from lutcc.tuning.logtools import merge

    report = _Reporter(console)
    done = merge(args.paths, args.output, report)
    data = {
        "files": [str(path) for path in done.files],
        "records": done.records,
        "added": done.added,
        "duplicates": done.duplicates,
        "skipped": report.count,
    }
    left_out = f"{_count(range(done.duplicates), 'duplicate')} dropped"
    if report.count:
        left_out += f", {_count(range(report.count), 'unreadable line')} left out"
    console.result(
        data,
        f"{done.records:,} records, {done.added:,} of them new; {left_out}",
        *(f"  {file}" for file in data["files"]),
    )
    return 0


def _export(args: argparse.Namespace, console: Console) -> int:
    from lutcc.tuning.logtools import COLUMNS, best_configs, read_all, table_row

    records = read_all(_paths(args), _Reporter(console))
    path = output_file(args.output, folder=False) if args.output else None
    if args.format == "best":
        data: list[dict[str, Any]] = best_configs(records)
        lines = ",\n ".join(json.dumps(entry) for entry in data)
        text = f"[{lines}]\n"
    else:
        data = [table_row(record) for record in records]
        table = io.StringIO()
        writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(data)
        text = table.getvalue()
    if path is None:
        console.document(data, text)
        return 0
    write_text(path, text)
    what = "config" if args.format == "best" else "record"
    console.result({"output": str(path), "count": len(data)}, f"{path}: {_count(data, what)}")
    return 0


# -- for all -------------------------------------------------------------------------------------


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        right = column in ("rows", "time", "gain", "line", "gain in A", "gain in B")
        wrap = column.startswith(("what", "from"))
        table.add_column(column, justify="right" if right else "left", no_wrap=not wrap)
    return table


def _order(item: Record | Difference) -> tuple[str, str, int]:
    work = item.workload
    return work.op, work.kernel_id, work.rows


def _rows(item: Record | Difference) -> str:
    from lutcc.tuning.names import rows_of

    work = item.workload
    notes = [f"{work.threads} threads"] if work.threads > 1 else []
    notes += ["cold"] if work.cache == "cold" else []
    return " ".join([f"{rows_of(work):,}", *notes])


def _count(items: Sequence[Any], what: str) -> str:
    return f"{len(items):,} {what}{'' if len(items) == 1 else 's'}"
