"""The numbers of a training report: what logs of runs say of each method, and against exact."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from lutcc.errors import LogError, suggest
from lutcc.train.runlog import RunRecord

#: Splits by preference, for the accuracy that counts.
_SPLITS = ("test", "validation", None, "train")
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean of some numbers and how far they spread.

    Parameters
    ----------
    mean
        Their mean.
    std
        Sample standard deviation; None for a single number.
    half
        Half the width of the 95 % confidence interval of the mean, by Student's t; None likewise.
    values
        The numbers.
    """

    mean: float
    std: float | None
    half: float | None
    values: tuple[float, ...]

    @property
    def n(self) -> int:
        """How many numbers."""
        return len(self.values)


def spread(values: Sequence[float]) -> Spread | None:
    """Return the spread of numbers, None of nothing.

    Examples
    --------
    >>> found = spread([0.97, 0.98, 0.99])
    >>> round(found.mean, 4), round(found.std, 4), round(found.half, 4)
    (0.98, 0.01, 0.0248)
    """
    from scipy.special import stdtrit

    if not values:
        return None
    count = len(values)
    if count == 1:
        return Spread(values[0], None, None, tuple(values))
    mean = fmean(values)
    std = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))  # NaN may be in it
    half = float(stdtrit(count - 1, 0.5 + CONFIDENCE / 2)) * std / math.sqrt(count)
    return Spread(mean, std, half, tuple(values))


@dataclass(frozen=True, slots=True)
class Curve:
    """Mean over runs at each step or epoch, with the least and the greatest."""

    x: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class TrainingRun:
    """One run: its name, seed and records in order of steps, and whether it came to its end."""

    name: str
    seed: int
    records: tuple[RunRecord, ...]
    finished: bool

    @property
    def accuracy(self) -> float | None:
        """Accuracy at the end, of the most telling split."""
        return next((r.accuracy for r in reversed(self._measured) if r.accuracy is not None), None)

    @property
    def split(self) -> str | None:
        """The split that the accuracy is of."""
        return self._measured[-1].split if self._measured else None

    @cached_property
    def _measured(self) -> list[RunRecord]:
        for split in _SPLITS:
            found = [r for r in self.records if r.accuracy is not None and r.split == split]
            if found:
                return found
        return [r for r in self.records if r.accuracy is not None]

    def last(self, name: str) -> float | None:
        """Return the last known value of a field."""
        values = [getattr(r, name) for r in self.records if getattr(r, name) is not None]
        return values[-1] if values else None

    def points(self, name: str, by_epoch: bool) -> list[tuple[float, float]]:
        """Return (epoch or step, value) of a field, where it is known."""
        chosen = self._measured if name == "accuracy" else self.records
        return [
            (float(r.epoch if by_epoch and r.epoch is not None else r.step), float(value))
            for r in chosen
            if (value := getattr(r, name)) is not None
        ]


@dataclass(frozen=True)
class Method:
    """What is compared within a task: some runs of different seeds.

    Attributes
    ----------
    name
        As in the log.
    runs
        Those that came to their end, by seed.
    unfinished
        How many did not.
    difference
        Accuracy less that of the exact method, run by run of the same seed; None for the exact
        method, and without runs of the same seeds.
    """

    name: str
    runs: tuple[TrainingRun, ...]
    unfinished: int
    difference: Spread | None = None

    @cached_property
    def accuracy(self) -> Spread | None:
        """Accuracy at the end."""
        return spread([r.accuracy for r in self.runs if r.accuracy is not None])

    @cached_property
    def seconds(self) -> Spread | None:
        """Seconds of training."""
        return spread([s for r in self.runs if (s := r.last("seconds")) is not None])

    @cached_property
    def loss(self) -> Spread | None:
        """Training loss at the end."""
        return spread([loss for r in self.runs if (loss := r.last("loss")) is not None])

    @property
    def compute(self) -> float | None:
        """Multiply-adds done, over those of exact layers."""
        return _share(self.runs, "macs", "exact_macs")

    @property
    def traffic(self) -> float | None:
        """Bytes sent, over those without sampling."""
        return _share(self.runs, "bytes", "dense_bytes")

    @property
    def bytes(self) -> float | None:
        """Mean bytes that a worker sent in a run."""
        found = [b for r in self.runs if (b := r.last("bytes")) is not None]
        return fmean(found) if found else None

    def curve(self, name: str, by_epoch: bool) -> Curve:
        """Return the mean over the runs of ``loss`` or ``accuracy``, where all have a value."""
        at: dict[float, list[float]] = defaultdict(list)
        for run in self.runs:
            for x, value in dict(run.points(name, by_epoch)).items():
                at[x].append(value)
        full = sorted(x for x, values in at.items() if len(values) == len(self.runs))
        return Curve(
            tuple(full),
            tuple(fmean(at[x]) for x in full),
            tuple(min(at[x]) for x in full),
            tuple(max(at[x]) for x in full),
        )


@dataclass(frozen=True)
class Task:
    """Methods that were compared on the same task.

    Attributes
    ----------
    name
        As in the log.
    methods
        The exact one first, the others in the order of the log; only those with finished runs.
    baseline
        The exact one; None if it is not there.
    pending
        Methods of which no run is finished.
    """

    name: str
    methods: tuple[Method, ...]
    baseline: Method | None
    pending: tuple[str, ...]

    @property
    def by_epoch(self) -> bool:
        """Whether all records know their epoch, so that curves are over epochs."""
        runs = [run for method in self.methods for run in method.runs]
        return all(r.epoch is not None for run in runs for r in run.records)

    @property
    def split(self) -> str:
        """The split that accuracies are of, for people."""
        splits = {run.split for method in self.methods for run in method.runs} - {None}
        return " and ".join(sorted(str(split) for split in splits))

    @property
    def seeds(self) -> int:
        """How many runs a method has at most."""
        return max((len(method.runs) for method in self.methods), default=0)

    @property
    def others(self) -> list[Method]:
        """All but the exact method."""
        return [method for method in self.methods if method is not self.baseline]


def summarise(records: Iterable[RunRecord], baseline: str = "exact") -> tuple[Task, ...]:
    """Return what records say, by task.

    Parameters
    ----------
    records
        In the order of their logs.
    baseline
        Name of the method that the others are compared with.

    Raises
    ------
    LogError
        If no run came to its end, or no task has the method to compare with.
    """
    grouped: dict[tuple[str, str], list[RunRecord]] = defaultdict(list)
    for record in records:
        runs = grouped[record.task, record.run]
        if runs and record.step < runs[-1].step:
            runs.clear()  # it was started again
        runs.append(record)
    marked = any(r.final for found in grouped.values() for r in found)
    methods: dict[str, dict[str, list[TrainingRun]]] = defaultdict(lambda: defaultdict(list))
    for (task, name), found in grouped.items():
        done = found[-1].final or not marked
        run = TrainingRun(name, found[-1].seed, tuple(found), done)
        methods[task][found[-1].method].append(run)
    tasks = tuple(
        _task(name, found, baseline)
        for name, found in methods.items()
        if any(run.finished for runs in found.values() for run in runs)
    )
    if not tasks:
        raise LogError(
            f"none of {len(grouped)} runs came to its end" if grouped else "there are no records",
            where="report training",
            fix="let the training go on to its end, or name another log",
        )
    names = {method.name for task in tasks for method in task.methods}
    if baseline not in names and (baseline != "exact" or len(names) > 1):
        raise LogError(
            f"there is no method {baseline!r} to compare with",
            where="report training",
            fix=f"name one with --baseline: {suggest(baseline, names)}",
        )
    return tasks


def _task(name: str, found: dict[str, list[TrainingRun]], baseline: str) -> Task:
    order = sorted(found, key=lambda method: method != baseline)
    exact = {run.seed: run.accuracy for run in found.get(baseline, []) if run.finished}
    methods, pending = [], []
    for method in order:
        runs = sorted((run for run in found[method] if run.finished), key=lambda run: run.seed)
        if not runs:
            pending.append(method)
            continue
        gaps = [
            run.accuracy - before
            for run in runs
            if run.accuracy is not None and (before := exact.get(run.seed)) is not None
        ]
        difference = spread(gaps) if method != baseline else None
        methods.append(Method(method, tuple(runs), len(found[method]) - len(runs), difference))
    first = methods[0] if methods[0].name == baseline else None
    return Task(name, tuple(methods), first, tuple(pending))


def _share(runs: Sequence[TrainingRun], part: str, whole: str) -> float | None:
    pairs = [(run.last(part), run.last(whole)) for run in runs]
    known = [(a, b) for a, b in pairs if a is not None and b]
    return sum(a for a, _ in known) / sum(b for _, b in known) if known else None


def points(spread: Spread | None, write: Callable[[float], str] = "{:.2f}".format) -> str:
    """Return a mean with its 95 % interval, in percent or percentage points.

    Examples
    --------
    >>> points(Spread(0.9812, 0.002, 0.00251, (0.98, 0.9824)))
    '98.12 ± 0.25'
    """
    if spread is None:
        return "–"
    half = "" if spread.half is None else f" ± {100 * spread.half:.2f}"
    return write(round(100 * spread.mean, 2) + 0.0) + half  # no negative zero
