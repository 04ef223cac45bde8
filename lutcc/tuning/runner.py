"""Runs candidates and says how fast they are: here, or on another machine."""

from __future__ import annotations

import pickle
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Protocol, Self

from lutcc.errors import BackendError, InputError, TargetError, UsageError
from lutcc.schedules.space import Config
from lutcc.tuning.builds import Builds
from lutcc.tuning.device import choose_cores, usable_cores
from lutcc.tuning.messages import Built, Measured, Order
from lutcc.tuning.process import Child, ChildFailed, private_folder
from lutcc.tuning.records import Outcome, Place
from lutcc.tuning.rounds import Plan, timing_of
from lutcc.tuning.task import Task

NOISY = 0.10


class Runner(Protocol):
    """Measures candidates of tasks, each against an incumbent."""

    def levels(self) -> tuple[str, ...]:
        """Return the instruction-set levels of the processor it measures on, the widest last."""
        ...

    def place(self, isa: str, mcpu: str | None) -> Place:
        """Return the processor it measures on."""
        ...

    def open(self, task: Task) -> Outcome:
        """Build, check and time the task's default config."""
        ...

    def prefetch(self, task: Task, configs: Sequence[Config]) -> None:
        """Name the configs that will be measured next, so that they are built ahead of time."""
        ...

    def measure(self, task: Task, config: Config, incumbent: Config) -> Outcome:
        """Build and check a config and time it against the incumbent."""
        ...

    def final(self, task: Task, configs: Sequence[Config]) -> list[Outcome]:
        """Time configs against the first of them, longer than :meth:`measure` does."""
        ...

    def close(self) -> None:
        """End the processes."""
        ...


@dataclass(frozen=True)
class _Checked:
    """A candidate whose results are right, and the seconds of its first call."""

    built: Built
    seconds: float

    def hopeless_beside(self, other: _Checked) -> bool:
        """Tell whether the first call, of some length, was so slow that no more need be timed."""
        return self.seconds > max(0.1, 4 * other.seconds)


class ProcessRunner:
    """Builds in one process and measures in another; both are replaced when they crash or hang.

    Use :class:`LocalRunner` or :class:`RpcRunner`.

    Parameters
    ----------
    core
        Logical processor to measure on; the last usable one by default. With several threads, the
        first of as many.
    threads
        Threads of the kernels.
    seed
        Of the data that kernels are run on.
    seconds
        Timed in each trial, see :class:`lutcc.tuning.rounds.Plan`.
    timeout_s
        For one candidate to be built, and again to be loaded and run once.
    reference_timeout_s
        For a task's inputs and reference to be computed.
    overlap
        Build the next candidates while one is timed; by default if there is a core to spare.
    """

    _remote: str | None = None

    def __init__(
        self,
        *,
        core: int | None = None,
        threads: int = 1,
        seed: int = 0,
        seconds: float = 0.15,
        timeout_s: float = 20.0,
        reference_timeout_s: float = 600.0,
        overlap: bool | None = None,
    ) -> None:
        if seconds <= 0 or timeout_s <= 0 or reference_timeout_s <= 0:
            raise UsageError("times must be above zero seconds", where=type(self).__name__)
        self._seed, self._seconds, self._timeout_s = seed, seconds, timeout_s
        self._threads = threads
        self._reference_timeout_s = reference_timeout_s
        usable = usable_cores()
        self.cores = usable if self._remote else choose_cores(core, threads)
        others = [c for c in usable if c not in self.cores]
        ahead = bool(others or self._remote) if overlap is None else overlap
        self._folder, self._lock = private_folder()
        options = {"folder": self._folder, "remote": self._remote, "threads": threads}
        environment = {"TVM_NUM_THREADS": str(threads), "TVM_BIND_THREADS": "0"}
        self._measurer = Child(
            "measure",
            self._folder,
            {**options, "role": "measure", "cores": self.cores},
            environment,
        )
        builder = Child(
            "build",
            self._folder,
            {**options, "role": "build", "cores": others or usable},
            {**environment, "TVM_NUM_THREADS": "1"},
        )
        self._builder = builder
        self._builds = Builds(builder, timeout_s, ahead=ahead)
        self._orders: dict[int, tuple[Task, Order]] = {}
        self._loaded = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes and remove their files."""
        self._measurer.kill()
        self._builder.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.close()

    def levels(self) -> tuple[str, ...]:
        """Return the instruction-set levels of the processor that it measures on."""
        self._start()
        return tuple(self._measurer.facts["levels"])

    def place(self, isa: str, mcpu: str | None) -> Place:
        """Return the processor that it measures on.

        Raises
        ------
        TargetError
            If that processor cannot run kernels of this level.
        """
        self._start()
        facts = self._measurer.facts
        place = Place(**{**facts["place"], "isa": isa, "mcpu": mcpu})
        if isa not in facts["levels"]:
            raise TargetError(
                f"{place.model} cannot run kernels of level {isa}",
                where=self._remote or "this machine",
                fix=f"choose one of {', '.join(facts['levels']) or 'none: it has no AVX2'}",
            )
        return replace(place, features=tuple(place.features))

    def open(self, task: Task) -> Outcome:
        """Build the task's default config, check it and time it.

        ``ratio`` is 1. A failure of the default is an outcome too.

        Raises
        ------
        TargetError
            If the processor cannot run kernels of the task's level.
        InputError
            If the task's subject cannot be sent to another process.
        """
        self.place(task.isa, task.mcpu)
        return self._trial(task, [task.space.default], hopeless=None)[0]

    def prefetch(self, task: Task, configs: Sequence[Config]) -> None:
        """Name the configs that will be measured next, so that they are built ahead of time."""
        self._builds.prefetch(self._order(task), configs)

    def measure(self, task: Task, config: Config, incumbent: Config) -> Outcome:
        """Build a config, check its results, and time it in turns with the incumbent.

        Returns
        -------
        Outcome
            ``ok`` with a ratio below 1 where the config is faster. Without a ratio if the incumbent
            itself fails; the message says how.
        """
        return self._trial(task, [incumbent, config], hopeless=1.5)[1]

    def final(self, task: Task, configs: Sequence[Config]) -> list[Outcome]:
        """Time all configs in turns, longer; ratios are against the first one."""
        return self._trial(task, configs, hopeless=None, longer=3.0)

    # -- one trial ---------------------------------------------------------------------------

    def _trial(
        self, task: Task, configs: Sequence[Config], *, hopeless: float | None, longer: float = 1.0
    ) -> list[Outcome]:
        """Build, check and time configs against the first."""
        start = time.perf_counter()
        order = self._order(task)
        ready: dict[int, _Checked] = {}
        outcomes: list[Outcome] = []
        for index, config in enumerate(configs):
            result = self._builds.get(order, config)
            if isinstance(result, Built):
                result, seconds = self._check(order, built := result)
                if result.status == "ok":
                    ready[index] = _Checked(built, seconds)
            outcomes.append(result)
        if 0 in ready:
            plan = Plan(
                seconds=self._seconds * longer * max(1.0, len(ready) / 2),
                rounds=round(6 * longer),
                cold=order.cold,
                hopeless=hopeless,
            )
            self._time(order, ready, plan, outcomes)
        for index in ready:
            if outcomes[0].status != "ok":
                message = f"the incumbent fails ({outcomes[0].status}): {outcomes[0].message}"
                outcomes[index] = replace(outcomes[index], message=message)
        self._builds.drain()
        total = time.perf_counter() - start
        return [replace(outcome, total_s=total) for outcome in outcomes]

    def _check(self, order: Order, built: Built) -> tuple[Outcome, float]:
        """Run a candidate once and compare its results; returns the seconds of the call too."""
        try:
            self._load(order)
            wrong, seconds = self._measurer.call("check", order, built, timeout=self._timeout_s)
        except ChildFailed as failure:
            return replace(self._survived(failure), build_s=built.seconds), 0.0
        if wrong is not None:
            return Outcome("wrong_result", message=wrong, build_s=built.seconds), seconds
        return Outcome("ok", build_s=built.seconds), seconds

    def _time(
        self, order: Order, ready: Mapping[int, _Checked], plan: Plan, outcomes: list[Outcome]
    ) -> None:
        """Time kernels that are all right and put what comes of it into ``outcomes``."""
        if plan.hopeless is not None:
            hopeless = [i for i, one in ready.items() if i and one.hopeless_beside(ready[0])]
            for i in hopeless:
                timing = timing_of([ready[i].seconds], 1)
                ratio = ready[i].seconds / ready[0].seconds
                outcomes[i] = replace(outcomes[i], timing=timing, ratio=ratio, stopped=True)
            ready = {i: one for i, one in ready.items() if i not in hopeless}
            if hopeless and len(ready) == 1:
                return
        slowest = max(one.seconds for one in ready.values())
        limit = self._timeout_s + 20 * plan.seconds + 40 * slowest * len(ready)
        try:
            for one in ready.values():  # another's crash may have taken them along
                self._load(order)
                self._measurer.call("check", order, one.built, timeout=self._timeout_s)
            measured: Measured = self._measurer.call(
                "time",
                order,
                [one.built.library for one in ready.values()],
                plan,
                timeout=limit,
            )
        except ChildFailed as failure:
            survived = self._survived(failure)
            if len(ready) > 2:  # one of them did it: each alone beside the first
                for i in [i for i in ready if i]:
                    self._time(order, {0: ready[0], i: ready[i]}, plan, outcomes)
                return
            guilty = max(ready)
            outcomes[guilty] = replace(survived, build_s=outcomes[guilty].build_s)
            return
        spread = measured.comparisons[0].timing.spread
        for i, comparison in zip(ready, measured.comparisons, strict=True):
            outcomes[i] = replace(
                outcomes[i],
                timing=comparison.timing,
                ratio=comparison.ratio,
                stopped=comparison.stopped,
                measure_s=measured.seconds,
                spread=spread,
            )

    def _survived(self, failure: ChildFailed) -> Outcome:
        """Return the outcome of what a candidate did to the measuring process."""
        self._measurer.launch()
        status = "timeout" if failure.status == "timeout" else "crash"
        return Outcome(status, message=failure.message)

    # -- processes and tasks -----------------------------------------------------------------

    def _start(self) -> None:
        self._builder.launch()  # both import TVM at the same time
        self._measurer.start()

    def _order(self, task: Task) -> Order:
        """Store a task's subject where the processes find it, once."""
        known = self._orders.get(id(task))
        if known is not None:
            return known[1]
        if task.workload.threads != self._threads:
            raise InputError(
                f"the task runs on {task.workload.threads} threads, the runner has {self._threads}",
                where=task.name,
                fix="make both with the same number of threads",
            )
        path = self._folder / f"task-{len(self._orders)}.pickle"
        try:
            path.write_bytes(pickle.dumps(task.subject))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise InputError(
                f"the subject cannot be sent to the measuring process: {error}",
                where=task.name,
                fix="let it hold texts, numbers and arrays, and be of a class in a module",
            ) from None
        cold = task.workload.cache == "cold"
        order = Order(path, task.isa, task.mcpu, self._seed, cold)
        self._orders[id(task)] = (task, order)
        return order

    def _load(self, order: Order) -> None:
        self._start()
        self._measurer.call("load", order, timeout=self._reference_timeout_s)


class LocalRunner(ProcessRunner):
    """Measures on this machine, see :class:`ProcessRunner`.

    Examples
    --------
    >>> with LocalRunner() as runner:                              # doctest: +SKIP
    ...     default = runner.open(task)
    ...     outcome = runner.measure(task, config, task.space.default)
    >>> outcome.status, outcome.ratio                              # doctest: +SKIP
    ('ok', 0.93)
    """


class RpcRunner(ProcessRunner):
    """Builds here and measures on another machine that runs ``lutcc serve-rpc``.

    Parameters
    ----------
    address
        ``rpc://host:port/key`` of a server or of a tracker.
    options
        See :class:`ProcessRunner`; ``core`` is chosen over there.
    """

    def __init__(self, address: str, **options: Any) -> None:
        from lutcc.tuning.rpc import parse_address

        parse_address(address)
        self._remote = address
        super().__init__(**options)

    def _survived(self, failure: ChildFailed) -> Outcome:
        """Tell a candidate that ends the remote process from a server that is gone."""
        if failure.status == "error":
            with suppress(ChildFailed):
                self._measurer.call("ping", timeout=self._timeout_s)
                return super()._survived(failure)
        self._measurer.kill()
        try:
            self._start()
        except BackendError as error:
            raise BackendError(
                f"the connection was lost and cannot be made again: {error.what}",
                where=self._remote,
                fix="start 'lutcc serve-rpc' there again; all trials so far are in the log, and "
                "the same command goes on from there",
            ) from None
        if failure.status == "timeout":
            return super()._survived(failure)
        return Outcome("crash", message=f"the process over there ended: {failure.message}")


def make_runner(text: str, **options: Any) -> ProcessRunner:
    """Return the runner that ``local`` or ``rpc://host:port/key`` stands for.

    Raises
    ------
    UsageError
        If it stands for none.
    """
    if text == "local":
        return LocalRunner(**options)
    return RpcRunner(text, **options)


def noisy(outcomes: Sequence[Outcome]) -> str | None:
    """Return a warning if the times of recent trials varied much, or None.

    Examples
    --------
    >>> noisy([Outcome("ok", spread=0.02)] * 8) is None
    True
    """
    spreads = [outcome.spread for outcome in outcomes if outcome.timing is not None]
    typical = statistics.median(spreads) if spreads else 0.0
    if typical <= NOISY:
        return None
    return (
        f"the machine is noisy: the time of one and the same kernel varies by {typical:.0%} (20th "
        f"to 80th percentile, median of {len(spreads)} trials), so small gains cannot be told from "
        "luck; stop other programs, choose a quieter core, or measure longer"
    )
