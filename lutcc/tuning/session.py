"""A tuning session: which kernel gets the next trial, what is logged, when it is over."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from lutcc.bench.machine import versions
from lutcc.errors import InputError
from lutcc.schedules.space import Config, config_id
from lutcc.tuning.logfile import LogFile, best
from lutcc.tuning.records import Outcome, Phase, Place, Record
from lutcc.tuning.runner import Runner
from lutcc.tuning.search import Search, make_search
from lutcc.tuning.task import Task

#: Trials per kernel of each ``--effort``.
EFFORTS = {"none": 0, "quick": 16, "full": 128}
#: Every kernel gets this many trials, however small its share (if its space has them).
LEAST_TRIALS = 4
#: Trials of one kernel before the next has its turn: changing kernels costs a build.
TURN = 16
#: A ratio below this is not noise.
CLEARLY = 0.8
#: Trials that are chosen together: the cost model learns from them before it chooses the next.
BATCH = 4
#: So many of the best are measured once more, longer, at the end.
FINALISTS = 3
#: About what that takes for a kernel.
FINAL_SECONDS = 1.0


@dataclass(frozen=True)
class SessionOptions:
    """What a session may spend.

    Attributes
    ----------
    trials
        Trials per kernel on average; the sum is shared out by each kernel's part of the model's
        time. Trials that the log has already count.
    budget_s
        Seconds of wall time after which no new trial starts, or None.
    seed
        Of the search and of the data.
    resume
        Go on from what the log knows of the same workloads on the same processor.
    search
        ``metaschedule`` (evolutionary search with an XGBoost cost model), ``random`` or
        ``exhaustive``.
    transfer
        Let records of other workloads and processors seed the search.
    """

    trials: int = 64
    budget_s: float | None = None
    seed: int = 0
    resume: bool = True
    search: str = "metaschedule"
    transfer: bool = True

    def __post_init__(self) -> None:
        if self.trials < 0:
            raise InputError(f"trials is {self.trials}", where="tune", fix="use 0 or more")
        if self.budget_s is not None and self.budget_s <= 0:
            raise InputError(f"the budget is {self.budget_s} s", where="tune", fix="use more")


@dataclass
class Progress:
    """One kernel's way through a session; what a progress display reads.

    Attributes
    ----------
    task
        The kernel.
    wanted, tried
        Trials it is to get, and has had (those of earlier sessions among them).
    best, relative
        Best config so far, and its time over the default's.
    default_s
        Median seconds of the default config.
    failures, trials
        Failed trials and all trials of this session.
    tuned
        Whether the final measurement confirmed a config that is faster than the default.
    """

    task: Task
    wanted: int = 0
    tried: int = 0
    best: Config = field(default_factory=dict)
    relative: float = 1.0
    default_s: float = 0.0
    failures: int = 0
    trials: int = 0
    exhausted: bool = False
    tuned: bool = False
    broken: str = ""
    search: Search | None = None
    told: dict[str, float | None] = field(default_factory=dict)

    @property
    def share_s(self) -> float:
        """Seconds of one run of the model that this kernel takes as it is now."""
        return self.task.calls * self.default_s * self.relative

    @property
    def open(self) -> bool:
        """Whether it is to get more trials."""
        return not (self.broken or self.exhausted) and self.tried < self.wanted


@dataclass(frozen=True)
class Event:
    """Something that happened; ``kind`` is ``task``, ``trial``, ``final`` or ``warning``."""

    kind: str
    progress: Progress | None = None
    record: Record | None = None
    message: str = ""


@dataclass(frozen=True)
class Summary:
    """What a session did.

    Attributes
    ----------
    session, place, log
        Its id, the processor, the log file.
    kernels
        Every kernel's progress.
    trials, failures, seconds
        Of this session.
    interrupted
        It was stopped by Ctrl-C; everything measured is in the log.
    warnings
        E.g. that the machine was noisy.
    """

    session: str
    place: Place
    log: Path
    kernels: tuple[Progress, ...]
    trials: int
    failures: int
    seconds: float
    interrupted: bool
    warnings: tuple[str, ...]

    def speedup(self) -> float | None:
        """Return the time of the model before over after, or None if nothing was measured.

        Kernels count by their share; runs (batch sizes, models) are averaged geometrically.
        """
        from statistics import geometric_mean

        ratios = []
        for run in {p.task.run for p in self.kernels}:
            group = [p for p in self.kernels if p.task.run == run and p.default_s]
            if group:
                before = sum(p.task.calls * p.default_s for p in group)
                ratios.append(before / sum(p.share_s for p in group))
        return geometric_mean(ratios) if ratios else None


class Session:
    """Tunes tasks of one target with one runner into one log.

    Parameters
    ----------
    tasks
        At least one; all of the same instruction-set level.
    runner
        Measures; it is not closed.
    log
        The log file to read and append to.
    options
        What it may spend.
    related
        Records of other workloads or processors to learn from.
    on_event
        Called for everything that happens, in this thread.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        runner: Runner,
        log: LogFile,
        options: SessionOptions,
        *,
        place: Place,
        related: Iterable[Record] = (),
        on_event: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self.runner, self.log, self.options, self.place = runner, log, options, place
        self.on_event = on_event
        self.related = list(related)
        self.id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        self.kernels = [Progress(task, best=dict(task.space.default)) for task in tasks]
        self.warnings: list[str] = []
        self._versions = versions()
        self._outcomes: list[Outcome] = []

    # -- the whole session -----------------------------------------------------------------

    def run(self) -> Summary:
        """Tune until the trials, the time or the spaces are used up, or Ctrl-C."""
        start = time.monotonic()
        self._deadline = None
        if self.options.budget_s is not None:  # some of it is for the last measurements
            finals = min(0.2 * self.options.budget_s, FINAL_SECONDS * len(self.kernels))
            self._deadline = start + self.options.budget_s - finals
        interrupted = False
        try:
            self._learn_history()
            for progress in self.kernels:
                self._open(progress)
            self._share_out()
            while (progress := self._next()) is not None:
                self._turn(progress)
            self._finals()
        except KeyboardInterrupt:
            interrupted = True
        for progress in self.kernels:
            if progress.search is not None:
                self._conclude(progress)
        return Summary(
            session=self.id,
            place=self.place,
            log=self.log.path,
            kernels=tuple(self.kernels),
            trials=sum(p.trials for p in self.kernels),
            failures=sum(p.failures for p in self.kernels),
            seconds=time.monotonic() - start,
            interrupted=interrupted,
            warnings=tuple(self.warnings),
        )

    def _out_of_time(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    # -- what is known already -------------------------------------------------------------

    def _learn_history(self) -> None:
        """Take in the log: results of these workloads on this processor; others are related."""
        self._by_workload = {p.task.workload.id: p for p in self.kernels}
        self._history: dict[str, list[Record]] = {key: [] for key in self._by_workload}
        self._confirmed: dict[str, list[Config]] = {}
        earlier: list[Record] = []
        for record in self.log.read():
            mine = self._by_workload.get(record.workload.id)
            if mine is None:
                self.related.append(record)
                continue
            earlier.append(record)
            if self.options.resume:
                self._history[record.workload.id].append(record)
        for key, record in best(earlier).items():
            self._confirmed[key] = [record.config]
        self._seen = self._size()

    def _size(self) -> int:
        return self.log.path.stat().st_size if self.log.path.exists() else 0

    def _hear_from_others(self) -> None:
        """Take in what another session on the same log has appended meanwhile."""
        if self._size() == self._seen:
            return
        for record in self.log.read():
            mine = self._by_workload.get(record.workload.id)
            if mine is None or record.session == self.id or not self.options.resume:
                continue
            if record.config in mine.task.space and record.config_id not in mine.told:
                self._history[record.workload.id].append(record)
                self._tell(mine, record.config, record.relative)
        self._seen = self._size()

    # -- one kernel ------------------------------------------------------------------------

    def _open(self, progress: Progress) -> None:
        """Measure the default config, and make the search from what is known."""
        if self._out_of_time():
            progress.broken = "no time left"
            return
        task = progress.task
        outcome = self.runner.open(task)
        self._append(progress, task.space.default, outcome, 1.0, "default")
        if outcome.status != "ok" or outcome.timing is None:
            progress.broken = f"{outcome.status}: {outcome.message}"
            self._warn(
                f"{task.name}: the default config fails ({progress.broken}); it is not tuned"
            )
            return
        progress.default_s = outcome.timing.median
        history = self._history[task.workload.id]
        known: dict[str, tuple[Config, float | None]] = {
            config_id(task.space.default): (task.space.default, 1.0)
        }
        for record in history:
            if record.config in task.space and record.phase != "default":
                known[record.config_id] = (record.config, record.relative)
        progress.search = make_search(
            self.options.search,
            task,
            seed=self.options.seed,
            known=list(known.values()),
            related=self.related if self.options.transfer else (),
        )
        for config, relative in known.values():
            self._note(progress, config, relative)
        self.on_event(Event("task", progress))

    def _share_out(self) -> None:
        """Decide how many trials each kernel gets: by its share of the run it belongs to."""
        for run in {p.task.run for p in self.kernels}:
            group = [p for p in self.kernels if p.task.run == run and not p.broken]
            total = sum(p.share_s for p in group)
            for p in group:
                share = p.share_s / total if total else 0.0
                wanted = max(LEAST_TRIALS, round(self.options.trials * len(group) * share))
                p.wanted = wanted if self.options.trials else 0

    def _next(self) -> Progress | None:
        """Return the kernel that is furthest behind its allotment; stay while its turn lasts."""
        if self._out_of_time():
            return None
        waiting = [p for p in self.kernels if p.open]
        return min(waiting, key=lambda p: p.tried / p.wanted, default=None)

    def _turn(self, progress: Progress) -> None:
        search = progress.search
        assert search is not None
        self._hear_from_others()
        left = min(TURN, progress.wanted - progress.tried)
        while left > 0:
            configs = search.propose(min(BATCH, left))
            if not configs:
                progress.exhausted = True
                return
            left -= len(configs)
            if not self._measure(progress, configs):
                return

    def _measure(self, progress: Progress, configs: Sequence[Config]) -> bool:
        """Measure configs; False if the time is up."""
        task = progress.task
        for index, config in enumerate(configs):
            if self._out_of_time():
                return False
            self.runner.prefetch(task, configs[index + 1 :])
            outcome = self.runner.measure(task, config, progress.best)
            relative = None
            if outcome.ratio is not None:
                relative = outcome.ratio * progress.relative
                if relative < progress.relative:
                    relative = self._confirmed_relative(task, config, outcome.ratio, progress)
            self._append(progress, config, outcome, relative, "search")
            self._tell(progress, config, relative)
        return True

    def _confirmed_relative(
        self, task: Task, config: Config, ratio: float, progress: Progress
    ) -> float | None:
        """Measure what beat the incumbent against the default itself.

        Products of ratios would pile up the luck of every incumbent before it.
        """
        if progress.best == task.space.default and ratio < CLEARLY:
            return ratio  # that was against the default already, and by far
        return self.runner.final(task, [task.space.default, config])[1].ratio

    def _tell(self, progress: Progress, config: Config, relative: float | None) -> None:
        if progress.search is not None:
            progress.search.tell(config, None if relative is None else 1.0 / relative)
        self._note(progress, config, relative)

    def _note(self, progress: Progress, config: Config, relative: float | None) -> None:
        """Count a result, and make it the incumbent if it is the best."""
        key = config_id(config)
        progress.tried += key not in progress.told
        progress.told[key] = relative
        if relative is not None and relative < progress.relative:
            progress.best, progress.relative = config, relative

    def _finals(self) -> None:
        """Measure the best of each kernel once more beside the default: luck does not last."""
        for progress in self.kernels:
            task = progress.task
            if progress.broken or not progress.trials:
                continue
            ranked = sorted(
                (relative, key) for key, relative in progress.told.items() if relative is not None
            )
            by_id = {config_id(c): c for c in self._configs(progress)}
            default = config_id(task.space.default)
            finalists = [by_id[k] for _, k in ranked if k in by_id and k != default][:FINALISTS]
            for config in self._confirmed.get(task.workload.id, []):  # none is dropped unmeasured
                if config in task.space and config not in (task.space.default, *finalists):
                    finalists.append(config)
            outcomes = self.runner.final(task, [task.space.default, *finalists])
            for config, outcome in zip((task.space.default, *finalists), outcomes, strict=True):
                self._append(progress, config, outcome, outcome.ratio, "final")
            self._conclude(progress)
            self.on_event(Event("final", progress))

    def _conclude(self, progress: Progress) -> None:
        """Take for best what a compiler that reads the log will take."""
        key = progress.task.workload.id
        chosen = best(self._history[key]).get(key)
        progress.best, progress.relative = progress.task.space.default, 1.0
        if chosen is not None and chosen.relative is not None and chosen.relative < 1.0:
            progress.best, progress.relative = chosen.config, chosen.relative
        progress.tuned = progress.relative < 1.0

    def _configs(self, progress: Progress) -> list[Config]:
        records = self._history[progress.task.workload.id]
        return [r.config for r in records if r.config in progress.task.space]

    # -- the log ---------------------------------------------------------------------------

    def _append(
        self,
        progress: Progress,
        config: Config,
        outcome: Outcome,
        relative: float | None,
        phase: Phase,
    ) -> None:
        record = Record(
            workload=progress.task.workload,
            config=dict(config),
            place=self.place,
            outcome=outcome,
            relative=relative if outcome.status == "ok" else None,
            phase=phase,
            session=self.id,
            seed=self.options.seed,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=self._versions,
        )
        self.log.append(record)
        self._history[progress.task.workload.id].append(record)
        if phase == "search":
            progress.trials += 1
            progress.failures += outcome.status != "ok"
            self.on_event(Event("trial", progress, record))
        self._outcomes.append(outcome)
        self._check_noise()

    def _check_noise(self) -> None:
        from lutcc.tuning.runner import noisy

        if len(self._outcomes) % 16 == 0:
            warning = noisy(self._outcomes[-16:])
            if warning and warning not in self.warnings:
                self._warn(warning)

    def _warn(self, message: str) -> None:
        self.warnings.append(message)
        self.on_event(Event("warning", message=message))
