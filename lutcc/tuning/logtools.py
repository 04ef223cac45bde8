"""What is done with whole logs: merge, validate, compare, export."""

from __future__ import annotations

import contextlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

from lutcc.errors import LogError
from lutcc.schedules.x86.isa import ISAS
from lutcc.tuning.logfile import LogFile, Problem, best, log_files, path_for
from lutcc.tuning.records import Record
from lutcc.tuning.schema import InvalidRecord, from_line, to_line
from lutcc.tuning.workload import Workload

Report: TypeAlias = Callable[[Problem], None]


@dataclass(frozen=True)
class Merged:
    """What :func:`merge` did: the files it wrote, records in them, how many were new or double."""

    files: tuple[Path, ...]
    records: int
    added: int
    duplicates: int


@dataclass(frozen=True)
class Difference:
    """The best config of one workload in two logs; None where one has none.

    Attributes
    ----------
    isa, workload
        The kernel.
    before, after
        Records of the first and the second log.
    """

    isa: str
    workload: Workload
    before: Record | None
    after: Record | None

    @property
    def changed(self) -> bool:
        """Whether the two do not choose the same config."""
        if self.before is None or self.after is None:
            return True
        return self.before.config_id != self.after.config_id


def read_all(paths: Iterable[str | os.PathLike[str]], report: Report) -> list[Record]:
    """Return the records of logs and folders of logs; lines that are none are reported."""
    return [record for file in _files(paths) for record in LogFile(file).read(report)]


def _files(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return every log that the paths stand for, once."""
    files = {file.resolve(): file for path in paths for file in log_files(path)}
    return list(files.values())


def by_target(records: Iterable[Record]) -> dict[tuple[str, str], list[Record]]:
    """Return the records of each processor and level, sorted by these."""
    groups: defaultdict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.place.cpu, record.place.isa].append(record)
    return dict(sorted(groups.items()))


def merge(
    paths: Iterable[str | os.PathLike[str]], output: str | os.PathLike[str], report: Report
) -> Merged:
    """Put the records of several logs together, in order of time, each once.

    Parameters
    ----------
    paths
        Logs and folders of logs.
    output
        A file ``*.jsonl``, or a folder: then each record goes to ``<cpu>/<level>.jsonl`` in it.
        What is there already stays.
    report
        Called for each line of the inputs that is no record; it is left out.

    Raises
    ------
    LogError
        If an output file has lines that cannot be read: they would be lost.
    """
    output = Path(output)
    single = output.suffix == ".jsonl" and not output.is_dir()
    wanted: defaultdict[Path, list[Record]] = defaultdict(list)
    for file in _files(paths):
        for record in LogFile(file).read(report):
            path = output if single else path_for(output, record.place.cpu, record.place.isa)
            wanted[path] += [] if file.resolve() == path.resolve() else [record]
    if not wanted:
        raise LogError(
            "there is no record to merge",
            where=", ".join(map(str, paths)),
            fix="name logs that 'lutcc tune' has written",
        )
    records = added = duplicates = 0
    for path, new in wanted.items():
        log = LogFile(path)
        with log.lock():  # other sessions may append: they wait
            old = log.read(_refuse_loss)
            lines = {to_line(r): r for r in old}
            held = len(lines)
            lines |= {to_line(r): r for r in new}
            ordered = sorted(lines, key=lambda line: lines[line].time)
            _replace(path, "".join(f"{line}\n" for line in ordered))
        records += len(lines)
        added += len(lines) - held
        duplicates += len(old) + len(new) - len(lines)
    return Merged(tuple(wanted), records, added, duplicates)


def _refuse_loss(problem: Problem) -> None:
    raise LogError(
        f"{problem.message}; merging would lose the line",
        where=f"{problem.path}:{problem.line}",
        fix="merge into a new file: what cannot be read is left out of it",
    )


def _replace(path: Path, text: str) -> None:
    """Write a file as a whole or not at all."""
    draft = path.with_name(f".{path.name}.new")
    try:
        with open(draft, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise LogError(
            f"cannot be written ({error.strerror})",
            where=str(path),
            fix="choose a folder that you may write to, with space left",
        ) from error


def validate(path: str | os.PathLike[str]) -> list[Problem]:
    """Return all that is wrong with a log or a folder of logs; nothing is changed."""
    return [problem for file in log_files(path) for problem in _problems(file)]


def _problems(file: Path) -> Iterator[Problem]:
    lines = file.read_bytes().split(b"\n")
    seen: dict[bytes, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = from_line(line)
        except InvalidRecord as error:
            yield Problem(file, number, str(error))
        except LogError as error:
            yield Problem(file, number, f"{error.what}: {error.fix}")
        else:
            for message in _wrong(json.loads(line), record, file):
                yield Problem(file, number, message)
            if line in seen:
                yield Problem(file, number, f"the same record as line {seen[line]}")
            seen.setdefault(line, number)
    if lines[-1]:
        yield Problem(file, len(lines), "no end of line: being written, or cut short")


def _wrong(data: dict[str, Any], record: Record, file: Path) -> Iterator[str]:
    """Yield what the schema cannot say."""
    ids = {
        "workload_id": (data["workload_id"], record.workload.id),
        "kernel_id": (data["workload"]["kernel_id"], record.workload.kernel_id),
        "config_id": (data["config_id"], record.config_id),
    }
    for name, (written, right) in ids.items():
        if written != right:
            yield f"{name} is {written[:16]}, but by its content {right[:16]}"
    if data["op"] != record.workload.op:
        yield "op and workload.op differ"
    if data["target"]["threads"] != record.workload.threads:
        yield "target.threads and workload.threads differ"
    try:
        datetime.fromisoformat(record.time)
    except ValueError:
        yield f"time {record.time!r} is no date"
    if record.outcome.status == "ok" and record.relative is None:
        yield "status is ok, but there is no relative time"
    if file.stem in ISAS and file.stem != record.place.isa:
        yield f"is of {record.place.isa}, in a log of {file.stem}"
    if file.stem in ISAS and file.parent.resolve().name != record.place.cpu:
        yield f"is of {record.place.cpu}, in the folder {file.parent.resolve().name}"


def diff(before: Sequence[Record], after: Sequence[Record]) -> list[Difference]:
    """Compare the best configs of two logs, level by level.

    Parameters
    ----------
    before, after
        Records of one processor each, perhaps not the same one.

    Raises
    ------
    LogError
        If one holds several processors.
    """
    sides = []
    for records in (before, after):
        targets = by_target(records)
        cpus = sorted({cpu for cpu, _ in targets})
        if len(cpus) > 1:
            raise LogError(
                f"it holds records of {', '.join(cpus)}",
                where="logs diff",
                fix="compare one processor's folder or log with another's",
            )
        sides.append(
            {(isa, k): r for (_, isa), group in targets.items() for k, r in best(group).items()}
        )
    first, second = sides
    return [
        Difference(
            key[0], (first.get(key) or second[key]).workload, first.get(key), second.get(key)
        )
        for key in dict.fromkeys((*first, *second))
    ]


COLUMNS: tuple[str, ...] = (
    "cpu", "isa", "mcpu", "threads", "cache", "rows", "kind", "op", "kernel_id", "workload_id",
    "config_id", "config", "phase", "status", "relative", "ratio", "best_s", "median_s", "p20_s",
    "p80_s", "calls", "spread", "stopped", "build_s", "measure_s", "total_s", "session", "seed",
    "time", "message",
)  # fmt: skip


def table_row(record: Record) -> dict[str, Any]:
    """Return a record as a row of a table with :data:`COLUMNS`; None where there is no value."""
    place, work, outcome, timing = (
        record.place,
        record.workload,
        record.outcome,
        record.outcome.timing,
    )
    seconds = {
        "best_s": timing and timing.best,
        "median_s": timing and timing.median,
        "p20_s": timing and timing.p20,
        "p80_s": timing and timing.p80,
        "calls": timing and timing.calls,
    }
    row = {
        "cpu": place.cpu, "isa": place.isa, "mcpu": place.mcpu, "threads": work.threads,
        "cache": work.cache, "rows": work.rows, "kind": work.kind, "op": work.op,
        "kernel_id": work.kernel_id, "workload_id": work.id, "config_id": record.config_id,
        "config": json.dumps(dict(record.config), separators=(",", ":")), "phase": record.phase,
        "status": outcome.status, "relative": record.relative, "ratio": outcome.ratio, **seconds,
        "spread": outcome.spread, "stopped": outcome.stopped, "build_s": outcome.build_s,
        "measure_s": outcome.measure_s, "total_s": outcome.total_s, "session": record.session,
        "seed": record.seed, "time": record.time, "message": outcome.message,
    }  # fmt: skip
    return {name: row[name] for name in COLUMNS}


def best_configs(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Return the best config of every kernel that beats its default, as plain JSON values."""
    found = []
    for (cpu, isa), group in by_target(records).items():
        for record in best(group).values():
            if record.relative is None or record.relative >= 1.0 or record.phase == "default":
                continue
            work = record.workload
            found.append(
                {
                    "cpu": cpu, "isa": isa, "op": work.op, "kernel_id": work.kernel_id,
                    "rows": work.rows, "threads": work.threads, "cache": work.cache,
                    "relative": record.relative, "config": dict(record.config),
                }
            )  # fmt: skip
    return found
