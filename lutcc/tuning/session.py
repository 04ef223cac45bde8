"""A tuning session: which kernel gets the next trial, what is logged, when it is over."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

from lutcc.bench.machine import versions
from lutcc.schedules.space import Config, config_id
from lutcc.tuning.history import History
from lutcc.tuning.logfile import LogFile
from lutcc.tuning.options import SessionOptions
from lutcc.tuning.progress import Event, Progress, Summary
from lutcc.tuning.records import Outcome, Phase, Place, Record
from lutcc.tuning.runner import Runner, noisy
from lutcc.tuning.search import make_search
from lutcc.tuning.task import Task

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
        self.runner, self.options, self.place = runner, options, place
        self.on_event = on_event
        self.id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        self.kernels = [Progress(task, best=dict(task.space.default)) for task in tasks]
        self._by_workload = {p.task.workload.id: p for p in self.kernels}
        self.history = History(
            log, self.id, self._by_workload, related=related, resume=options.resume
        )
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
            self.history.read()
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
                progress.conclude(self.history.best(progress.task.workload.id))
        return Summary(
            session=self.id,
            place=self.place,
            log=self.history.log.path,
            kernels=tuple(self.kernels),
            trials=sum(p.trials for p in self.kernels),
            failures=sum(p.failures for p in self.kernels),
            seconds=time.monotonic() - start,
            interrupted=interrupted,
            warnings=tuple(self.warnings),
        )

    def _out_of_time(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

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
        known: dict[str, tuple[Config, float | None]] = {
            config_id(task.space.default): (task.space.default, 1.0)
        }
        for record in self.history.of(task.workload.id):
            if record.config in task.space and record.phase != "default":
                known[record.config_id] = (record.config, record.relative)
        progress.search = make_search(
            self.options.search,
            task,
            seed=self.options.seed,
            known=list(known.values()),
            related=self.history.related if self.options.transfer else (),
        )
        for config, relative in known.values():
            progress.note(config, relative)
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

    def _hear_from_others(self) -> None:
        """Take in what another session on the same log has appended meanwhile."""
        for record in self.history.news():
            mine = self._by_workload[record.workload.id]
            if record.config in mine.task.space and record.config_id not in mine.told:
                self.history.add(record)
                mine.tell(record.config, record.relative)

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
            progress.tell(config, relative)
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

    def _finals(self) -> None:
        """Measure the best of each kernel once more beside the default: luck does not last."""
        for progress in self.kernels:
            task = progress.task
            if progress.broken or not progress.trials:
                continue
            finalists = self._finalists(progress)
            outcomes = self.runner.final(task, [task.space.default, *finalists])
            for config, outcome in zip((task.space.default, *finalists), outcomes, strict=True):
                self._append(progress, config, outcome, outcome.ratio, "final")
            progress.conclude(self.history.best(task.workload.id))
            self.on_event(Event("final", progress))

    def _finalists(self, progress: Progress) -> list[Config]:
        task, workload = progress.task, progress.task.workload.id
        by_id = {record.config_id: record.config for record in self.history.of(workload)}
        by_id = {key: config for key, config in by_id.items() if config in task.space}
        default = config_id(task.space.default)
        found = [by_id[key] for key in progress.ranked() if key in by_id and key != default]
        found, confirmed = found[:FINALISTS], self.history.confirmed(workload)
        if confirmed is not None and confirmed in task.space:  # it is not dropped unmeasured
            found += [confirmed] if confirmed not in (task.space.default, *found) else []
        return found

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
        self.history.append(record)
        if phase == "search":
            progress.trials += 1
            progress.failures += outcome.status != "ok"
            self.on_event(Event("trial", progress, record))
        self._outcomes.append(outcome)
        self._check_noise()

    def _check_noise(self) -> None:
        if len(self._outcomes) % 16 == 0:
            warning = noisy(self._outcomes[-16:])
            if warning and warning not in self.warnings:
                self._warn(warning)

    def _warn(self, message: str) -> None:
        self.warnings.append(message)
        self.on_event(Event("warning", message=message))
