"""The benchmark of searches: tables out of logs, replays, what is written."""

from __future__ import annotations

import json
import math

import pytest

from lutcc.bench.replay import SEARCHES, Run, Table, replay, tables_of
from lutcc.bench.search import WORKLOADS, Collector, chosen, tables
from lutcc.bench.search_report import VARIANTS, experiment, write
from lutcc.cli.console import Console
from lutcc.errors import UsageError
from lutcc.schedules.space import Knob, Space, config_id
from lutcc.tuning.logfile import LogFile
from lutcc.tuning.records import Outcome, Place, Record, Timing
from lutcc.tuning.task import Task
from lutcc.tuning.workload import Workload

DEFAULT = {"m": 1, "r": 1, "way": "a"}
SPACE = Space(
    (Knob("m", (1, 2, 4, 8)), Knob("r", (1, 2, 3, 4, 6)), Knob("way", ("a", "b"))),
    DEFAULT,
    lambda c: int(c["m"]) * int(c["r"]) <= 24,
)


def relative(config, best=(4, 3)) -> float | None:
    if config["m"] == 8 and config["way"] == "b":
        return None
    far = abs(math.log2(int(config["m"]) / best[0])) + abs(int(config["r"]) - best[1])
    return (0.6 + 0.1 * far) / (0.6 + 0.4)


def task(rows: int = 64) -> Task:
    work = Workload("stage", "made up", f"made up {rows}", rows, dims={"rows": rows})
    return Task(f"rows {rows}", work, SPACE, None, "avx2")  # type: ignore[arg-type]


LUCKY = {"m": 1, "r": 2, "way": "a"}


class MadeUpRunner:
    """Tells what the formula says, but of one config too much where it is not measured long."""

    def __init__(self):
        self.measured = 0

    def place(self, isa, mcpu):
        return Place("znver5", "made up", isa, mcpu, ())

    def open(self, task):
        return self._outcome(task.space.default)

    def prefetch(self, task, configs):
        pass

    def measure(self, task, config, incumbent):
        self.measured += 1
        return self._outcome(config, 0.5 if config == LUCKY else None)

    def final(self, task, configs):
        return [self._outcome(c) for c in configs]

    def _outcome(self, config, ratio=None):
        ratio = ratio or relative(config)
        if ratio is None:
            return Outcome("crash", message="made to crash")
        return Outcome("ok", Timing(ratio, ratio, ratio, ratio, 9), ratio)


def collected(tmp_path, rows: int = 64) -> LogFile:
    log = LogFile(tmp_path / "tables.jsonl")
    Collector(MadeUpRunner(), log, Console(quiet=True)).collect("made up", task(rows))  # type: ignore[arg-type]
    return log


def table(tmp_path, rows: int = 64) -> Table:
    (found,) = tables_of(collected(tmp_path / str(rows), rows).read())
    return found


def test_tables_hold_every_config_and_the_best_is_confirmed(tmp_path):
    log = collected(tmp_path)
    (found,) = tables(log, {"made up": task()})
    assert found.name == "made up"
    assert len(found.relative) == len(found.records) == sum(1 for _ in SPACE.configs())
    assert dict(found.space.default) == DEFAULT
    assert found.best == pytest.approx(1 / 0.6)
    assert found.relative[config_id(LUCKY)] == pytest.approx(relative(LUCKY))
    assert sum(r is None for r in found.relative.values()) > 0
    assert {tuple(c.items()) for c in found.space.configs()} == {
        tuple(c.items()) for c in SPACE.configs()
    }


def test_nothing_is_measured_twice(tmp_path):
    log = collected(tmp_path)
    lines = log.path.read_text().splitlines()
    log.path.write_text("\n".join(lines[:10]) + "\n")  # as if it had been stopped
    runner = MadeUpRunner()
    collector = Collector(runner, log, Console(quiet=True))  # type: ignore[arg-type]
    collector.collect("made up", task())
    assert runner.measured == sum(1 for _ in SPACE.configs()) - 10
    before = runner.measured
    collector.collect("made up", task())
    assert runner.measured == before


def test_replays_end_at_the_best(tmp_path):
    found = table(tmp_path)
    for search in SEARCHES:
        run = replay(found, search, 0, 40)
        assert len(run.shares) == 40
        assert (run.shares[1:] >= run.shares[:-1]).all()
        assert run.shares[-1] == pytest.approx(1.0)
        assert run.trials_to(0.0) == 1
    assert replay(found, "random", 0, 2).trials_to(1.1) == 3


def test_runs_count_trials():
    import numpy as np

    run = Run(np.array([0.5, 0.96, 0.96, 1.0]), 0.1)
    assert (run.trials_to(0.95), run.trials_to(0.98), run.trials_to(1.01)) == (2, 4, 5)


def test_numbers_tables_and_pictures_are_written(tmp_path):
    found = [table(tmp_path, rows) for rows in (64, 128)]
    others = [table(tmp_path / "other", 64)]
    result = experiment(found, others, seeds=2, trials=8)
    assert set(result["summary"]) == {v.name for v in VARIANTS}
    for about in result["summary"].values():
        assert len(about["median"]) == 8
        assert 0 < about["share_at"]["8"]["median"] <= 1
    assert experiment(found[:1], [], seeds=1, trials=4)["summary"].keys() == {
        v.name for v in VARIANTS if not v.related
    }
    machine = {"cpu": "made up", "flags": [], "versions": dict.fromkeys(
        ("lutcc", "torch", "apache-tvm"), "1"
    )}  # fmt: skip
    write(tmp_path / "out", {"machine": machine, **result})
    assert json.loads((tmp_path / "out" / "search.json").read_text())["seeds"] == 2
    text = (tmp_path / "out" / "search.md").read_text()
    assert all(v.name in text for v in VARIANTS)
    assert (tmp_path / "out" / "search.png").stat().st_size > 10_000


def test_workloads_can_be_made():
    assert len(WORKLOADS) >= 12
    rows = set()
    for name, make in WORKLOADS.items():
        if "attention" in name or "layer_norm" in name:
            continue  # need torch's export: made when the benchmark runs
        made = make("avx2")
        rows.add(made.workload.rows)
        assert made.space.combinations > 1
    assert {1, 16384} <= rows


def test_unknown_workloads_are_refused():
    with pytest.raises(UsageError, match="no workload"):
        chosen(["lookup"])


def test_records_without_a_default_make_no_table():
    work = task().workload
    record = Record(
        work, DEFAULT, Place("c", "m", "avx2", None, ()), Outcome("ok"), 1.0, "search", "s", 0, "t"
    )
    assert tables_of([record]) == []
