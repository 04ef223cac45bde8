"""`lutcc tune` from end to end, with the real runner: what it prints, keeps and refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lutcc
from lutcc.cli.main import main
from lutcc.cli.tune import rows_of, seconds_of
from lutcc.errors import InputError, UsageError
from lutcc.tuning.logfile import LogFile, log_files
from lutcc.tuning.oplist import OPS, OpSpec, read_ops

OPLIST = """
[[op]]
op = "lookup"
D = 20
M = 17
C = 5
rows = [1, 70]
"""


@pytest.fixture
def ops(tmp_path: Path) -> Path:
    path = tmp_path / "ops.toml"
    path.write_text(OPLIST)
    return path


@pytest.mark.isa("avx2")
def test_tune_then_compile(
    ops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    args = ["tune", str(ops), "--target", "avx2", "--trials", "5", "--json", "-q"]
    assert main(args) == 0
    (summary,) = json.loads(capsys.readouterr().out)
    assert summary["trials"] > 0
    assert [k["rows"] for k in summary["kernels"]] == [1, 70]
    assert all(k["default_s"] > 0 and k["relative"] <= 1 for k in summary["kernels"])
    (log,) = log_files(tmp_path / "tuning_logs")
    records = LogFile(log).read()
    assert log.name == "avx2.jsonl"
    assert log.parent.name == summary["cpu"]
    assert sum(r.phase == "search" for r in records) == summary["trials"]
    assert main(["logs", "validate", str(log)]) == 0
    capsys.readouterr()

    assert main(args) == 0  # everything is known: nothing is tried again
    assert json.loads(capsys.readouterr().out)[0]["trials"] == 0

    (spec,) = read_ops(ops)
    module = spec.module()
    artifact = lutcc.compile(module, target="avx2", tuning_logs=tmp_path / "tuning_logs")
    assert all(kernel.source.startswith("tuned on") for kernel in artifact.explain().kernels)
    x = np.random.default_rng(1).normal(size=(33, 20)).astype(np.float32)
    (want,) = lutcc.ir.interpret(module, [x])
    np.testing.assert_array_equal(artifact(x), want)


@pytest.mark.isa("avx2")
def test_what_a_person_sees(ops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["tune", str(ops), "-t", "avx2", "--trials", "4", "--log-dir", str(tmp_path / "l")])
    out = capsys.readouterr().out
    assert code == 0
    assert "look-up 20→17 C5, N 70" in out
    assert "by each kernel's share of the time" in out
    assert str(tmp_path / "l") in out.replace("\n", "")


def _start(ops: Path, logs: Path) -> subprocess.Popen[str]:
    command = "import sys; from lutcc.cli.main import main; sys.exit(main(sys.argv[1:]))"
    options = ["tune", str(ops), "-t", "avx2", "--log-dir", str(logs), "--trials", "500"]
    process = subprocess.Popen(
        [sys.executable, "-c", command, *options, "--search", "random"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = log_files(logs) if logs.exists() else []
        if found and found[0].read_bytes().count(b'"search"') >= 3:
            return process
        time.sleep(0.05)
    process.kill()
    raise AssertionError(process.communicate())


@pytest.mark.isa("avx2")
def test_ctrl_c_and_kill_keep_everything(ops: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    process = _start(ops, logs)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "the same command goes on" in err
    assert "trials in" in out
    (log,) = log_files(logs)
    before = LogFile(log).read(on_problem=lambda problem: pytest.fail(str(problem)))
    assert before

    process = _start(ops, logs)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    after = LogFile(log).read()
    assert [r.to_json() for r in after[: len(before)]] == [r.to_json() for r in before]
    tried = [(r.workload.id, r.config_id) for r in after if r.phase == "search"]
    assert len(tried) == len(set(tried))


def test_times_and_rows() -> None:
    assert [seconds_of(t) for t in ("90s", "10m", "1.5h", "7")] == [90, 600, 5400, 7]
    assert rows_of("1,64,1,7") == (1, 64, 7)
    for text in ("", "m", "-3s", "0", "nan", "ten"):
        with pytest.raises(UsageError):
            seconds_of(text)
    for text in ("", "0", "1,,2", "x"):
        with pytest.raises(UsageError):
            rows_of(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trials", "3", "--effort", "quick"], "exclude each other"),
        (["--trials", "-1"], "use 0 or more"),
        (["--threads", "0"], "use 1 or more"),
        (["--budget", "soon"], "90s, 10m or 2h"),
        (["--rows", "many"], "1,64,1024"),
    ],
)
def test_wrong_options(
    ops: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["tune", str(ops), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = [", "no TOML"),
        ("x = 1", r"no \[\[op\]\]"),
        ('[[op]]\nop = "lookups"\n', "'lookup'"),
        ('[[op]]\nop = "relu"\nD = 4\nrows = [0]\n', "above 0"),
        ('[[op]]\nop = "relu"\nE = 4\n', "cannot be made"),
        ('[[op]]\nop = "lookup"\nD = 4\nM = 4\nC = 9\n', "number 1"),
    ],
)
def test_wrong_lists(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "ops.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_ops(path)


SIZES = {
    "lookup_ffn": {"D": 9, "M": 5, "H": 3, "T": 4, "table_dtype": "int8"},
    "lookup": {"D": 9, "M": 5, "C": 3},
    "linear": {"D": 9, "M": 5},
    "dense": {"D": 9, "M": 5, "compute": "int8"},
    "tree_encode": {"D": 9, "C": 3},
    "lut_accumulate": {"C": 3, "M": 5},
}


@pytest.mark.parametrize("op", OPS)
def test_every_op_of_a_list_can_be_interpreted(op: str) -> None:
    module = OpSpec(op, (1,), SIZES.get(op, {"D": 9})).module()
    lutcc.ir.verify(module)
    rng = np.random.default_rng(0)
    inputs = [
        rng.integers(0, 16, (4, v.type.size(1))).astype(v.type.dtype) for v in module.main.params
    ]
    (result,) = lutcc.ir.interpret(module, inputs)
    assert result.shape[0] == 4


def test_the_shipped_workloads_can_be_read() -> None:
    path = Path(__file__).parents[2] / "tuning_logs" / "workloads.toml"
    assert len(read_ops(path)) > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache": "warm"}, "no cache mode 'warm'"),
        ({"search": "genetic"}, "no search 'genetic'"),
        ({"effort": "some"}, "no effort 'some'"),
        ({"rows": ()}, "rows is"),
        ({"rows": (0,)}, "rows is"),
    ],
)
def test_wrong_arguments_are_told_before_anything_runs(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    module = OpSpec("relu", (1,), {"D": 4}).module()
    with pytest.raises(InputError, match=message):
        lutcc.tune(module, log_dir=tmp_path / "logs", **options)
    assert not (tmp_path / "logs").exists()
