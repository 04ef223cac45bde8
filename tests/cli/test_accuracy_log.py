"""The log of accuracies: what is appended is read, what is wrong or cut off is told."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import lutcc
from lutcc.errors import InputError, LogError
from lutcc.report.accuracy_log import AccuracyRun, append_run, read_runs
from lutcc.runtime import cpu


def run(**values: Any) -> AccuracyRun:
    given = {"task": "digits", "model": "64-10", "method": "maddness", "seed": 0, "value": 0.9}
    return AccuracyRun(**{**given, **values})


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "new" / "accuracy.jsonl"


def test_runs_come_back(log):
    written = [
        run(),
        run(seed=3, setting={"codebooks": 8, "K": 16, "widths": [64, 10]}, exact=0.96, epochs=2.5),
        run(metric="cosine", value=-0.2, time_us=3.5, rows=1024, threads=2, machine="A × B"),
        run(steps=10, date="2026-11-26T10:00:00Z", version="9.9"),
    ]
    for each in written:
        append_run(log, each)
    assert read_runs(log) == written
    first = json.loads(log.read_text(encoding="utf-8").splitlines()[0])
    assert "exact" not in first
    assert first["version"] == lutcc.__version__


def test_the_machine_is_named_where_there_is_a_time():
    assert run(time_us=2.0, rows=1).machine == cpu.model_name()
    assert run().machine is None
    assert run(exact=0.6).relative == pytest.approx(1.5)
    assert run().relative is None


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"value": "high"}, "value='high' is no finite number"),
        ({"value": math.nan}, "value=nan is no finite number"),
        ({"value": 97.0}, "value=97.0: an accuracy is a part of 1"),
        ({"value": None}, "value=None is no finite number"),
        ({"exact": math.inf}, "exact=inf is no finite number"),
        ({"seed": -1}, "seed=-1 is no whole number from 0 on"),
        ({"seed": True}, "seed=True is no whole number from 0 on"),
        ({"time_us": 1.0}, "time_us is given without rows"),
        ({"time_us": 0, "rows": 1}, "time_us=0 is not above 0"),
        ({"time_us": 1.0, "rows": 0}, "rows=0 is no whole number from 1 on"),
        ({"threads": 0}, "threads=0 is no whole number from 1 on"),
        ({"method": ""}, "method='' is no text"),
        ({"machine": 3}, "machine=3 is no text"),
        ({"setting": [1]}, r"setting=\[1\] is no mapping"),
        ({"setting": {"a": math.nan}}, "holds what JSON has no value for"),
        ({"setting": {"a": {1}}}, "holds what JSON has no value for"),
    ],
)
def test_wrong_values(values, problem):
    with pytest.raises(InputError, match=problem):
        run(**values)


def test_a_torn_last_line_is_skipped_with_a_note(log):
    append_run(log, run())
    with log.open("a") as file:
        file.write('{"task": "dig')
    notes: list[str] = []
    assert len(read_runs(log, notes.append)) == 1
    assert notes == [f"{log}:2: no accuracy run: it is cut off or no JSON"]
    append_run(log, run(seed=1))  # the torn line stays a line of its own
    assert [each.seed for each in read_runs(log)] == [0, 1]


def test_lines_that_are_no_runs_are_told(log):
    append_run(log, run())
    lacking = json.loads(log.read_text())
    del lacking["method"]
    timed = {**json.loads(log.read_text()), "time_us": 3.0, "rows": 1}
    later = {**json.loads(log.read_text()), "colour": "red", "seed": 5}
    lines = [b"[1]", json.dumps(lacking).encode(), json.dumps(timed).encode(), b"\xff\xfe"]
    with log.open("ab") as file:
        file.write(b"\n".join([*lines, b"", json.dumps({**lacking, "method": 3}).encode(), b""]))
        file.write(json.dumps(later).encode())
    notes: list[str] = []
    assert [each.seed for each in read_runs(log, notes.append)] == [0, 5]
    assert [note.partition("no accuracy run: ")[2] for note in notes] == [
        "it is no JSON object",
        "it lacks method",
        "it has a time without the machine",
        "it is cut off or no JSON",
        "method=3 is no text",
    ]


def test_no_log(log, tmp_path):
    with pytest.raises(LogError, match="there is no such file"):
        read_runs(log)
    (tmp_path / "other.jsonl").write_text('{"run": "a"}\n')
    with pytest.raises(LogError, match="is no log of accuracies"):
        read_runs(tmp_path / "other.jsonl")
    with pytest.raises(LogError, match="cannot be read"):
        read_runs(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LogError, match="cannot be written"):
        append_run(tmp_path / "file" / "a.jsonl", run())


def test_writers_side_by_side(log):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: append_run(log, run(seed=seed)), range(24)))
    assert sorted(each.seed for each in read_runs(log)) == list(range(24))
