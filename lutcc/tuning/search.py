"""Which config to try next."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from lutcc.errors import UsageError, suggest
from lutcc.schedules.space import Config, KnobValue, config_id
from lutcc.tuning.costmodel import CostModel
from lutcc.tuning.features import Features, features_of
from lutcc.tuning.pool import Pool
from lutcc.tuning.records import Record
from lutcc.tuning.task import Task
from lutcc.tuning.transfer import Relative, lessons, relatives, transferred

if TYPE_CHECKING:
    from lutcc.tuning.metaschedule import MetaSchedule

Proposal: TypeAlias = dict[str, KnobValue]
#: (config, time over that of the default or None where it failed).
Result: TypeAlias = tuple[Config, float | None]

#: First trials where nothing is known of workloads of the same ops, and how many of them are
#: neighbours of the default.
FIRST, FIRST_NEAR = 6, 4
#: Otherwise, of so many of the related workloads' best configs the model chooses the first trial.
TRANSFERRED = 4
#: Spaces of so few configs are tried one by one; there is nothing to learn.
TINY = 8
_SAMPLED = 256


class Search(Protocol):
    """Proposes configs of one task, and is told what came of them."""

    def propose(self, count: int) -> list[Proposal]:
        """Return 1 to ``count`` configs to try next; none if the space is exhausted.

        Never one that was proposed or told before.
        """
        ...

    def tell(self, config: Config, score: float | None) -> None:
        """Say how fast a config was: 1 / relative time, the higher the faster; None: it failed.

        Any config of the space may be told, proposed or not.
        """
        ...


class ExhaustiveSearch:
    """Every valid config, in the space's order.

    Parameters
    ----------
    task
        What is tuned.
    known
        What has been measured already.
    """

    def __init__(self, task: Task, known: Sequence[Result] = ()) -> None:
        self._pool = Pool(task.space)
        self._order = task.space.configs()
        for config, _ in known:
            self._pool.take(config)

    def propose(self, count: int) -> list[Proposal]:
        """Return the next configs; see :class:`Search`."""
        found: list[Proposal] = []
        while len(found) < count and (config := next(self._order, None)) is not None:
            if self._pool.take(config):
                found.append(config)
        return found

    def tell(self, config: Config, score: float | None) -> None:
        """Note that the config has been tried; see :class:`Search`."""
        self._pool.take(config)


class RandomSearch:
    """Valid configs in random order.

    Parameters
    ----------
    task, known
        As for :class:`ExhaustiveSearch`.
    seed
        The same seed gives the same order.
    """

    def __init__(self, task: Task, known: Sequence[Result] = (), *, seed: int = 0) -> None:
        self._pool = Pool(task.space)
        self._rng = random.Random(seed)
        for config, _ in known:
            self._pool.take(config)

    def propose(self, count: int) -> list[Proposal]:
        """Return random configs; see :class:`Search`."""
        return _drawn(self._pool, self._rng, count)

    def tell(self, config: Config, score: float | None) -> None:
        """Note that the config has been tried; see :class:`Search`."""
        self._pool.take(config)


def _drawn(pool: Pool, rng: random.Random, count: int) -> list[Proposal]:
    """Take random configs out of a pool."""
    found: list[Proposal] = []
    while len(found) < count and (config := pool.draw(rng)) is not None:
        pool.take(config)
        found.append(config)
    return found


class MetaScheduleSearch:
    """Configs that a cost model expects to be fast, through TVM's MetaSchedule.

    First comes a config that was best for a near workload of the same ops, or neighbours of the
    default and a random sample where none is known; then what boosted trees prefer, trained on
    related workloads and on what was told.

    Parameters
    ----------
    task
        What is tuned.
    known
        What has been measured of it already: the model starts from it.
    related
        Records of other workloads, or of this one on other processors; those of other kinds are
        left out.
    seed
        The same seed and results give the same proposals.
    evolve
        Let MetaSchedule's evolutionary search choose instead of ranking all untried configs; by
        default only where the space is too large to list.
    """

    def __init__(
        self,
        task: Task,
        known: Sequence[Result] = (),
        related: Iterable[Record] = (),
        *,
        seed: int = 0,
        evolve: bool | None = None,
    ) -> None:
        self._task = task
        self._pool = Pool(task.space)
        self._rng = random.Random(seed)
        self._rows: dict[str, np.ndarray] = {}
        self._fresh: list[tuple[Config, float | None]] = []
        sample = self._pool.rest() if self._pool.listed else self._sample()
        found: list[Relative] = []
        self._driver: MetaSchedule | None = None
        if len(sample) > TINY or not self._pool.listed:
            from lutcc.tuning.metaschedule import MetaSchedule

            found = relatives(task, related)
            features = [self._features(config) for config in sample]
            self._model = CostModel(features, lessons(found), seed)
            self._driver = MetaSchedule(
                self._pool, self._model, self._encode, seed=seed, evolve=evolve
            )
        for config, relative in known:
            self.tell(config, None if relative is None else 1 / relative)
        self._first = self._first_trials(found)

    def propose(self, count: int) -> list[Proposal]:
        """Return the most promising configs; see :class:`Search`.

        Fewer than ``count`` where the first trials end: what they show is worth more than guesses.
        """
        found: list[Proposal] = []
        while self._first and len(found) < count:
            config = self._first.pop(0)
            if self._pool.take(config):
                found.append(config)
        return found or self._guided(count)

    def tell(self, config: Config, score: float | None) -> None:
        """Learn from a result; see :class:`Search`."""
        self._pool.take(config)
        if config in self._task.space:
            self._fresh.append((config, score))

    def _first_trials(self, found: Sequence[Relative]) -> list[Proposal]:
        """Return what to try before the model has seen trials of this workload.

        If workloads of the same ops are known, what the model prefers of their best configs, of all
        configs, and of the default's neighbours. If not: neighbours of the default, which is
        hand-picked, and a random sample.
        """
        if len(self._fresh) > FIRST:
            return []
        near = self._pool.neighbours(self._task.space.default)
        same = [r for r in found if r.workload.op == self._task.workload.op]
        if same:
            rest = self._pool.rest() if self._pool.listed else []
            return [
                *self._ranked(transferred(self._task, same, TRANSFERRED))[:1],
                *self._ranked(rest)[:1],
                *self._ranked(near)[:1],
            ]
        self._rng.shuffle(near)
        drawn = (self._pool.draw(self._rng) for _ in range(FIRST - FIRST_NEAR))
        return [*near[:FIRST_NEAR], *(config for config in drawn if config)]

    def _ranked(self, configs: Sequence[Proposal]) -> list[Proposal]:
        """Return configs in the order that the model prefers."""
        if not configs:
            return []
        order = np.argsort(-self._model.predict(self._encode(configs)), kind="stable")
        return [configs[i] for i in order]

    def _guided(self, count: int) -> list[Proposal]:
        """Return what the model prefers; what is left in any order where there is no model."""
        if self._driver is None:
            return _drawn(self._pool, self._rng, count)
        if self._fresh:
            self._driver.learn(self._fresh)
            self._fresh = []
        if not self._model.trained:
            return _drawn(self._pool, self._rng, count)
        found = [config for config in self._driver.propose(count) if self._pool.take(config)]
        if len(found) < count and self._pool.listed:
            more = self._ranked(self._pool.rest())[: count - len(found)]
            found += [config for config in more if self._pool.take(config)]
        return found + _drawn(self._pool, self._rng, count - len(found))

    # -- features --------------------------------------------------------------------------

    def _sample(self) -> list[Proposal]:
        """Return configs of a space that is too large to list, to see which features there are."""
        drawn = (self._pool.draw(self._rng) for _ in range(_SAMPLED))
        return [dict(self._task.space.default), *(config for config in drawn if config)]

    def _features(self, config: Config) -> Features:
        task = self._task
        return features_of(task.workload, task.isa, config, task.space.default)

    def _encode(self, configs: Sequence[Config]) -> np.ndarray:
        """Return the model's rows of configs, each computed once."""
        keys = [config_id(config) for config in configs]
        new = {k: c for k, c in zip(keys, configs, strict=True) if k not in self._rows}
        if new:
            rows = self._model.encode([self._features(config) for config in new.values()])
            self._rows.update(zip(new, rows, strict=True))
        return np.stack([self._rows[key] for key in keys])


#: Searches by name.
SEARCHES: dict[str, Callable[..., Search]] = {
    "metaschedule": MetaScheduleSearch,
    "random": lambda task, known, related, seed: RandomSearch(task, known, seed=seed),
    "exhaustive": lambda task, known, related, seed: ExhaustiveSearch(task, known),
}


def make_search(
    kind: str,
    task: Task,
    *,
    seed: int,
    known: Sequence[Result] = (),
    related: Sequence[Record] = (),
) -> Search:
    """Return a search.

    Parameters
    ----------
    kind
        ``metaschedule``, ``random`` or ``exhaustive``.
    task
        What is tuned.
    seed
        The same seed and results give the same proposals.
    known
        What has been measured already: (config, relative time or None where it failed).
    related
        Records of other workloads and processors, for ``metaschedule``.

    Raises
    ------
    UsageError
        For an unknown kind.
    """
    if kind not in SEARCHES:
        raise UsageError(f"there is no search {kind!r}", fix=suggest(kind, SEARCHES))
    return SEARCHES[kind](task, known, related, seed=seed)
