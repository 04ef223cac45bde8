"""Logs on disk: nothing that was acknowledged is lost, nothing wrong is read."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from lutcc.errors import LogError
from lutcc.tuning.logfile import LogFile, Problem, best, log_files, path_for
from lutcc.tuning.records import Record
from lutcc.tuning.schema import from_line, schema, to_line
from tests.tuning.samples import DEFAULT, FASTER, FASTEST, record, workload

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def log(tmp_path: Path) -> LogFile:
    return LogFile(path_for(tmp_path, "znver5", "avx512"))


def seeds(log: LogFile, problems: list[Problem] | None = None) -> list[int]:
    found: list[Problem] = [] if problems is None else problems
    return [r.seed for r in LogFile(log.path).read(found.append)]


# -- round trips ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "one",
    [
        record(0.5, FASTER, "final"),
        record(None, FASTER, status="timeout"),
        record(1.5, FASTER, stopped=True),
        record(1.0, {"a.b": "text", "c": -3}, "default"),
        replace(record(), config={}),
        record(of=workload(0, 'line\nbreak " and ünï', kind="relax", cache="cold", threads=4)),
    ],
)
def test_a_record_reads_back_as_it_was(log, one):
    log.append(one)
    assert log.read() == [one]
    assert LogFile(log.path).read() == [one]
    text = log.path.read_text(encoding="ascii")
    assert text.count("\n") == 1
    assert text.endswith("\n")


def test_the_schema_is_closed():
    data = json.loads(to_line(record()))
    assert set(data) == set(schema()["required"]) == set(schema()["properties"])
    with pytest.raises(ValueError, match="extra"):
        from_line(json.dumps(data | {"extra": 1}))


def test_a_missing_log_is_empty(log):
    assert log.read() == []


def test_reading_again_sees_what_others_appended(log):
    other = LogFile(log.path)
    for number in range(3):
        other.append(record(seed=number))
        assert [r.seed for r in log.read()] == list(range(number + 1))
    log.path.write_text(to_line(record(seed=7)) + "\n", encoding="ascii")  # shorter: read anew
    assert [r.seed for r in log.read()] == [7]


# -- what must not get in ------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_stay_out(log, value):
    log.append(record(seed=1))
    for bad in (
        replace(record(), relative=value),
        replace(record(), outcome=replace(record().outcome, spread=value)),
        record(of=workload(dims={"rows": value})),
    ):
        with pytest.raises(LogError, match="finite"):
            log.append(bad)
    assert seeds(log) == [1]


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('"relative":0.5', '"relative":NaN', "NaN"),
        ('"relative":0.5', '"relative":1e999', "relative"),
        ('"relative":0.5', '"relative":-1', "relative"),
        ('"rows":16', '"rows":-16', r"workload\.rows"),
        ('"rows":16', '"rows":true', r"workload\.rows"),
        ('"status":"ok"', '"status":"fine"', "status"),
        ('"session":"s1",', "", "leaves out session"),
        ('"cpu":"znver5"', '"cpu":"../../etc"', r"target\.cpu"),
        ('"accumulate.tile_m":4', '"accumulate.tile_m":4.5', "config"),
        ('"accumulate.tile_m":4', '"accumulate.tile_m":4.0', "config"),
        ('"accumulate.tile_m":4', '"accumulate.tile_m":null', "config"),
        ('"schema":1,', "", "schema"),
    ],
)
def test_lines_that_break_the_schema_are_reported_and_skipped(log, old, new, why):
    good = to_line(record(0.5))
    assert old in good
    log.path.parent.mkdir()
    log.path.write_text(f"{good}\n{good.replace(old, new)}\n{good}\n", encoding="ascii")
    problems: list[Problem] = []
    assert len(log.read(problems.append)) == 2
    (problem,) = problems
    assert problem.line == 2
    with pytest.raises(ValueError, match=why):
        from_line(good.replace(old, new))
    with pytest.warns(UserWarning, match=r"avx512\.jsonl:2: "):
        LogFile(log.path).read()


@pytest.mark.parametrize(
    "junk",
    [b"{", b"[]", b"null", b"\xff\xfe\x00", b"\x00" * 50, b"[" * 100_000, b"7" * 5000, b'"x"'],
)
def test_junk_is_reported_and_skipped(log, junk):
    log.append(record(seed=1))
    with open(log.path, "ab") as file:
        file.write(junk)
    log.append(record(seed=2))
    problems: list[Problem] = []
    assert seeds(log, problems) == [1, 2]
    assert [p.line for p in problems] == [2]
    assert junk in log.path.read_bytes()  # ended, not removed


def test_blank_lines_are_nothing(log):
    log.append(record(seed=1))
    with open(log.path, "ab") as file:
        file.write(b"\n  \n")
    assert seeds(log) == [1]


@pytest.mark.parametrize(("version", "fix"), [(2, "upgrade lutcc"), (0, "tune again")])
def test_another_schema_version_is_an_error(log, version, fix):
    log.append(record())
    line = to_line(record()).replace('"schema":1', f'"schema":{version}')
    with open(log.path, "a", encoding="ascii") as file:
        file.write(line + "\n")
    with pytest.raises(LogError, match=rf"line 2: .*schema {version}[\s\S]*{fix}"):
        log.read()


# -- writers that die or compete -----------------------------------------------------------------


def test_a_line_cut_anywhere_is_healed(log):
    log.append(record(seed=1))
    start = log.path.read_bytes()
    line = (to_line(record(seed=2)) + "\n").encode()
    for cut in range(0, len(line), 7):
        log.path.write_bytes(start + line[:cut])
        log.append(record(seed=3))
        problems: list[Problem] = []
        assert seeds(log, problems) == [1, 3]
        assert len(problems) == (cut > 0)
        assert log.path.read_bytes().startswith(start + line[:cut])
    log.path.write_bytes(start + line[:-1])  # all there but the newline
    log.append(record(seed=3))
    assert seeds(log) == [1, 2, 3]


def test_killed_writers_lose_nothing_that_was_acknowledged(log):
    script = ROOT / "tests" / "tuning" / "append_forever.py"
    done = subprocess.run(
        [sys.executable, str(script), str(log.path), "50"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    acknowledged = [*(seed for one in told["killed"] for seed in one), *told["steady"]]
    problems: list[Problem] = []
    found = Counter(seeds(log, problems))
    assert set(acknowledged) <= set(found)
    assert max(found.values()) == 1
    # Written, but killed before it could say so: one of each writer at most.
    assert len(found) - 1 - len(acknowledged) <= 51
    assert len(problems) <= 51
    assert len(told["killed"]) == 50
    assert len(acknowledged) > 100
    assert len(told["steady"]) > 50


def test_threads_append_side_by_side(log):
    def write(first: int) -> None:
        own = LogFile(log.path)
        for number in range(20):
            own.append(record(seed=first + number))

    threads = [threading.Thread(target=write, args=(100 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seeds(log)) == [100 * i + n for i in range(4) for n in range(20)]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LogError, match=r"cannot be written[\s\S]*folder"):
        LogFile(tmp_path / "file" / "log.jsonl").append(record())
    with pytest.raises(LogError, match="cannot be read"):
        LogFile(tmp_path).read()


# -- which files ---------------------------------------------------------------------------------


def test_log_files(tmp_path):
    first, second = (path_for(tmp_path, cpu, "avx2") for cpu in ("znver4", "znver5"))
    for path in (first, second):
        LogFile(path).append(record())
    assert log_files(tmp_path) == [first, second]
    assert log_files(tmp_path / "znver4") == log_files(first) == [first]
    with pytest.raises(LogError, match="no such file"):
        log_files(tmp_path / "znver3")


# -- the best ------------------------------------------------------------------------------------

LATER, LATEST = "2026-01-02T00:00:00+00:00", "2026-01-03T00:00:00+00:00"


def the_best(*records: Record) -> Record:
    (found,) = best(records).values()
    return found


def opened(session: str = "s1", time: str = "2026-01-01T00:00:00+00:00", config=DEFAULT):
    return record(1.0, config, "default", session=session, time=time)


def test_the_fastest_trial_is_the_best():
    chosen = the_best(opened(), record(0.9, FASTER), record(0.8, FASTEST), record(1.2, DEFAULT))
    assert chosen.config == FASTEST


def test_what_does_not_beat_the_default_is_not_better():
    for relative in (1.0, 1.01):
        chosen = the_best(opened(), record(relative, FASTER))
        assert (chosen.config, chosen.phase) == (DEFAULT, "default")


def test_the_default_is_never_faster_than_itself():
    chosen = the_best(opened(), record(0.9, DEFAULT), record(0.97, DEFAULT, "final"))
    assert (chosen.config, chosen.relative) == (DEFAULT, 1.0)


def test_failed_and_stopped_trials_are_never_the_best():
    chosen = the_best(
        opened(), record(None, FASTER, status="wrong_result"), record(0.1, FASTEST, stopped=True)
    )
    assert chosen.config == DEFAULT
    assert best([record(None, FASTER, status="crash")]) == {}


def test_final_measurements_decide():
    chosen = the_best(
        opened(),
        record(0.5, FASTEST),  # luck
        record(0.8, FASTER),
        record(1.0, DEFAULT, "final"),
        record(0.95, FASTEST, "final"),
        record(0.85, FASTER, "final"),
    )
    assert (chosen.config, chosen.relative) == (FASTER, 0.85)
    chosen = the_best(opened(), record(0.5, FASTEST), record(1.02, FASTEST, "final"))
    assert chosen.config == DEFAULT


def test_the_latest_session_with_final_measurements_decides():
    chosen = the_best(
        opened(),
        record(0.7, FASTEST, "final"),
        opened("s2", LATER),
        record(0.8, FASTER, "final", session="s2", time=LATER),
        opened("s3", LATEST),
        record(0.6, FASTEST, session="s3", time=LATEST),  # a trial only
    )
    assert chosen.config == FASTER


def test_several_measurements_count_by_their_median():
    chosen = the_best(
        opened(),
        *(record(r, FASTEST) for r in (0.2, 0.9, 0.95)),
        *(record(r, FASTER) for r in (0.8, 0.85, 1.3)),
    )
    assert (chosen.config, chosen.relative) == (FASTER, 0.85)
    chosen = the_best(
        opened(),
        record(0.9, FASTER, "final"),
        record(0.4, FASTEST, "final"),
        opened("s2", LATER),
        record(0.5, FASTER, "final", session="s2", time=LATER),
        record(0.8, FASTEST, "final", session="s2", time=LATER),
    )
    assert (chosen.config, chosen.relative) == (FASTEST, pytest.approx(0.6))


def test_sessions_with_another_default_are_not_compared():
    chosen = the_best(
        opened(),
        record(0.5, FASTER),  # of a slow default of old
        opened("s2", LATER, FASTEST),
        record(0.9, {"stage.row_block": 64, "accumulate.tile_m": 1}, session="s2", time=LATER),
    )
    assert chosen.relative == 0.9
    chosen = the_best(opened(), record(0.5, FASTER), opened("s2", LATER, FASTEST))
    assert (chosen.config, chosen.session) == (FASTEST, "s2")


def test_the_order_of_lines_does_not_matter():
    records = [
        opened(),
        record(0.7, FASTEST, "final"),
        opened("s2", LATER),
        record(0.8, FASTER, "final", session="s2", time=LATER),
    ]
    assert the_best(*records).config == the_best(*reversed(records)).config == FASTER


def test_workloads_are_apart():
    one, two = workload(1), workload(2)
    found = best([record(0.5, FASTER, of=one), record(0.6, FASTEST, of=two)])
    assert found[one.id].config == FASTER
    assert found[two.id].config == FASTEST
