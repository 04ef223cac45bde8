"""The numbers of an accuracy report: what each method keeps, what it takes, which are worth it."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from lutcc.errors import LogError
from lutcc.report.accuracy_log import AccuracyRun
from lutcc.report.training_data import Spread, spread

#: Names of methods that replace nothing start like this.
EXACT = "exact"
_SHORT = {"codebooks": "C", "ncodebooks": "C"}


@dataclass(frozen=True, slots=True, order=True)
class Conditions:
    """What times have to share to be compared.

    Parameters
    ----------
    machine
        Name of the processor.
    threads
        Of a call.
    rows
        Of a call.
    """

    machine: str
    threads: int
    rows: int

    def __str__(self) -> str:
        rows = f"{self.rows:,} row" + ("s" if self.rows != 1 else "")
        cores = "one core" if self.threads == 1 else f"{self.threads} threads"
        return f"{rows}, {cores}, {self.machine}"


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds of a call: median, least and most over the runs, and how many there are."""

    median: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Point:
    """A method with one setting.

    Attributes
    ----------
    method, setting
        As in the log.
    label
        What tells it from the method's other settings; empty if it has none.
    runs
        One for each seed.
    value, relative
        Over seeds; relative to the exact network where all runs know its value.
    times
        Of calls, by their conditions.
    """

    method: str
    setting: Mapping[str, Any]
    label: str
    runs: tuple[AccuracyRun, ...]
    value: Spread
    relative: Spread | None
    times: Mapping[Conditions, Timing]

    @property
    def name(self) -> str:
        """Method and setting, for people."""
        return f"{self.method} {self.label}".rstrip()

    @property
    def exact(self) -> bool:
        """Whether it replaces nothing."""
        return self.method.startswith(EXACT)

    @property
    def trained(self) -> str:
        """Steps or epochs, where all runs agree on them."""
        for unit in ("epochs", "steps"):
            known = {getattr(run, unit) for run in self.runs} - {None}
            if known:
                low, high = min(known), max(known)
                return f"{low:g} {unit}" if low == high else f"{low:g} to {high:g} {unit}"
        return ""


@dataclass(frozen=True)
class Comparison:
    """All methods on one task and model, by one metric.

    Attributes
    ----------
    task, model, metric
        As in the log.
    points
        Exact ones first, the others in the order of the log, each method's settings together.
    conditions
        Under which there are times: a panel each.
    replaced
        How many runs were done again: only the last counts.
    """

    task: str
    model: str
    metric: str
    points: tuple[Point, ...]
    conditions: tuple[Conditions, ...]
    replaced: int

    @property
    def methods(self) -> list[str]:
        """Names of the methods, each once."""
        return list(dict.fromkeys(point.method for point in self.points))

    @property
    def untimed(self) -> list[Point]:
        """Points that no panel can show."""
        return [point for point in self.points if not point.times]

    @property
    def exact_value(self) -> float | None:
        """Mean value of the exact networks."""
        known = [run.exact for point in self.points for run in point.runs if run.exact is not None]
        own = [run.value for point in self.points if point.exact for run in point.runs]
        return fmean(known or own) if known or own else None

    @property
    def seeds(self) -> tuple[int, int]:
        """The fewest and the most seeds of a point."""
        counts = [point.value.n for point in self.points]
        return min(counts), max(counts)

    def timed(self, conditions: Conditions) -> list[Point]:
        """Return the points with a time under these conditions, the fastest first."""
        found = [point for point in self.points if conditions in point.times]
        return sorted(found, key=lambda point: point.times[conditions].median)

    def front(self, conditions: Conditions) -> list[Point]:
        """Return the points that no other beats: none is as fast and better, or faster and as good.

        Means and medians alone decide.
        """
        found: list[Point] = []
        ordered = sorted(
            self.timed(conditions), key=lambda p: (p.times[conditions].median, -p.value.mean)
        )
        for point in ordered:
            if not found or point.value.mean > found[-1].value.mean:
                found.append(point)
        return found

    def fastest_exact(self, conditions: Conditions) -> Point | None:
        """Return the fastest network that replaces nothing."""
        return next((point for point in self.timed(conditions) if point.exact), None)

    def gain(self, point: Point, conditions: Conditions) -> float | None:
        """Return how many times as fast as the fastest exact network a point is."""
        base, own = self.fastest_exact(conditions), point.times.get(conditions)
        if base is None or own is None:
            return None
        return base.times[conditions].median / own.median


def compare(runs: Iterable[AccuracyRun]) -> tuple[Comparison, ...]:
    """Return what runs say, by task, model and metric.

    Runs with the same task, model, metric, method and setting are one point. Of two with the same
    seed the later counts; its times under other conditions stay.

    Raises
    ------
    LogError
        If there are none.
    """
    grouped: dict[tuple[str, str, str], list[AccuracyRun]] = defaultdict(list)
    for run in runs:
        grouped[run.task, run.model, run.metric].append(run)
    if not grouped:
        raise LogError(
            "there are no runs in it",
            where="report accuracy",
            fix="name a log that lutcc.report.accuracy_log.append_run wrote to",
        )
    return tuple(_comparison(*names, found) for names, found in grouped.items())


def _comparison(task: str, model: str, metric: str, runs: Sequence[AccuracyRun]) -> Comparison:
    by_method: dict[str, dict[str, list[AccuracyRun]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        by_method[run.method][json.dumps(dict(run.setting), sort_keys=True)].append(run)
    replaced, points = 0, []
    for method in sorted(by_method, key=lambda name: not name.startswith(EXACT)):
        groups = list(by_method[method].values())
        labels = _differing([group[0].setting for group in groups])
        made = []
        for group, label in zip(groups, labels, strict=True):
            point, again = _point(group, label)
            made.append(point)
            replaced += again
        points += sorted(made, key=_order)
    conditions = sorted({each for point in points for each in point.times})
    return Comparison(task, model, metric, tuple(points), tuple(conditions), replaced)


def _point(runs: Sequence[AccuracyRun], label: str) -> tuple[Point, int]:
    by_seed = {run.seed: run for run in runs}
    latest = [by_seed[seed] for seed in sorted(by_seed)]
    own: dict[tuple[Conditions, int], float] = {}
    seen: Counter[tuple[int, Conditions | None]] = Counter()
    for run in runs:
        under = _conditions(run)
        seen[run.seed, under] += 1
        if under is not None and run.time_us is not None:
            own[under, run.seed] = run.time_us
    times: dict[Conditions, list[float]] = defaultdict(list)
    for (under, _), taken in own.items():
        times[under].append(taken)
    value = spread([run.value for run in latest])
    assert value is not None
    parts = [part for run in latest if (part := run.relative) is not None]
    point = Point(
        method=latest[0].method,
        setting=latest[0].setting,
        label=label,
        runs=tuple(latest),
        value=value,
        relative=spread(parts) if len(parts) == len(latest) else None,
        times={k: Timing(median(v), min(v), max(v), len(v)) for k, v in sorted(times.items())},
    )
    return point, sum(count - 1 for count in seen.values())


def _conditions(run: AccuracyRun) -> Conditions | None:
    if run.time_us is None or run.machine is None or run.rows is None:
        return None
    return Conditions(run.machine, run.threads, run.rows)


def labels(points: Sequence[Point]) -> list[str]:
    """Return what tells each of some points from the others of its method, in short."""
    found = {}
    for method in {point.method for point in points}:
        own = [i for i, point in enumerate(points) if point.method == method]
        texts = _differing([points[i].setting for i in own])
        found |= dict(zip(own, texts, strict=True))
    return [found[i] for i in range(len(points))]


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what differs between settings, in short."""
    keys = list(dict.fromkeys(key for setting in settings for key in setting))
    differing = [k for k in keys if len({json.dumps(s.get(k)) for s in settings}) > 1]
    return [", ".join(_one(key, setting[key]) for key in differing if key in setting)
            for setting in settings]  # fmt: skip


def _one(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return key if value else f"no {key}"
    if _number(value) is None:
        return str(value)
    text = f"{value:g}" if isinstance(value, float) else value
    return f"{_SHORT.get(key, key)}={text}"


def _number(value: Any) -> float | None:
    """Return a number, also one that was written as text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _order(point: Point) -> list[tuple[int, float, str]]:
    """Numbers of settings by size, texts by the alphabet."""
    return [
        (1, 0.0, str(value)) if (number := _number(value)) is None else (0, number, "")
        for value in point.setting.values()
    ]


def percent(metric: str) -> bool:
    """Return whether a metric is shown in percent."""
    return metric == "accuracy"


def written(found: Spread | None, metric: str, *, part: bool = False) -> str:
    """Return a mean with half its 95 % interval; accuracies in percent, parts of 1 as they are.

    Examples
    --------
    >>> written(spread([0.97, 0.98, 0.99]), "accuracy")
    '98.00 ± 2.48'
    >>> written(spread([0.97, 0.98]), "cosine"), written(spread([0.5]), "cosine")
    ('0.9750 ± 0.0635', '0.5000')
    """
    if found is None:
        return "–"
    factor, digits = (100, 2) if percent(metric) and not part else (1, 4)
    half = "" if found.half is None else f" ± {factor * found.half:.{digits}f}"
    return f"{factor * found.mean:.{digits}f}{half}"
