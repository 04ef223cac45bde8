"""What records of other workloads and processors tell about the one to tune."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lutcc.schedules.space import Config, KnobValue, config_id
from lutcc.tuning.costmodel import Known
from lutcc.tuning.features import features_of
from lutcc.tuning.records import Place, Record
from lutcc.tuning.task import Task
from lutcc.tuning.workload import Workload

#: So many of the nearest workloads are learnt from, and so many records of each.
NEAREST = 16
RECORDS = 256
#: Distances in doublings of one dimension: for another group of ops, another instruction-set level.
_OTHER_OP = 6.0
_OTHER_ISA = 2.0
_OTHER_MEMORY = 2.0
#: For a space that has no knob in common with the task's; some in common count in part.
_OTHER_KNOBS = 8.0


@dataclass(frozen=True)
class Relative:
    """A related workload: how far away it is and what was measured of it.

    Attributes
    ----------
    workload, isa
        What was measured.
    distance
        See :func:`distance`.
    results
        (config, relative time or None where it failed), one for each config.
    default
        The default config of that time, if it is among the records.
    """

    workload: Workload
    isa: str
    distance: float
    results: tuple[tuple[Config, float | None], ...]
    default: Config | None = None

    def best(self, count: int) -> list[Config]:
        """Return the fastest configs, the fastest first."""
        good = [(relative, i) for i, (_, relative) in enumerate(self.results) if relative]
        return [self.results[i][0] for _, i in sorted(good)[:count]]


def distance(one: Workload, isa: str, other: Workload, other_isa: str) -> float:
    """Return how unlike two workloads are: 0 for the same one.

    The root of the squared doublings of each dimension; other ops, another instruction-set level,
    other threads or caches add to it.

    Examples
    --------
    >>> near, far = (Workload("stage", "relu", "", n, dims={"rows": n}) for n in (64, 256))
    >>> distance(near, "avx2", far, "avx2")
    2.0
    """
    names = {**one.dims, **other.dims}
    squares = [
        math.log2((1 + abs(one.dims.get(name, 0))) / (1 + abs(other.dims.get(name, 0)))) ** 2
        if min(one.dims.get(name, 0), other.dims.get(name, 0)) <= 0
        else math.log2(one.dims[name] / other.dims[name]) ** 2
        for name in names
    ]
    total = math.sqrt(sum(squares))
    total += _OTHER_OP * (one.op != other.op)
    total += _OTHER_ISA * (isa != other_isa)
    total += _OTHER_MEMORY * ((one.threads, one.cache) != (other.threads, other.cache))
    return total


def relatives(task: Task, records: Iterable[Record]) -> list[Relative]:
    """Return the nearest workloads of a task's kind among records, the nearest first.

    The same workload counts as well where it was measured for another level or processor; a config
    that was measured several times counts by its last record.
    """
    groups: dict[tuple[Workload, Place], list[Record]] = {}
    for record in records:
        if record.workload.kind == task.workload.kind:
            groups.setdefault((record.workload, record.place), []).append(record)
    found = []
    for (_, place), members in groups.items():
        last = {config_id(r.config): (r.config, r.relative) for r in members}
        workload = members[0].workload
        far = distance(task.workload, task.isa, workload, place.isa)
        far += _OTHER_KNOBS * _unlike(task.space.default, members[-1].config)
        results = tuple(last.values())[-RECORDS:]
        default = next((r.config for r in reversed(members) if r.phase == "default"), None)
        found.append(Relative(workload, place.isa, far, results, default))
    found.sort(key=lambda r: (r.distance, r.workload.id, r.isa))
    return found[:NEAREST]


def _unlike(one: Config, other: Config) -> float:
    """Return the share of knobs that only one of two configs has."""
    return 1 - len(one.keys() & other.keys()) / len(one.keys() | other.keys())


def lessons(found: Sequence[Relative]) -> list[Known]:
    """Return what the cost model learns of related workloads; the nearer, the more it counts."""
    return [
        Known(
            [features_of(r.workload, r.isa, config, r.default) for config, _ in r.results],
            [None if relative is None else 1 / relative for _, relative in r.results],
            1 / (1 + r.distance),
        )
        for r in found
        if len(r.results) > 1
    ]


def transferred(task: Task, found: Sequence[Relative], count: int) -> list[dict[str, KnobValue]]:
    """Return the best configs of related workloads, adapted to the task's space.

    Each workload in turn, the nearest first, gives its best, then each its second, and so on.
    """
    chosen: dict[str, dict[str, KnobValue]] = {}
    best = [relative.best(count) for relative in found]
    for place in range(count):
        for configs in best:
            if len(configs) > place:
                config = task.space.adapted(configs[place])
                if config is not None:
                    chosen.setdefault(config_id(config), config)
    return list(chosen.values())[:count]
