"""The runner: right results and times, and a long life beside candidates that have a short one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from lutcc.bench.layers import random_lookup_layer
from lutcc.codegen.build import link
from lutcc.errors import InputError, TargetError, UsageError
from lutcc.runtime import cpu
from lutcc.runtime.ffi import tvm_ffi
from lutcc.schedules.space import config_id
from lutcc.tuning.records import Outcome, Timing
from lutcc.tuning.rounds import Plan, compare
from lutcc.tuning.runner import LocalRunner, make_runner, noisy
from lutcc.tuning.stages import stage_tasks
from lutcc.tuning.task import Task
from tests.tuning import subjects

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 8.0  # a busy machine takes its time to build


@pytest.fixture(scope="module")
def runner() -> Iterator[LocalRunner]:
    with LocalRunner(seconds=0.04, timeout_s=TIMEOUT_S) as local:
        yield local


@pytest.fixture(scope="module")
def task(runner: LocalRunner) -> Task:
    made = subjects.task()
    outcome = runner.open(made)
    assert outcome.status == "ok", outcome
    return made


def act(runner: LocalRunner, task: Task, name: str) -> Outcome:
    return runner.measure(task, {"act": name}, task.space.default)


# -- what is right -----------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 16, 300])
def test_stages_are_measured_and_right(runner: LocalRunner, rows: int) -> None:
    isa = cpu.best_isa() or "avx2"
    (stage,) = stage_tasks(random_lookup_layer(64, 48, 8), isa, rows=(rows,))
    opened = runner.open(stage)
    assert (opened.status, opened.ratio) == ("ok", 1.0)
    configs = list(islice(stage.space.configs(), 1, 4))
    runner.prefetch(stage, configs)
    for config in configs:
        outcome = runner.measure(stage, config, stage.space.default)
        assert outcome.status == "ok", outcome.message
        assert outcome.timing is not None
        assert outcome.ratio is not None
        assert 0.1 < outcome.ratio < 10
        assert 0 < outcome.timing.best <= outcome.timing.p20 <= outcome.timing.median
        assert outcome.timing.median <= outcome.timing.p80
        assert outcome.timing.calls >= 4
        assert outcome.build_s > 0
        assert 0 < outcome.measure_s < outcome.total_s


def test_a_config_beside_itself_is_as_fast(runner: LocalRunner, task: Task) -> None:
    ratios = sorted(act(runner, task, "fine").ratio or 0.0 for _ in range(3))
    assert 0.8 < ratios[1] < 1.25


def test_twice_the_work_takes_twice_the_time_and_is_given_up(
    runner: LocalRunner, task: Task
) -> None:
    outcome = act(runner, task, "twice")
    for _ in range(3):
        if not outcome.stopped:  # other work disturbed both: no time is certain enough to give up
            outcome = act(runner, task, "twice")
    assert outcome.status == "ok"
    assert outcome.stopped
    assert outcome.ratio is not None
    assert 1.5 < outcome.ratio < 3
    full = act(runner, task, "fine")
    assert full.timing is not None
    assert outcome.timing is not None
    assert not full.stopped
    assert outcome.timing.calls < full.timing.calls


def test_a_very_slow_candidate_costs_little(runner: LocalRunner, task: Task) -> None:
    outcome = act(runner, task, "very_slow")
    assert outcome.status == "ok"
    assert outcome.stopped
    assert outcome.ratio is not None
    assert outcome.ratio > 100


def test_final_times_all_against_the_first(runner: LocalRunner, task: Task) -> None:
    acts = ("fine", "twice", "wrong", "fine")
    outcomes = runner.final(task, [{"act": name} for name in acts])
    assert [o.status for o in outcomes] == ["ok", "ok", "wrong_result", "ok"]
    assert outcomes[0].ratio == 1.0
    assert outcomes[1].ratio is not None
    assert 1.5 < outcomes[1].ratio < 3
    assert outcomes[3].ratio is not None
    assert 0.8 < outcomes[3].ratio < 1.25
    assert not any(o.stopped for o in outcomes)


def test_cold_caches_are_slower_than_hot_ones(runner: LocalRunner) -> None:
    """The tables of this layer fit the second cache level; if cold, they come from memory."""
    isa = cpu.best_isa() or "avx2"
    medians = {}
    for cache in ("hot", "cold"):
        (stage,) = stage_tasks(random_lookup_layer(512, 256, 64), isa, rows=(16,), cache=cache)
        outcome = runner.open(stage)
        assert outcome.timing is not None
        medians[cache] = outcome.timing.median
    assert medians["cold"] > 1.2 * medians["hot"] > 0


# -- what is wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wrong", "nan", "untouched"])
def test_wrong_results_are_not_timed(runner: LocalRunner, task: Task, name: str) -> None:
    outcome = act(runner, task, name)
    assert outcome.status == "wrong_result"
    assert outcome.message == f"{subjects.SIZE} of {subjects.SIZE} elements are wrong"
    assert outcome.timing is None
    assert outcome.ratio is None


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("raise", "compile_error", "RuntimeError: the telling line"),
        ("raise_lutcc", "compile_error", "stage: registers have run out"),
        ("build_llvm_error", "crash", "LLVM ERROR"),
        ("build_hang", "timeout", "while it was built: no answer within 8 s"),
        ("run_strlen", "crash", "SIGSEGV"),
        ("run_sleep", "timeout", "no answer within 8 s"),
        ("crash_when_timed", "crash", "SIGABRT"),
    ],
)
def test_failures_are_told_and_survived(
    runner: LocalRunner, task: Task, name: str, status: str, message: str
) -> None:
    outcome = act(runner, task, name)
    assert outcome.status == status
    assert message in outcome.message
    assert outcome.ratio is None
    assert act(runner, task, "fine").status == "ok"


def test_what_libraries_print_does_no_harm(
    runner: LocalRunner, task: Task, capfd: pytest.CaptureFixture[str]
) -> None:
    assert act(runner, task, "build_print").status == "ok"
    assert capfd.readouterr() == ("", "")


def test_a_bad_candidate_among_prefetched_ones_spoils_no_other(
    runner: LocalRunner, task: Task
) -> None:
    fresh = subjects.task()
    assert runner.open(fresh).status == "ok"
    configs = [{"act": name} for name in ("build_abort", "twice", "raise", "slow")]
    runner.prefetch(fresh, configs)
    outcomes = [runner.measure(fresh, c, fresh.space.default) for c in configs]
    assert [o.status for o in outcomes] == ["crash", "ok", "compile_error", "ok"]
    assert outcomes[0].message == "while it was built: SIGABRT: about to abort"


def test_an_incumbent_that_fails_leaves_no_ratio(runner: LocalRunner, task: Task) -> None:
    outcome = runner.measure(task, {"act": "fine"}, {"act": "wrong"})
    assert (outcome.status, outcome.ratio) == ("ok", None)
    assert "the incumbent fails (wrong_result)" in outcome.message


def test_tasks_that_are_broken_themselves(runner: LocalRunner, task: Task) -> None:
    raising = runner.open(subjects.task(subjects.Lengthen(inputs_raise=True)))
    assert (raising.status, raising.message) == ("compile_error", "ValueError: no inputs today")
    leaving = runner.open(subjects.task(subjects.Lengthen(reference_exits=True)))
    assert (leaving.status, leaving.message) == ("crash", "exit code 7: giving up")
    assert act(runner, task, "fine").status == "ok"


def test_a_subject_must_be_importable(runner: LocalRunner) -> None:
    class Local(subjects.Lengthen):
        pass

    with pytest.raises(InputError, match="cannot be sent to the measuring process"):
        runner.open(subjects.task(Local()))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_two_threads(task: Task) -> None:
    isa = cpu.best_isa() or "avx2"
    (stage,) = stage_tasks(random_lookup_layer(64, 48, 8), isa, rows=(300,), threads=2)
    with LocalRunner(seconds=0.04, threads=2) as both:
        assert len(both.cores) == 2
        opened = both.open(stage)
        assert opened.status == "ok", opened.message
        with pytest.raises(InputError, match="runs on 1 threads, the runner has 2"):
            both.open(task)


@pytest.mark.parametrize("fast", [True, False])
def test_a_bare_linker_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    module = subjects.build("fine")
    if not fast:  # no C compiler
        which = shutil.which
        monkeypatch.setattr(shutil, "which", lambda name: which(name) if name == "ld" else None)
    link(module, tmp_path / "kernel.so", fast=fast)
    loaded = tvm_ffi().load_module(str(tmp_path / "kernel.so"))
    x, y = np.zeros(subjects.SIZE, np.float32), np.zeros(subjects.SIZE, np.float32)
    loaded["main"](tvm_ffi().from_dlpack(x), tvm_ffi().from_dlpack(y))
    np.testing.assert_array_equal(y, subjects.lengthened(x))
    assert [path.name for path in tmp_path.iterdir()] == ["kernel.so"]


# -- arguments, places, noise ------------------------------------------------------------------


def test_places_name_the_processor(runner: LocalRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    place = runner.place("avx2", None)
    assert place.cpu
    assert place.model == cpu.model_name()
    assert (place.isa, place.mcpu) == ("avx2", None)
    assert "avx2" in place.features
    with pytest.raises(TargetError, match="cannot run kernels of level avx9"):
        runner.place("avx9", None)


def test_arguments_are_checked() -> None:
    usable = sorted(os.sched_getaffinity(0))
    with pytest.raises(UsageError, match="threads need as many cores"):
        LocalRunner(threads=len(usable) + 1)
    with pytest.raises(UsageError, match="cannot be measured on"):
        LocalRunner(core=max(usable) + 1)
    with pytest.raises(UsageError, match="zero seconds"):
        LocalRunner(seconds=0)
    with pytest.raises(UsageError, match="names no runner"):
        make_runner("remote")
    with LocalRunner(core=usable[0]) as chosen:
        assert chosen.cores == [usable[0]]


def test_noise_is_told() -> None:
    timing = Timing(1.0, 1.0, 0.9, 1.1, 10)
    quiet = [Outcome("ok", timing, 1.0, spread=0.02)] * 9
    loud = [Outcome("ok", timing, 1.0, spread=0.3)] * 10
    assert noisy([]) is None
    assert noisy(quiet) is None
    assert noisy([Outcome("crash", spread=9.0)]) is None
    warning = noisy(quiet + loud)
    assert warning is not None
    assert "30%" in warning


# -- rounds ------------------------------------------------------------------------------------


class Clockwork:
    """A kernel whose samples are given."""

    def __init__(self, seconds: Sequence[float]) -> None:
        self.seconds, self.turns = seconds, 0

    def samples(self, number: int, repeat: int) -> list[float]:
        self.turns += 1
        return [self.seconds[self.turns % len(self.seconds)]] * repeat


def test_clear_results_take_fewer_rounds_than_close_ones() -> None:
    turns = {}
    for name, ratio in (("hopeless", 2.0), ("clear", 1.2), ("close", 1.001)):
        candidate = Clockwork([ratio * 1e-3])
        first, second = compare([Clockwork([1e-3]), candidate], Plan(seconds=60, rounds=8))
        assert first.ratio == 1.0
        assert second.ratio == pytest.approx(ratio)
        assert second.stopped == (name == "hopeless")
        turns[name] = candidate.turns - 1  # one is to find out how long it takes
    assert turns == {"hopeless": 2, "clear": 4, "close": 16}


def test_one_slow_round_does_not_decide() -> None:
    candidate = Clockwork([1e-3, 1e-3, 9e-3, 1e-3])
    _, second = compare([Clockwork([1e-3]), candidate], Plan(seconds=60, rounds=8))
    assert second.ratio == pytest.approx(1.0)
    assert not second.stopped


# -- the end -----------------------------------------------------------------------------------

_SCRIPT = """
import signal, sys, time
from lutcc.tuning.runner import LocalRunner
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
from tests.tuning import subjects
runner = LocalRunner(timeout_s=100)
task = subjects.task()
print(runner.open(task).status, runner._measurer._process.pid, runner._builder._process.pid,
      runner._folder, flush=True)
while True:
    try:
        runner.measure(task, {"act": sys.argv[1]}, task.space.default)
    except KeyboardInterrupt:
        outcome = runner.measure(task, {"act": "twice"}, task.space.default)
        print(outcome.status, outcome.stopped, flush=True)
        runner.close()
        break
"""


def start(name: str) -> tuple[subprocess.Popen[str], list[int], Path]:
    """Start a script that measures a candidate; returns it, its children and their folder."""
    script = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, name], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    watchdog = threading.Timer(120, script.kill)  # a script that hangs must not hang the tests
    watchdog.daemon = True
    watchdog.start()
    assert script.stdout is not None
    status, measurer, builder, folder = script.stdout.readline().split()
    assert status == "ok"
    time.sleep(0.5)  # it is in the midst of it now
    return script, [int(measurer), int(builder)], Path(folder)


def gone(pid: int) -> bool:
    """Whether a process has ended (it may not have been waited for)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state in "ZX"


def all_gone(pids: Sequence[int]) -> bool:
    deadline = time.monotonic() + 10
    while not all(gone(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("name", ["run_spin", "build_spin"])
def test_nothing_is_left_of_a_runner_that_is_killed(name: str) -> None:
    script, children, folder = start(name)
    assert not any(gone(pid) for pid in children)
    script.kill()
    script.wait()
    assert all_gone(children)
    assert folder.exists()
    with LocalRunner():  # the next runner clears up
        assert not folder.exists()


def test_ctrl_c_interrupts_and_the_runner_goes_on() -> None:
    script, children, folder = start("run_sleep")
    script.send_signal(signal.SIGINT)
    assert script.stdout is not None
    assert script.stdout.readline().split() == ["ok", "True"]
    assert script.wait(20) == 0
    assert all_gone(children)
    assert not folder.exists()


def test_configs_are_told_apart_by_their_knobs(runner: LocalRunner, task: Task) -> None:
    """Two equal configs are built once."""
    assert config_id({"act": "fine"}) == config_id(dict(task.space.default))
    before = list(runner._folder.glob("*.so"))
    assert act(runner, task, "fine").status == "ok"
    assert list(runner._folder.glob("*.so")) == before
