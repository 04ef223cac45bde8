"""Sessions with a runner that computes its times: what is tried, logged, resumed and concluded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lutcc.errors import InputError
from lutcc.schedules.space import Config, Knob, Space, config_id
from lutcc.tuning.logfile import LogFile, best
from lutcc.tuning.options import SessionOptions
from lutcc.tuning.progress import Event
from lutcc.tuning.records import Outcome, Place, Timing
from lutcc.tuning.session import LEAST_TRIALS, Session
from lutcc.tuning.task import Task
from lutcc.tuning.workload import Workload

PLACE = Place("znver5", "a processor", "avx2", None, ("avx2", "fma"))


def space() -> Space:
    return Space(
        (Knob("a", tuple(range(8))), Knob("b", (1, 2, 4, 8))),
        {"a": 0, "b": 1},
        lambda c: int(c["a"]) + int(c["b"]) < 12,
    )


def task(name: str, *, seconds: float = 1e-3, calls: float = 1, batch: int = 1) -> Task:
    workload = Workload("stage", name, f"kernel of {name}", rows=batch, dims={"rows": batch})
    subject: Any = _Seconds(seconds)
    return Task(name, workload, space(), subject, "avx2", calls=calls, batch=batch)


class _Seconds:
    """Stands where a subject stands; only the fake runner looks at it."""

    def __init__(self, default: float) -> None:
        self.default = default


class FakeRunner:
    """Times follow a formula; some configs fail."""

    def __init__(self, *, interrupt_at: int | None = None) -> None:
        self.measured: list[tuple[str, Config]] = []
        self.interrupt_at = interrupt_at

    def relative(self, config: Config) -> float:
        return 0.5 + 0.1 * abs(int(config["a"]) - 5) + 0.05 * abs(math.log2(int(config["b"])) - 2)

    def outcome(self, task: Task, config: Config, against: Config) -> Outcome:
        if config["a"] == 7:
            return Outcome("crash", message="LLVM ERROR: no")
        seconds = task.subject.default * self.relative(config)  # type: ignore[attr-defined]
        timing = Timing(seconds, seconds, seconds, seconds, 10)
        return Outcome("ok", timing, self.relative(config) / self.relative(against))

    def levels(self) -> tuple[str, ...]:
        return ("avx2",)

    def place(self, isa: str, mcpu: str | None) -> Place:
        return PLACE

    def open(self, task: Task) -> Outcome:
        return self.outcome(task, task.space.default, task.space.default)

    def measure(self, task: Task, config: Config, incumbent: Config) -> Outcome:
        if self.interrupt_at is not None and len(self.measured) == self.interrupt_at:
            raise KeyboardInterrupt
        self.measured.append((task.name, config))
        return self.outcome(task, config, incumbent)

    def prefetch(self, task: Task, configs: Sequence[Config]) -> None:
        assert all(config in task.space for config in configs)

    def final(self, task: Task, configs: Sequence[Config]) -> list[Outcome]:
        return [self.outcome(task, config, configs[0]) for config in configs]

    def close(self) -> None:
        pass


def session(path: Path, tasks: list[Task], runner: Any = None, **options: Any) -> tuple[Any, Any]:
    runner = runner or FakeRunner()
    made = Session(
        tasks, runner, LogFile(path), SessionOptions(**options), place=PLACE, on_event=print
    )
    return made.run(), runner


def test_finds_logs_and_concludes(tmp_path: Path) -> None:
    path = tmp_path / "znver5" / "avx2.jsonl"
    summary, runner = session(path, [task("one")], trials=100)
    progress = summary.kernels[0]
    assert progress.exhausted or progress.tried >= 30
    assert progress.tuned
    assert dict(progress.best) == {"a": 5, "b": 4}
    assert progress.relative == pytest.approx(0.5 / 1.1)
    records = LogFile(path).read()
    assert {r.phase for r in records} == {"default", "search", "final"}
    assert dict(best(records)[progress.task.workload.id].config) == {"a": 5, "b": 4}
    assert any(r.outcome.status == "crash" for r in records)
    assert all(r.relative is None for r in records if r.outcome.status != "ok")
    tried = [config_id(config) for _, config in runner.measured]
    assert len(tried) == len(set(tried))
    assert summary.failures == sum(config["a"] == 7 for _, config in runner.measured)


def test_trials_follow_the_share_of_the_time(tmp_path: Path) -> None:
    tasks = [task("big", seconds=9e-3), task("small", seconds=1e-3)]
    summary, _ = session(tmp_path / "log.jsonl", tasks, trials=10)
    big, small = summary.kernels
    assert big.trials == 17  # 18 of 20, the default among them
    assert small.tried == LEAST_TRIALS


def test_batch_sizes_do_not_compete(tmp_path: Path) -> None:
    tasks = [task("x", seconds=1e-6, batch=1), task("x", seconds=1e-2, batch=1024)]
    summary, _ = session(tmp_path / "log.jsonl", tasks, trials=12)
    assert [p.tried for p in summary.kernels] == [12, 12]


def test_resumes_without_repeating(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    first, one = session(path, [task("x")], trials=8)
    again, none = session(path, [task("x")], trials=8)
    assert none.measured == []
    assert again.trials == 0
    assert again.kernels[0].relative == first.kernels[0].relative
    more, two = session(path, [task("x")], trials=16)
    assert more.trials == 8
    ids = [config_id(c) for _, c in one.measured + two.measured]
    assert len(ids) == len(set(ids)) == 15


def test_failed_configs_are_not_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    session(path, [task("x")], trials=1000)
    _, again = session(path, [task("x")], trials=1000)
    assert again.measured == []


def test_no_resume_measures_again_and_keeps_the_log(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    session(path, [task("x")], trials=8)
    before = path.read_text()
    _, runner = session(path, [task("x")], trials=8, resume=False)
    assert len(runner.measured) == 7
    assert path.read_text().startswith(before)


def test_interrupted_keeps_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    summary, runner = session(path, [task("x")], FakeRunner(interrupt_at=5), trials=20)
    assert summary.interrupted
    assert sum(r.phase == "search" for r in LogFile(path).read()) == len(runner.measured) == 5


def test_a_default_that_fails_is_told_and_left(tmp_path: Path) -> None:
    class Broken(FakeRunner):
        def open(self, task: Task) -> Outcome:
            return Outcome("wrong_result", message="output 0 differs")

    events: list[Event] = []
    made = Session(
        [task("x")], Broken(), LogFile(tmp_path / "l.jsonl"), SessionOptions(), place=PLACE,
        on_event=events.append,
    )  # fmt: skip
    summary = made.run()
    assert "output 0 differs" in summary.warnings[0]
    assert not summary.kernels[0].tuned
    assert [e.kind for e in events] == ["warning"]


def test_a_lucky_config_does_not_survive_the_final_measurement(tmp_path: Path) -> None:
    class Lucky(FakeRunner):
        def measure(self, task: Task, config: Config, incumbent: Config) -> Outcome:
            self.measured.append((task.name, config))
            return Outcome("ok", Timing(1e-4, 1e-4, 1e-4, 1e-4, 3), 0.9)

        def final(self, task: Task, configs: Sequence[Config]) -> list[Outcome]:
            timing = Timing(1e-3, 1e-3, 1e-3, 1e-3, 50)
            return [Outcome("ok", timing, 1.0 if c == configs[0] else 1.2) for c in configs]

    summary, _ = session(tmp_path / "log.jsonl", [task("x")], Lucky(), trials=8)
    progress = summary.kernels[0]
    assert not progress.tuned
    assert progress.relative == 1.0
    assert dict(progress.best) == {"a": 0, "b": 1}


def test_another_session_on_the_same_log_is_heard(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    other_ran = []

    class Interleaved(FakeRunner):
        def open(self, task: Task) -> Outcome:
            if not other_ran:
                other_ran.append(session(path, [_copy()], trials=10)[1].measured)
            return super().open(task)

    def _copy() -> Task:
        return task("x")

    _, runner = session(path, [task("x")], Interleaved(), trials=20)
    theirs = {config_id(c) for _, c in other_ran[0]}
    assert theirs
    assert theirs.isdisjoint(config_id(c) for _, c in runner.measured)


def test_no_budget_left_is_no_error(tmp_path: Path) -> None:
    summary, runner = session(tmp_path / "log.jsonl", [task("x")], trials=50, budget_s=1e-6)
    assert runner.measured == []
    assert summary.kernels[0].broken == "no time left"


@pytest.mark.parametrize("options", [{"trials": -1}, {"budget_s": 0.0}])
def test_wrong_options(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        SessionOptions(**options)


def test_what_an_earlier_session_confirmed_is_measured_again_not_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    first, _ = session(path, [task("x")], trials=1000)
    assert dict(first.kernels[0].best) == {"a": 5, "b": 4}
    short, runner = session(path, [task("x")], trials=4, resume=False, seed=3, transfer=False)
    assert {"a": 5, "b": 4} not in [dict(config) for _, config in runner.measured]
    assert dict(short.kernels[0].best) == {"a": 5, "b": 4}
