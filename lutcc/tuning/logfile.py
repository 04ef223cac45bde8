"""Tuning logs on disk: JSON lines that are appended to and never rewritten.

A record is one write of one line, under a lock and flushed to disk, so that a writer that is killed
loses at most the record it was writing, and writers do not disturb each other or any reader.
"""

from __future__ import annotations

import os
import statistics
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

from lutcc.errors import LogError
from lutcc.runtime.appending import append_line, lock_of
from lutcc.schedules.x86.isa import ISAS, isa_by_name
from lutcc.tuning.records import Record
from lutcc.tuning.schema import InvalidRecord, from_line, to_line

#: A config is taken in place of the default if its relative time is below this.
WORTHWHILE = 0.99


@dataclass(frozen=True)
class Problem:
    """A line of a log that is wrong: its number, from 1, and why."""

    path: Path
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


def _warn(problem: Problem) -> None:
    warnings.warn(f"{problem}; the line is skipped", stacklevel=3)


class LogFile:
    """A log that several processes may append to and read at the same time.

    Parameters
    ----------
    path
        The file; it and its folder are made by the first :meth:`append`.

    Examples
    --------
    >>> log = LogFile(path_for("tuning_logs", "znver5", "avx512"))  # doctest: +SKIP
    >>> log.append(record)                                          # doctest: +SKIP
    >>> records = log.read()                                        # doctest: +SKIP
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._forget(None)

    def _forget(self, inode: int | None) -> None:
        self._inode = inode
        self._offset = self._lines = 0
        self._records: list[Record] = []

    # -- writing -----------------------------------------------------------------------------

    def lock(self) -> FileLock:
        """Return the lock that every writer holds while it writes.

        Raises
        ------
        LogError
            If the folder cannot be made.
        """
        return lock_of(self.path)

    def append(self, record: Record) -> None:
        """Add a record; when this returns, it is on the disk.

        A last line that a killed writer left unfinished is ended, not removed.

        Raises
        ------
        LogError
            For a record that breaks the schema, or a file that cannot be written.
        """
        append_line(self.path, to_line(record))

    # -- reading -----------------------------------------------------------------------------

    def read(self, on_problem: Callable[[Problem], None] = _warn) -> list[Record]:
        """Return the records in the order they were written; a missing file has none.

        Reading again parses only what has been appended since.

        Parameters
        ----------
        on_problem
            Called once for each line that is no record, such as one cut short by a kill; it is
            skipped. By default a warning is given.

        Raises
        ------
        LogError
            If the file cannot be read, or has records of another schema version.
        """
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._forget(status.st_ino)
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            self._forget(None)
            return []
        except OSError as error:
            raise LogError(
                f"cannot be read ({error.strerror})", where=str(self.path), fix="name a log file"
            ) from error
        *lines, tail = data.split(b"\n")
        for line in lines:
            self._lines += 1
            self._offset += len(line) + 1
            record = self._parsed(line, self._lines, on_problem)
            self._records += [record] if record else []
        # Being written, or cut short: looked at again by the next reading.
        last = self._parsed(tail, self._lines + 1, on_problem) if tail else None
        return [*self._records, *([last] if last else [])]

    def _parsed(
        self, line: bytes, number: int, on_problem: Callable[[Problem], None]
    ) -> Record | None:
        if not line.strip():
            return None
        try:
            return from_line(line)
        except InvalidRecord as error:
            on_problem(Problem(self.path, number, str(error)))
        except LogError as error:
            raise LogError(
                error.what, where=f"{self.path}, line {number}", fix=error.fix
            ) from error
        return None


class Logs:
    """The logs that serve one instruction-set level, searched for kernels without parsing the rest.

    They are of the level itself and of those that it is tuned as
    (:attr:`lutcc.schedules.x86.isa.Isa.tuned_as`).

    Parameters
    ----------
    path
        A folder of logs, a processor's folder, or a file. Which processor a record is of, it says
        itself.
    isa
        The level.
    """

    def __init__(self, path: str | os.PathLike[str], isa: str) -> None:
        self._levels = isa_by_name(isa).tuned_as
        others = set(ISAS) - set(self._levels)
        files = [file for file in log_files(path) if file.stem not in others]
        self._texts = [(file, _bytes_of(file)) for file in files]

    def of_kernels(self, ids: Iterable[str]) -> list[Record]:
        """Return the records of kernels with these ids, oldest lines first.

        Lines that are no records are skipped: :meth:`LogFile.read` reports them.

        Raises
        ------
        LogError
            If one has another schema version.
        """
        found = []
        for file, text in self._texts:
            starts: set[int] = set()
            for kernel_id in ids:
                at = text.find(needle := f'"{kernel_id}"'.encode())
                while at >= 0:
                    starts.add(text.rfind(b"\n", 0, at) + 1)
                    at = text.find(needle, at + len(needle))
            for start in sorted(starts):
                end = text.find(b"\n", start)
                record = _record_or_none(text[start : end if end >= 0 else None], file)
                if record is not None and record.place.isa in self._levels:
                    found.append(record)
        return found


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise LogError(
            f"cannot be read ({error.strerror})", where=str(file), fix="name a log file"
        ) from error


def _record_or_none(line: bytes, file: Path) -> Record | None:
    try:
        return from_line(line)
    except InvalidRecord:
        return None
    except LogError as error:
        raise LogError(error.what, where=str(file), fix=error.fix) from error


def path_for(log_dir: str | os.PathLike[str], cpu: str, isa: str) -> Path:
    """Return the log of one processor and instruction-set level.

    Examples
    --------
    >>> path_for("tuning_logs", "znver5", "avx2").as_posix()
    'tuning_logs/znver5/avx2.jsonl'
    """
    return Path(log_dir) / cpu / f"{isa}.jsonl"


def log_files(path: str | os.PathLike[str]) -> list[Path]:
    """Return the logs that a path stands for: a file, a processor's folder, or a folder of those.

    Raises
    ------
    LogError
        If there is nothing of that name.
    """
    path = Path(path)
    if path.is_dir():
        return sorted({*path.glob("*.jsonl"), *path.glob("*/*.jsonl")})
    if not path.exists():
        raise LogError(
            "there is no such file or folder",
            where=str(path),
            fix="name a log (<cpu>/<level>.jsonl), a processor's folder, or a folder of those",
        )
    return [path]


def best(records: Iterable[Record]) -> dict[str, Record]:
    """Return the record of the best config of each workload, by workload id.

    A session's last measurements (phase ``final``) decide among the configs that were in them;
    without any, all trials do. A config that was measured several times counts by the median of its
    relative times, of final phases if it has any. Sessions that started from another default config
    than the latest one cannot be compared with it and are left out. What does not beat the default
    by one per cent does not count as better: then the record of the default is the best. Workloads
    without a successful record are left out. ``relative`` of the best is that median, of the
    default 1.

    Parameters
    ----------
    records
        Of one processor and instruction-set level.
    """
    groups: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.workload.id].append(record)
    chosen = {key: _best_of(group) for key, group in groups.items()}
    return {key: record for key, record in chosen.items() if record is not None}


def _best_of(records: Sequence[Record]) -> Record | None:
    ordered = sorted(records, key=lambda r: r.time)  # stable: the log's order within a second
    default_of = {r.session: r.config_id for r in ordered if r.phase == "default"}
    latest = next(reversed(default_of.values()), None)
    fit = [
        r
        for r in ordered
        if r.outcome.status == "ok"
        and not r.outcome.stopped
        and default_of.get(r.session, latest) == latest
    ]
    defaults = [r for r in fit if r.phase == "default" or r.config_id == latest]
    others = [r for r in fit if r.config_id != latest and r.relative is not None]
    finals = [r for r in others if r.phase == "final"]
    if finals:
        last = finals[-1].session
        present = {r.config_id for r in finals if r.session == last}
        others = [r for r in finals if r.config_id in present]
    measured: defaultdict[str, list[Record]] = defaultdict(list)
    for record in others:
        measured[record.config_id].append(record)

    def relative(key: str) -> float:
        return statistics.median(r.relative for r in measured[key] if r.relative is not None)

    winner = min(measured, key=relative, default=None)
    if winner is not None and relative(winner) < WORTHWHILE:
        return replace(measured[winner][-1], relative=relative(winner))
    return replace(defaults[-1], relative=1.0) if defaults else None
