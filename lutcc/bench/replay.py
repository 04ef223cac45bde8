"""Replays searches against tables of measurements: every valid config of a workload, once.

What a search would have found within so many trials can so be told for many seeds, without noise
between the searches and without measuring anything twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import numpy as np

from lutcc.schedules.space import Config, Knob, Space, config_id
from lutcc.tuning.records import Record
from lutcc.tuning.search import ExhaustiveSearch, MetaScheduleSearch, RandomSearch, Search
from lutcc.tuning.task import Subject, Task
from lutcc.tuning.workload import Workload

#: Trials that a session asks for at once.
BATCH = 4

_NO_SUBJECT = cast(Subject, None)  # a replay builds nothing

MakeSearch: TypeAlias = Callable[[Task, Sequence[Any], Sequence[Record], int], Search]

SEARCHES: dict[str, MakeSearch] = {
    "metaschedule": lambda task, known, related, seed: MetaScheduleSearch(
        task, known, related, seed=seed
    ),
    "evolutionary": lambda task, known, related, seed: MetaScheduleSearch(
        task, known, related, seed=seed, evolve=True
    ),
    "random": lambda task, known, _, seed: RandomSearch(task, known, seed=seed),
    "exhaustive": lambda task, known, *_: ExhaustiveSearch(task, known),
}


@dataclass(frozen=True)
class Table:
    """Every valid config of a workload with its time.

    Attributes
    ----------
    name
        For people.
    workload, isa
        What was measured.
    space
        Made of the configs that were measured, the default first.
    records
        One per config, in the space's order.
    relative
        Config id -> time over that of the default; None where it failed.
    """

    name: str
    workload: Workload
    isa: str
    space: Space
    records: tuple[Record, ...]
    relative: dict[str, float | None] = field(repr=False)

    @classmethod
    def of(cls, name: str, records: Sequence[Record]) -> Table:
        """Return the table of one workload's records; the last of a config counts."""
        last = {r.config_id: r for r in records}
        default = next(r.config for r in records if r.phase == "default")
        knobs = tuple(
            Knob(knob, tuple(sorted({r.config[knob] for r in records}, key=_order)))
            for knob in default
        )
        relative = {key: r.relative for key, r in last.items()}
        relative[config_id(default)] = 1.0
        space = Space(knobs, default, lambda config: config_id(config) in relative)
        found = [last[config_id(config)] for config in space.configs()]
        return cls(name, found[0].workload, found[0].place.isa, space, tuple(found), relative)

    @property
    def task(self) -> Task:
        """The task to hand to a search; its subject is never asked."""
        return Task(self.name, self.workload, self.space, _NO_SUBJECT, self.isa)

    def score(self, config: Config) -> float | None:
        """Return 1 / relative time, or None where the config failed."""
        relative = self.relative[config_id(config)]
        return None if relative is None else 1 / relative

    @property
    def best(self) -> float:
        """The highest score of all that a search may propose: of all configs but the default."""
        default = config_id(self.space.default)
        return max(1 / r for key, r in self.relative.items() if r is not None and key != default)


def _order(value: Any) -> tuple[bool, Any]:
    return isinstance(value, str), value


@dataclass(frozen=True)
class Run:
    """One search on one table with one seed.

    Attributes
    ----------
    shares
        (trials,) best score among the trials so far over the best of the table. The default, which
        every session measures first, is told to the search but does not count as a trial.
    seconds
        Spent proposing and learning.
    """

    shares: np.ndarray
    seconds: float

    def trials_to(self, share: float) -> int:
        """Return after how many trials a share was reached; one more than all if it was not."""
        reached = np.flatnonzero(self.shares >= share)
        return int(reached[0]) + 1 if len(reached) else len(self.shares) + 1


def replay(
    table: Table, search: str, seed: int, trials: int, related: Sequence[Record] = ()
) -> Run:
    """Run one search against a table.

    Parameters
    ----------
    table
        What it searches.
    search
        A key of :data:`SEARCHES`.
    seed
        Of the search.
    trials
        At most so many; where the space ends before, the last share stays.
    related
        Records that it may learn from beforehand.
    """
    start = time.perf_counter()
    found = SEARCHES[search](table.task, [(table.space.default, 1.0)], related, seed)
    best, shares = 0.0, []
    while len(shares) < trials:
        configs = found.propose(min(BATCH, trials - len(shares)))
        if not configs:
            break
        for config in configs:
            score = table.score(config)
            found.tell(config, score)
            best = max(best, score or 0.0)
            shares.append(best / table.best)
    seconds = time.perf_counter() - start
    shares += [shares[-1] if shares else 0.0] * (trials - len(shares))
    return Run(np.array(shares), seconds)


def tables_of(records: Iterable[Record], names: dict[str, str] | None = None) -> list[Table]:
    """Return the table of each workload among records that has more than one config."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.workload.id, record.place.isa), []).append(record)
    found = []
    for (key, _), members in groups.items():
        if any(r.phase == "default" for r in members) and len({r.config_id for r in members}) > 1:
            found.append(Table.of((names or {}).get(key, members[0].workload.op), members))
    return found
