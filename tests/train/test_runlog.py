"""The log of training runs: what is written is read, what was cut off is told."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from lutcc.errors import InputError, LogError
from lutcc.train.runlog import RunLog, RunRecord


def record(run: str = "a/0", step: int = 1, **values: object) -> RunRecord:
    return RunRecord(run=run, method="exact", seed=0, step=step, **values)  # type: ignore[arg-type]


@pytest.fixture
def log(tmp_path: Path) -> RunLog:
    return RunLog(tmp_path / "new" / "runs.jsonl")


def test_records_come_back(log):
    written = [
        record(step=0, settings={"epochs": 3, "rates": [0.1]}),
        record(step=10, loss=1.5, epoch=0.5, macs=10, exact_macs=20, bytes=1, dense_bytes=2),
        record(step=20, accuracy=0.75, split="test", seconds=1.25, task="digits ×", final=True),
    ]
    for each in written:
        log.write(each)
    assert log.read() == written
    lines = log.path.read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[1]).keys() == {
        "run", "method", "seed", "step", "loss", "epoch", "macs", "exact_macs", "bytes",
        "dense_bytes",
    }  # fmt: skip


def test_losses_that_are_not_finite(log):
    log.write(record(loss=math.nan))
    log.write(record(loss=math.inf))
    assert "NaN" not in log.path.read_text()
    first, second = log.read()
    assert math.isnan(first.loss)
    assert second.loss == math.inf


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"loss": "low"}, "loss='low' is not a number"),
        ({"seconds": True}, "seconds=True is not a number"),
        ({"macs": 1.5}, "macs=1.5 is not a count"),
        ({"bytes": -1}, "bytes=-1 is not a count"),
        ({"accuracy": 97.5}, "accuracy=97.5 is not in 0..1"),
        ({"split": 3}, "split=3 is not text"),
        ({"settings": [1]}, r"settings=\[1\] is not mapping"),
        ({"step": None}, "step=None is not a count"),
    ],
)
def test_values_are_checked(values, problem):
    with pytest.raises(InputError, match=problem):
        record(**values)


def test_a_line_that_was_cut_off(log):
    log.write(record(step=1))
    log.write(record(step=2))
    os.truncate(log.path, log.path.stat().st_size - 9)
    told: list[str] = []
    assert [r.step for r in log.read(told.append)] == [1]
    assert told == [f"{log.path}:2: not a training record: it is cut off or no JSON"]
    log.write(record(step=3))  # on a line of its own
    assert [r.step for r in log.read()] == [1, 3]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("hello\n", "no log of training runs .*cut off or no JSON"),
        ('{"model": "dense", "step": 1}\n', "it lacks run, method, seed"),
        ("[1, 2]\n", "it is no JSON object"),
        ('{"run": "a", "method": "b", "seed": 0, "step": "x"}\n', "step='x' is not a count"),
    ],
)
def test_foreign_files(log, text, problem):
    log.path.parent.mkdir()
    log.path.write_text(text)
    with pytest.raises(LogError, match=problem) as caught:
        log.read()
    assert "lutcc report tuning" in str(caught.value)


def test_missing_unreadable_and_unwritable_files(log, tmp_path):
    with pytest.raises(LogError, match="there is no such file"):
        log.read()
    log.path.parent.mkdir()
    log.path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LogError, match="cannot read"):
        log.read()
    (tmp_path / "file").touch()
    with pytest.raises(LogError, match="cannot write"):
        RunLog(tmp_path / "file" / "runs.jsonl").write(record())


def test_an_empty_file_has_no_records(log):
    log.path.parent.mkdir()
    log.path.touch()
    assert log.read() == []


def test_later_fields_are_passed_over(log):
    log.path.parent.mkdir()
    log.path.write_text('{"run": "a", "method": "b", "seed": 0, "step": 1, "colour": "red"}\n')
    assert log.read()[0].method == "b"


def test_finished_runs_and_others(log):
    assert not log.finished("a/0")
    log.forget("a/0")
    log.write(record("a/0", 0, settings={"rate": 0.1, "sizes": (1, 2)}))
    log.write(record("b/0", 0))
    log.write(record("a/0", 5, accuracy=0.5, split="test"))
    assert not log.finished("a/0", {"rate": 0.1, "sizes": (1, 2)})
    log.write(record("a/0", 9, accuracy=0.5, split="test", final=True))
    assert log.finished("a/0", {"rate": 0.1, "sizes": (1, 2)})
    assert not log.finished("b/0")
    with pytest.raises(
        InputError, match=r"run 'a/0' was made with other settings: rate 0.1 -> 0.2"
    ):
        log.finished("a/0", {"rate": 0.2, "sizes": (1, 2)})
    log.forget("a/0")
    assert [r.run for r in log.read()] == ["b/0"]
    before = log.path.stat().st_mtime_ns
    log.forget("a/0")
    assert log.path.stat().st_mtime_ns == before
