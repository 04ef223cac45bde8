"""lutcc logs: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from lutcc.tuning.logfile import LogFile, path_for
from lutcc.tuning.records import Record
from lutcc.tuning.schema import to_line
from tests.tuning.samples import DEFAULT, FASTER, FASTEST, place, record, workload

ONE, TWO = workload(16), workload(64)
JANUARY, MARCH = "2026-01-01T00:00:00+00:00", "2026-03-01T00:00:00+00:00"


def write(folder: Path, *records: Record) -> Path:
    """Append records to the logs they belong to; return the log of the last."""
    path = folder
    for one in records:
        path = path_for(folder, one.place.cpu, one.place.isa)
        LogFile(path).append(one)
    return path


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = tmp_path / "logs"
    write(
        folder,
        record(1.0, DEFAULT, "default", of=ONE),
        record(0.5, FASTER, of=ONE),
        record(0.6, FASTER, "final", of=ONE),
        record(1.0, DEFAULT, "default", of=TWO),
        record(1.2, FASTEST, of=TWO),
        record(None, FASTER, of=TWO, status="crash"),
    )
    return folder


# -- best ----------------------------------------------------------------------------------------


def test_best(logs, lutcc_command):
    done = lutcc_command("logs", "best", logs)
    assert done.code == 0, done.err
    assert "znver5 avx512: 6 records, 2 kernels, 1 faster than their default" in done.out
    lines = [line for line in done.out.splitlines() if "look-up" in line]
    assert len(lines) == 1
    assert "1.67×" in lines[0]
    assert "stage.row_block 256→512" in lines[0]
    assert "lutcc.ir kernel" not in done.out
    both = lutcc_command("logs", "best", logs, "--all").out
    assert "default is best" in both


def test_best_as_json(logs, lutcc_command):
    for words in (["logs", "--json", "best", logs], ["logs", "best", logs, "--json"]):
        (target,) = lutcc_command(*words).json
        assert (target["cpu"], target["isa"], target["records"]) == ("znver5", "avx512", 6)
        first, second = target["kernels"]
        assert (first["config"], first["relative"], first["phase"]) == (FASTER, 0.6, "final")
        assert (second["config"], second["relative"]) == (DEFAULT, 1.0)


def test_the_folder_here_is_the_default(logs, lutcc_command, monkeypatch):
    logs.rename(logs.parent / "tuning_logs")
    monkeypatch.chdir(logs.parent)
    assert "6 records" in lutcc_command("logs", "best").out


def test_a_missing_path(tmp_path, lutcc_command):
    done = lutcc_command("logs", "best", tmp_path / "none")
    assert done.code == 1
    assert "no such file or folder" in done.err
    assert lutcc_command("logs").code == 2
    assert lutcc_command("logs", "polish", tmp_path).code == 2


def test_nothing_there(tmp_path, lutcc_command):
    assert lutcc_command("logs", "best", tmp_path).out == "no records\n"


def test_a_line_that_is_no_record_is_skipped_with_a_warning(logs, lutcc_command):
    path = path_for(logs, "znver5", "avx512")
    path.write_bytes(path.read_bytes()[:-30])
    done = lutcc_command("logs", "best", logs)
    assert done.code == 0
    assert "5 records" in done.out
    assert "avx512.jsonl:6: not JSON, or cut short" in done.err.replace("\n", "")


# -- validate ------------------------------------------------------------------------------------


def test_validate_a_good_log(logs, lutcc_command):
    done = lutcc_command("logs", "validate", logs)
    assert done.code == 0
    assert "6 records, all well" in done.out


def test_validate_says_what_is_wrong_and_where(tmp_path, lutcc_command):
    good = to_line(record())
    bad = [
        good,
        good,
        "{",
        good.replace('"workload_id":"', '"workload_id":"0', 1),
        good.replace('"config_id":"' + record().config_id, '"config_id":"' + "0" * 16),
        good.replace('"accumulate.tile_m":4', '"accumulate.tile_m":8'),
        to_line(record(at=place("znver4"))),
        to_line(record(at=place(isa="avx2"))),
        good.replace("2026-01-01T00", "2026-99-01T00"),
        to_line(record(seed=1))[:-5],
    ]
    path = path_for(tmp_path, "znver5", "avx512")
    path.parent.mkdir()
    path.write_text("\n".join(bad), encoding="ascii")
    done = lutcc_command("logs", "validate", tmp_path, "--json")
    assert done.code == 1
    (file,) = done.json
    found = [(p["line"], p["message"]) for p in file["problems"]]
    expected = [
        (2, "the same record as line 1"),
        (3, "not JSON"),
        (4, "workload_id"),
        (5, "config_id is 0000"),
        (6, "config_id is"),
        (7, "is of znver4, in the folder znver5"),
        (8, "is of avx2, in a log of avx512"),
        (9, "is no date"),
        (10, "not JSON"),
        (10, "no end of line"),
    ]
    assert [line for line, _ in found] == [line for line, _ in expected]
    for (_, message), (_, part) in zip(found, expected, strict=True):
        assert part in message
    shown = lutcc_command("logs", "validate", tmp_path)
    assert "10 problems" in shown.out
    assert "logs merge" in shown.out
    assert path.read_text(encoding="ascii") == "\n".join(bad)


def test_validate_reports_another_version(tmp_path, lutcc_command):
    path = write(tmp_path, record())
    path.write_text(path.read_text().replace('"schema":1', '"schema":2'))
    done = lutcc_command("logs", "validate", tmp_path)
    assert done.code == 1
    assert "schema 2, this lutcc reads 1: upgrade lutcc" in done.out


# -- diff ----------------------------------------------------------------------------------------


def test_diff(logs, tmp_path, lutcc_command):
    other = tmp_path / "other"
    znver4 = place("znver4")
    write(
        other,
        record(1.0, DEFAULT, "default", of=ONE, at=znver4),
        record(0.4, FASTEST, of=ONE, at=znver4),
        record(1.0, DEFAULT, "default", of=TWO, at=znver4),
        record(0.9, FASTER, of=workload(1024), at=znver4),
    )
    done = lutcc_command("logs", "diff", logs / "znver5", other / "znver4")
    assert done.code == 0, done.err
    assert "3 kernels, 2 with another best config" in done.out
    line = next(line for line in done.out.splitlines() if " 16 " in line)
    assert "1.67×" in line
    assert "2.50×" in line
    assert "stage.row_block 512→1024, accumulate.tile_m 4→8" in line
    assert "only in B" in done.out
    assert "same" in lutcc_command("logs", "diff", logs, other, "--all").out
    data = lutcc_command("logs", "diff", logs, other, "--json").json
    assert [d["changed"] for d in data] == [True, False, True]
    assert data[0]["before"]["cpu"] == "znver5"
    assert data[2]["before"] is None
    write(other, record(at=place("znver3")))
    refused = lutcc_command("logs", "diff", logs, other)
    assert refused.code == 1
    assert "znver3, znver4" in refused.err


# -- merge ---------------------------------------------------------------------------------------


def test_merge_into_a_folder(logs, tmp_path, lutcc_command):
    other, out = tmp_path / "other", tmp_path / "out"
    path = path_for(logs, "znver5", "avx512")
    write(other, record(0.7, time=MARCH), record(0.6, FASTER, "final", of=ONE))
    write(other, record(at=place("znver4")))
    done = lutcc_command("logs", "merge", logs, other, "-o", out)
    assert done.code == 0, done.err
    assert "8 records, 8 of them new; 1 duplicate dropped" in done.out
    merged = LogFile(path_for(out, "znver5", "avx512")).read()
    assert merged[:-1] == LogFile(path).read()
    assert merged[-1].time == MARCH
    assert len(LogFile(path_for(out, "znver4", "avx512")).read()) == 1
    again = lutcc_command("logs", "merge", logs, other, "-o", out, "--json").json
    assert (again["records"], again["added"], again["skipped"]) == (8, 0, 0)


def test_merge_sorts_by_time_and_keeps_what_is_there(tmp_path, lutcc_command):
    write(tmp_path / "a", record(seed=1, time=MARCH))
    out = tmp_path / "all.jsonl"
    LogFile(out).append(record(seed=2, time=JANUARY))
    LogFile(out).append(record(seed=2, time=JANUARY))
    assert lutcc_command("logs", "merge", tmp_path / "a", "-o", out).code == 0
    assert [r.seed for r in LogFile(out).read()] == [2, 1]
    assert lutcc_command("logs", "merge", out, tmp_path / "a", "-o", out).code == 0
    assert [r.seed for r in LogFile(out).read()] == [2, 1]


def test_merge_leaves_out_what_is_damaged_but_never_loses_it(logs, tmp_path, lutcc_command):
    path = path_for(logs, "znver5", "avx512")
    path.write_bytes(path.read_bytes() + b"half a rec")
    before = path.read_bytes()
    done = lutcc_command("logs", "merge", logs, "-o", tmp_path / "out", "--json")
    assert (done.json["records"], done.json["skipped"]) == (6, 1)
    assert lutcc_command("logs", "validate", tmp_path / "out").code == 0
    write(tmp_path / "b", record())
    refused = lutcc_command("logs", "merge", tmp_path / "b", "-o", logs)
    assert refused.code == 1
    assert "would lose the line" in refused.err
    assert path.read_bytes() == before
    empty = lutcc_command("logs", "merge", tmp_path / "out" / "znver5", "-o", "/proc/none/x")
    assert empty.code == 1
    assert "cannot be written" in empty.err


def test_merge_of_nothing(tmp_path, lutcc_command):
    done = lutcc_command("logs", "merge", tmp_path, "-o", tmp_path / "out")
    assert done.code == 1
    assert "no record to merge" in done.err


# -- export --------------------------------------------------------------------------------------


def test_export_csv(logs, tmp_path, lutcc_command):
    done = lutcc_command("logs", "export", logs)
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert len(rows) == 6
    assert (rows[1]["cpu"], rows[1]["rows"], rows[1]["relative"]) == ("znver5", "16", "0.5")
    assert json.loads(rows[1]["config"]) == FASTER
    assert (rows[5]["status"], rows[5]["median_s"]) == ("crash", "")
    path = tmp_path / "t.csv"
    assert lutcc_command("logs", "export", logs, "-o", path).code == 0
    assert path.read_text() == done.out
    assert lutcc_command("logs", "export", logs, "-o", tmp_path / "no" / "t.csv").code == 2


def test_export_best(logs, tmp_path, lutcc_command):
    path = tmp_path / "best.json"
    done = lutcc_command("logs", "export", logs, "--format", "best", "-o", path)
    assert "1 config" in done.out
    (entry,) = json.loads(path.read_text())
    assert entry == {
        "cpu": "znver5", "isa": "avx512", "op": ONE.op, "kernel_id": ONE.kernel_id, "rows": 16,
        "threads": 1, "cache": "hot", "relative": 0.6, "config": FASTER,
    }  # fmt: skip


# -- lutcc compile -------------------------------------------------------------------------------


@pytest.mark.isa("avx2")
def test_compile_says_which_logs_it_uses(tmp_path, lutcc_command, monkeypatch):
    from lutcc import ir
    from lutcc.bench.layers import random_lookup_layer
    from lutcc.tuning.stages import stage_tasks

    module = random_lookup_layer(16, 16, 4)
    ir_file = tmp_path / "k.ir"
    ir_file.write_text(ir.to_text(module))
    monkeypatch.chdir(tmp_path)
    words = ["compile", ir_file, "-o", "k.lutcc", "-t", "avx2"]
    bare = lutcc_command(*words)
    assert bare.code == 0, bare.err
    assert "tuning logs: those that ship with lutcc" in bare.err
    assert "untuned for any avx2 processor" in bare.err.replace("\n", " ")
    (task,) = stage_tasks(module, "avx2", rows=(1024,))
    at = place("znver5", "avx2")
    write(
        tmp_path / "tuning_logs", record(0.5, task.space.default, "final", of=task.workload, at=at)
    )
    found = lutcc_command(*words)
    assert "tuning logs: tuning_logs, then those that ship with lutcc" in found.err
    shown = lutcc_command("inspect", "k.lutcc").out
    assert "tuned on znver5, same level (rows 1024)" in shown.replace("\n", " ")
    named = lutcc_command(*words, "--tuning-logs", tmp_path / "nowhere")
    assert named.code == 1
    assert "no such folder of tuning logs" in named.err
    data = lutcc_command(*words, "--json").json
    assert data["tuning_logs"] == "tuning_logs"
    assert "1 of 1 kernels were tuned on another processor" in data["notes"][0]
