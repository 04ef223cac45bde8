"""The numbers of a tuning report: what a log's records say of each kernel and of each target."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from statistics import geometric_mean, quantiles

from lutcc.errors import LogError
from lutcc.schedules.space import Config
from lutcc.tuning.limits import Bound, Limits
from lutcc.tuning.logfile import best
from lutcc.tuning.names import FAMILIES, changed_knobs, family, full_names, rows_of
from lutcc.tuning.records import Place, Record
from lutcc.tuning.workload import Workload

STATUSES = ("ok", "compile_error", "wrong_result", "timeout", "crash")


@dataclass(frozen=True)
class Kernel:
    """What was found of one workload on one target.

    Attributes
    ----------
    name
        For people; no other kernel of the target has it.
    workload
        What was tuned.
    trials
        Records of the search, oldest first, over all sessions.
    default
        The latest good measurement of the default config; None if there is none.
    chosen
        The record of the config that a compiler takes; None if nothing ran.
    default_config
        What the config is compared with; None if it was never logged.
    bound
        The least time by the processor's limits; None if the cost is not known.
    finals
        Relative times of the last session's final measurements, the default's among them.
    """

    name: str
    workload: Workload
    trials: tuple[Record, ...]
    default: Record | None
    chosen: Record | None
    default_config: Config | None
    bound: Bound | None
    finals: tuple[float, ...]

    @property
    def family(self) -> str:
        """One of :data:`~lutcc.tuning.names.FAMILIES`."""
        return family(self.workload)

    @property
    def relative(self) -> float | None:
        """Time of the chosen config over the default's, both taken in the same run."""
        if self.chosen is None:
            return None
        return (self.chosen.relative or 1.0) if self.tuned else 1.0

    @property
    def tuned(self) -> bool:
        """Whether another config than the default is chosen: one worth it, says the log."""
        return self.chosen is not None and self.chosen.config != self.default_config

    @property
    def confirmed(self) -> bool:
        """Whether the gain is from a final measurement, beside the default, not from the search."""
        return self.tuned and self.chosen is not None and self.chosen.phase == "final"

    @property
    def default_s(self) -> float | None:
        """Median seconds of the default config."""
        return _seconds(self.default)

    @property
    def best_s(self) -> float | None:
        """Median seconds of the chosen config."""
        return _seconds(self.chosen) if self.tuned else self.default_s

    @property
    def changes(self) -> list[tuple[str, str, str]]:
        """(knob, before, after) of what the chosen config changes."""
        if not self.tuned or self.chosen is None or self.default_config is None:
            return []
        return changed_knobs(self.default_config, self.chosen.config)

    @property
    def share(self) -> float | None:
        """Achieved part of the roofline: the bound over the time of the chosen config."""
        return self.bound.seconds / self.best_s if self.bound and self.best_s else None

    @property
    def default_share(self) -> float | None:
        """Part of the roofline that the default config achieves."""
        return self.bound.seconds / self.default_s if self.bound and self.default_s else None

    @property
    def failures(self) -> list[Record]:
        """Trials that failed."""
        return [r for r in self.trials if r.outcome.status != "ok"]

    @cached_property
    def curve(self) -> tuple[float, ...]:
        """Best relative time after each trial, the default's 1 being the start."""
        found, low = [], 1.0
        for record in self.trials:
            if record.outcome.status == "ok" and not record.outcome.stopped:
                low = min(low, record.relative or low)
            found.append(low)
        return tuple(found)


@dataclass(frozen=True)
class Session:
    """One session: its id, seed, first record's time, seconds, trials, failures and versions."""

    id: str
    seed: int
    start: str
    seconds: float | None
    trials: int
    failures: int
    versions: dict[str, str]


@dataclass(frozen=True)
class Group:
    """Kernels with something in common: how many, how many were tuned, and the mean gain.

    ``gain`` is the geometric mean of the default's time over the chosen config's.
    """

    label: str
    kernels: int
    faster: int
    gain: float


@dataclass(frozen=True)
class Target:
    """All that was found for one processor and instruction-set level.

    Attributes
    ----------
    place
        The processor, as the latest record names it.
    limits
        Its roofline; None if the level is unknown here.
    kernels
        By family and size.
    sessions
        By start.
    statuses
        Status -> trials, every status named.
    overhead_s
        Median and 90th percentile of what a trial took beyond its measurement.
    spread
        The same of the noise: (p80 - p20) / median of the incumbent's times in a trial.
    """

    place: Place
    limits: Limits | None
    kernels: tuple[Kernel, ...]
    sessions: tuple[Session, ...]
    statuses: dict[str, int]
    overhead_s: tuple[float, float] | None
    spread: tuple[float, float] | None

    @property
    def name(self) -> str:
        """CPU and level."""
        return f"{self.place.cpu} · {self.place.isa}"

    @property
    def trials(self) -> int:
        """Trials of all kernels."""
        return sum(self.statuses.values())

    @property
    def seconds(self) -> float | None:
        """Wall time of all sessions."""
        known = [s.seconds for s in self.sessions if s.seconds is not None]
        return sum(known) if known else None

    @property
    def measured(self) -> list[Kernel]:
        """Kernels that ran."""
        return [k for k in self.kernels if k.relative is not None]

    @property
    def unchanged(self) -> list[Kernel]:
        """Kernels that keep the default config."""
        return [k for k in self.measured if not k.tuned]

    @property
    def broken(self) -> list[Kernel]:
        """Kernels of which no config ran, not even the default."""
        return [k for k in self.kernels if k.relative is None]

    @property
    def best_gain(self) -> float:
        """The greatest speed-up of a kernel; 1 where there is none."""
        return max((1 / k.relative for k in self.measured if k.relative), default=1.0)

    @cached_property
    def total(self) -> Group | None:
        """All kernels that ran."""
        return _group("all kernels", self.measured)

    @cached_property
    def by_family(self) -> list[Group]:
        """A group for each family there is."""
        return _groups(self.measured, lambda k: k.family, FAMILIES.index)

    @cached_property
    def by_rows(self) -> list[Group]:
        """A group for each number of rows."""
        groups = _groups(self.measured, lambda k: str(rows_of(k.workload)), int)
        return [Group(_rows_label(g.label), g.kernels, g.faster, g.gain) for g in groups]

    @cached_property
    def by_knob(self) -> list[tuple[str, int, str]]:
        """(knob, kernels that change it, the values it changes to with their numbers)."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for kernel in self.kernels:
            for knob, before, after in kernel.changes:
                found[knob][f"{before} → {after}"] += 1
        rows = []
        for knob, steps in found.items():
            text = ", ".join(
                step if count == 1 else f"{step} ({count}×)" for step, count in steps.most_common()
            )
            rows.append((knob, steps.total(), text))
        return sorted(rows, key=lambda row: (-row[1], row[0]))


def summarise(
    records: Iterable[Record], limits: Callable[[Place], Limits | None]
) -> tuple[Target, ...]:
    """Return what records say, by processor and level.

    Parameters
    ----------
    records
        In the order of the log.
    limits
        Gives the roofline of a processor.

    Raises
    ------
    LogError
        If there are no records.
    """
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.place.cpu, record.place.isa].append(record)
    if not groups:
        raise LogError(
            "there are no records to show",
            where="report tuning",
            fix="tune something first (lutcc tune), or name another log or session",
        )
    return tuple(_target(groups[key], limits) for key in sorted(groups))


def _target(records: list[Record], limits_of: Callable[[Place], Limits | None]) -> Target:
    place = records[-1].place
    limits = limits_of(place)
    by_workload: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_workload[record.workload.id].append(record)
    chosen = best(records)
    keys = sorted(by_workload, key=lambda key: _order(by_workload[key][-1].workload))
    names = full_names([by_workload[key][-1].workload for key in keys])
    kernels = tuple(
        _kernel(name, by_workload[key], chosen.get(key), limits)
        for name, key in zip(names, keys, strict=True)
    )
    trials = [r for r in records if r.phase == "search"]
    counts = Counter(r.outcome.status for r in trials)
    sessions: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        sessions[record.session].append(record)
    return Target(
        place=place,
        limits=limits,
        kernels=kernels,
        sessions=tuple(sorted((_session(s) for s in sessions.values()), key=lambda s: s.start)),
        statuses={status: counts[status] for status in STATUSES},
        overhead_s=_middle_and_high([r.outcome.overhead_s for r in trials if r.outcome.total_s]),
        spread=_middle_and_high([r.outcome.spread for r in records if r.outcome.spread]),
    )


def _order(workload: Workload) -> tuple[int, str, list[tuple[str, float]], int]:
    sizes = sorted((k, v) for k, v in workload.dims.items() if k != "rows")
    return (FAMILIES.index(family(workload)), workload.op, sizes, rows_of(workload))


def _kernel(
    name: str, records: list[Record], chosen: Record | None, limits: Limits | None
) -> Kernel:
    workload = records[-1].workload
    config = next((r.config for r in reversed(records) if r.phase == "default"), None)
    defaults = [r for r in records if r.config == config and _seconds(r) is not None]
    if chosen is not None:  # beside the chosen config, if it was measured there
        defaults.sort(key=lambda r: (r.session, r.phase) == (chosen.session, chosen.phase))
    finals = [r for r in records if r.phase == "final"]
    last = [r.relative for r in finals if r.session == finals[-1].session]
    return Kernel(
        name=name,
        workload=workload,
        trials=tuple(r for r in records if r.phase == "search"),
        default=defaults[-1] if defaults else None,
        chosen=chosen,
        default_config=config,
        bound=limits.bound(workload) if limits else None,
        finals=tuple(relative for relative in last if relative is not None),
    )


def _session(records: Sequence[Record]) -> Session:
    trials = [r for r in records if r.phase == "search"]
    first = min(records, key=lambda r: r.time)
    return Session(
        id=first.session,
        seed=first.seed,
        start=first.time,
        seconds=_wall(records),
        trials=len(trials),
        failures=sum(r.outcome.status != "ok" for r in trials),
        versions=dict(first.versions),
    )


def _wall(records: Sequence[Record]) -> float | None:
    """Return the seconds from the start of the first trial to the end of the last."""
    try:
        ends = [(datetime.fromisoformat(r.time), r.outcome.total_s) for r in records]
        first, total = min(ends)
        return (max(ends)[0] - first).total_seconds() + total
    except (ValueError, TypeError):  # not ISO 8601, or some with and some without a time zone
        return None


def _group(label: str, kernels: Sequence[Kernel]) -> Group | None:
    gains = [1 / k.relative for k in kernels if k.relative]
    if not gains:
        return None
    return Group(label, len(gains), sum(k.tuned for k in kernels), geometric_mean(gains))


def _groups(
    kernels: Iterable[Kernel], label: Callable[[Kernel], str], order: Callable[[str], int]
) -> list[Group]:
    found: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        found[label(kernel)].append(kernel)
    groups = [_group(key, found[key]) for key in sorted(found, key=order)]
    return [group for group in groups if group is not None]


def _rows_label(rows: str) -> str:
    return f"N {int(rows):,}" if int(rows) else "fixed"


def _seconds(record: Record | None) -> float | None:
    return None if record is None or record.outcome.timing is None else record.outcome.timing.median


def _middle_and_high(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the median and the 90th percentile, or None of nothing."""
    if not values:
        return None
    if len(values) == 1:
        return values[0], values[0]
    cuts = quantiles(values, n=10, method="inclusive")
    return cuts[4], cuts[8]
