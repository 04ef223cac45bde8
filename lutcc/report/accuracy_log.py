"""The log of accuracies and times that `lutcc report accuracy` shows: a JSON line for each run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lutcc
from lutcc.errors import InputError, LogError
from lutcc.runtime import cpu
from lutcc.runtime.appending import append_line

_TEXTS = ("task", "model", "method", "metric", "date", "version")
_COUNTS = {"seed": 0, "steps": 0, "rows": 1, "threads": 1}
_NUMBERS = ("value", "exact", "time_us", "epochs")
_REQUIRED = ("task", "model", "method", "seed", "value")
_SEE = "see lutcc.report.accuracy_log.AccuracyRun"


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyRun:
    """What one network was worth and took. None: not measured.

    Runs that differ in nothing but the seed are one point with its spread. Of two runs that are the
    same in all, the later counts.

    Parameters
    ----------
    task
        What the network was tried on, such as "digits".
    model
        The exact network that was replaced, such as "64-30-30-30-10".
    method
        What is compared, such as "maddness", "itlumm-r2-kld", "finetuned" or "exact-fp32".
    seed
        Of the run, from 0.
    value
        The accuracy, or whatever ``metric`` names; more is better.
    setting
        What tells points of a method apart: JSON values, such as ``{"codebooks": 8, "K": 16}``.
    metric
        "accuracy" (a part of 1), "cosine", ...
    exact
        The exact network's value of the same seed; ``value / exact`` is the relative value.
    time_us
        Best wall-clock time of a call of the compiled network on ``rows`` rows, microseconds.
    rows
        Rows of that call; needed with a time.
    threads
        Threads of that call.
    machine
        Name of the processor that it was measured on; this one if there is a time and no name.
    steps, epochs
        Of training or fine-tuning.
    date, version
        When, in UTC, and by which lutcc; now and this one.

    Raises
    ------
    InputError
        If a value is of a wrong type or out of range.

    Examples
    --------
    >>> run = AccuracyRun(task="digits", model="64-10", method="maddness", seed=0, value=0.9,
    ...                   setting={"codebooks": 8}, exact=0.96, time_us=3.5, rows=1, machine="a")
    >>> round(run.relative, 4)
    0.9375
    """

    task: str
    model: str
    method: str
    seed: int
    value: float
    setting: Mapping[str, Any] = field(default_factory=dict)
    metric: str = "accuracy"
    exact: float | None = None
    time_us: float | None = None
    rows: int | None = None
    threads: int = 1
    machine: str | None = None
    steps: int | None = None
    epochs: float | None = None
    date: str = field(default_factory=_now)
    version: str = lutcc.__version__

    def __post_init__(self) -> None:
        """Check every value."""
        if self.time_us is not None and self.machine is None:
            object.__setattr__(self, "machine", cpu.model_name())
        problem = _problem({each.name: getattr(self, each.name) for each in fields(self)})
        if problem:
            raise InputError(problem, where="accuracy run", fix=_SEE)

    @property
    def relative(self) -> float | None:
        """The value over that of the exact network."""
        return self.value / self.exact if self.exact else None

    def to_json(self) -> dict[str, Any]:
        """Return what is known, as JSON values."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_json(cls, data: Any) -> AccuracyRun:
        """Read a line; fields of later versions are passed over.

        Raises
        ------
        ValueError
            If it is no run.
        """
        if not isinstance(data, dict):
            raise ValueError("it is no JSON object")
        missing = [name for name in _REQUIRED if name not in data]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        known = {each.name: data[each.name] for each in fields(cls) if each.name in data}
        if "time_us" in known and "machine" not in known:
            raise ValueError("it has a time without the machine")
        return cls(**known)


def _problem(values: dict[str, Any]) -> str | None:
    """Return what is wrong with a run's values."""
    for name in _TEXTS:
        if not isinstance(values[name], str) or not values[name]:
            return f"{name}={values[name]!r} is no text"
    optional = {"steps", "rows", "exact", "time_us", "epochs"}
    for name, least in _COUNTS.items():
        value = values[name]
        if value is None and name in optional:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            return f"{name}={value!r} is no whole number from {least} on"
    for name in _NUMBERS:
        value = values[name]
        if value is None and name in optional:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"{name}={value!r} is no finite number"
        if not math.isfinite(value):
            return f"{name}={value!r} is no finite number"
    if values["machine"] is not None and not isinstance(values["machine"], str):
        return f"machine={values['machine']!r} is no text"
    if values["time_us"] is not None and values["time_us"] <= 0:
        return f"time_us={values['time_us']!r} is not above 0"
    if values["time_us"] is not None and values["rows"] is None:
        return "time_us is given without rows"
    if values["metric"] == "accuracy" and not 0 <= values["value"] <= 1:
        return f"value={values['value']!r}: an accuracy is a part of 1"
    return _setting_problem(values["setting"])


def _setting_problem(setting: Any) -> str | None:
    if not isinstance(setting, Mapping) or not all(isinstance(name, str) for name in setting):
        return f"setting={setting!r} is no mapping from names to values"
    try:
        same = json.loads(json.dumps(dict(setting), allow_nan=False)) == dict(setting)
    except (TypeError, ValueError):
        same = False
    return None if same else f"setting={setting!r} holds what JSON has no value for"


def append_run(path: str | os.PathLike[str], run: AccuracyRun) -> None:
    """Append a run to a log as one line; several processes may do so at the same time.

    Parameters
    ----------
    path
        The log, *.jsonl; it and its folder are made where they are missing.
    run
        What to write.

    Raises
    ------
    LogError
        If it cannot be written.

    Examples
    --------
    >>> run = AccuracyRun(task="digits", model="64-10", method="maddness", seed=0, value=0.9)
    >>> append_run("out/accuracy.jsonl", run)                                    # doctest: +SKIP
    """
    text = json.dumps(run.to_json(), ensure_ascii=False, allow_nan=False)
    append_line(Path(path), text)


def read_runs(
    path: str | os.PathLike[str], warn: Callable[[str], None] | None = None
) -> list[AccuracyRun]:
    """Return a log's runs in the order they were written.

    Parameters
    ----------
    path
        The log.
    warn
        Told of each line that is no run, such as one cut off by a kill; it is left out.

    Raises
    ------
    LogError
        If the file is missing, or no line of it is a run.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise LogError(
            "there is no such file" if missing else f"cannot be read ({error.strerror})",
            where=str(path),
            fix="name the .jsonl file that the runs were written to",
        ) from error
    runs, problems = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            runs.append(AccuracyRun.from_json(json.loads(line)))
        except ValueError as error:
            text = isinstance(error, json.JSONDecodeError | UnicodeDecodeError)
            reason = error.what if isinstance(error, InputError) else error
            problems.append(
                f"{path}:{number}: no accuracy run: "
                + ("it is cut off or no JSON" if text else str(reason))
            )
    if problems and not runs:
        raise LogError(
            f"is no log of accuracies ({problems[0]})",
            where=str(path),
            fix="name a log that lutcc.report.accuracy_log.append_run wrote; training runs are "
            "shown by `lutcc report training`, tuning logs by `lutcc report tuning`",
        )
    for problem in problems if warn else ():
        warn(problem)  # type: ignore[misc]
    return runs
