"""The log of training runs that `lutcc report training` shows: JSON lines, each written at once."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lutcc.errors import InputError, LogError
from lutcc.train.settings import check_same

_TEXTS = ("run", "method", "task", "split")
_COUNTS = ("seed", "step", "macs", "exact_macs", "bytes", "dense_bytes")
_NUMBERS = ("epoch", "loss", "accuracy", "seconds")
_REQUIRED = ("run", "method", "seed", "step")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What a run was at one step. Sums are since the start of the run; None: not known.

    Parameters
    ----------
    run
        Names the run; no other in the log has it.
    method
        What is compared, such as "exact" or "topk 50%"; several runs differ in their seed.
    seed
        Of the run.
    step
        Optimizer steps done.
    task
        What was trained; methods are compared within a task.
    epoch
        Passes over the training examples.
    loss
        Mean training loss since the record before, in nats.
    accuracy
        A part of 1, of the examples of ``split``.
    split
        "test", "validation" or "train".
    macs, exact_macs
        Multiply-adds of the linear and convolution layers in training, and of exact ones.
    bytes, dense_bytes
        What one worker gave to all-reduce operations, and what it would have been without sampling.
    seconds
        Of training.
    final
        The run's last record: it is finished.
    settings
        What the run depends on, JSON values; in its first record.

    Raises
    ------
    InputError
        If a value is of a wrong type or out of range.
    """

    run: str
    method: str
    seed: int
    step: int
    task: str = ""
    epoch: float | None = None
    loss: float | None = None
    accuracy: float | None = None
    split: str | None = None
    macs: int | None = None
    exact_macs: int | None = None
    bytes: int | None = None
    dense_bytes: int | None = None
    seconds: float | None = None
    final: bool = False
    settings: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        problem = _problem({field.name: getattr(self, field.name) for field in fields(self)})
        if problem:
            raise InputError(problem, where="training record", fix="see lutcc.train.runlog")

    def to_json(self) -> dict[str, Any]:
        """Return what is known, as JSON values; numbers that are not finite become text."""
        known = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }
        return {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in known.items()
        }

    @classmethod
    def from_json(cls, data: Any) -> RunRecord:
        """Read a line; fields of later versions are passed over.

        Raises
        ------
        ValueError
            If it is no record.
        """
        if not isinstance(data, dict):
            raise ValueError("it is no JSON object")
        missing = [name for name in _REQUIRED if name not in data]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        known = {field.name: data[field.name] for field in fields(cls) if field.name in data}
        for name in _NUMBERS:
            if known.get(name) in ("nan", "inf", "-inf"):
                known[name] = float(known[name])
        return cls(**known)


def _problem(values: dict[str, Any]) -> str | None:
    """Return what is wrong with a record's values."""
    for name, value in values.items():
        if value is None and name not in _REQUIRED:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in _TEXTS:
            right, wanted = isinstance(value, str), "text"
        elif name in _COUNTS:
            right, wanted = isinstance(value, int) and number and value >= 0, "a count"
        elif name in _NUMBERS:
            right, wanted = number, "a number"
        else:
            kind = bool if name == "final" else Mapping
            right, wanted = isinstance(value, kind), kind.__name__.lower()
        if not right:
            return f"{name}={value!r} is not {wanted}"
    if values["accuracy"] is not None and not 0 <= values["accuracy"] <= 1:
        return f"accuracy={values['accuracy']!r} is not in 0..1"
    return None


class RunLog:
    """Appends records to a file, and reads them.

    Parameters
    ----------
    path
        The file; it and its folder are made at the first record.

    Raises
    ------
    LogError
        If the file cannot be read or written, or is no training log.

    Examples
    --------
    >>> log = RunLog("runs.jsonl")                                              # doctest: +SKIP
    >>> log.write(RunRecord(run="a/0", method="exact", seed=0, step=10, loss=1.5))  # doctest: +SKIP
    >>> log.finished("a/0")                                                     # doctest: +SKIP
    False
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def write(self, record: RunRecord) -> None:
        """Append one record."""
        line = json.dumps(record.to_json(), ensure_ascii=False, allow_nan=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                if file.tell() and not self._ends_a_line():
                    line = "\n" + line  # what was cut off stays a line of its own
                file.write(line.encode())
                file.flush()
        except OSError as error:
            raise LogError(
                f"cannot write: {error.strerror or error}",
                where=str(self.path),
                fix="choose a folder that can be written to",
            ) from error

    def read(self, warn: Callable[[str], None] | None = None) -> list[RunRecord]:
        """Return all records; a line that is none is told to ``warn`` and left out.

        Raises
        ------
        LogError
            If the file is missing, or no line of it is a record.
        """
        records, problems = [], []
        for number, line in self._lines():
            try:
                records.append(RunRecord.from_json(json.loads(line)))
            except ValueError as error:
                reason = "it is cut off or no JSON" if "JSON" in type(error).__name__ else error
                problems.append(f"{self.path}:{number}: not a training record: {reason}")
        if problems and not records:
            raise LogError(
                f"is no log of training runs ({problems[0]})",
                where=str(self.path),
                fix="name a log that lutcc.train.runlog or an example wrote; tuning logs are shown "
                "by `lutcc report tuning`",
            )
        for problem in problems if warn else ():
            warn(problem)  # type: ignore[misc]
        return records

    def finished(self, run: str, settings: Mapping[str, Any] | None = None) -> bool:
        """Return whether the run is there to its end.

        Raises
        ------
        InputError
            If it was made with other settings.
        """
        found = [record for record in self.read() if record.run == run] if self._there() else []
        for record in found:
            if settings is not None and record.settings is not None:
                check_same(f"run {run!r}", record.settings, settings, self.path)
        return any(record.final for record in found)

    def forget(self, run: str) -> None:
        """Drop a run's records, before it starts again."""
        if not self._there():
            return
        records = self.read()
        kept = [record for record in records if record.run != run]
        if len(kept) == len(records):
            return  # another process may be writing to it
        new = self.path.with_name(self.path.name + ".new")
        text = "".join(json.dumps(r.to_json(), ensure_ascii=False) + "\n" for r in kept)
        new.write_text(text, encoding="utf-8")
        os.replace(new, self.path)

    def _there(self) -> bool:
        return self.path.exists() and self.path.stat().st_size > 0

    def _ends_a_line(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def _lines(self) -> Iterator[tuple[int, str]]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            missing = isinstance(error, FileNotFoundError)
            reason = "there is no such file" if missing else f"cannot read: {error}"
            raise LogError(
                reason,
                where=str(self.path),
                fix="name the .jsonl file that the training wrote",
            ) from error
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield number, line
