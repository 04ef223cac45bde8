"""serve-check: what it finds and what it says, with artifacts of both kinds."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import lutcc
from lutcc.errors import InputError
from lutcc.runtime import Artifact, TensorSpec, cpu
from lutcc.runtime.soak import Latencies, Soak, soak
from lutcc.runtime.soak_cases import difference, given_inputs, make_cases, random_inputs
from tests.cli.support import Files, Outcome

ROOT = Path(__file__).resolve().parents[2]
ROWS = TensorSpec("x", (("n", 1), 4), "float32")
QUICK = ("--seconds", 1, "--callers", 2, "--threads", 1, "--json", "-q")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small artifact that runs on Relax's virtual machine."""
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.PReLU()).eval()
    artifact = lutcc.compile(model, torch.zeros(2, 6), target="avx2")
    assert artifact.kind == "relax"
    return artifact.save(tmp_path_factory.mktemp("mixed") / "mixed.lutcc")


def patiently(run: Callable[[float], Outcome], enough: Callable[[Outcome], bool]) -> Outcome:
    """Run for longer until it was enough: a busy machine calls little in a second."""
    done = run(0.3)
    for seconds in (3, 30):
        if enough(done):
            break
        done = run(seconds)
    return done


def test_a_sound_artifact_passes(lutcc_command, files: Files, tmp_path: Path):
    report = tmp_path / "report.json"
    done = patiently(
        lambda seconds: lutcc_command(
            "serve-check", files.artifact, *QUICK, "--seconds", seconds, "-o", report
        ),
        lambda done: done.json["memory"] is not None,
    )
    assert done.code == 0, done.err
    assert done.err == ""
    found = done.json
    assert json.loads(report.read_text()) == found
    assert found["ok"]
    assert found["problems"] == []
    assert (found["kind"], found["callers"], found["threads"]) == ("ir", 2, 1)
    assert [t["name"] for t in found["times"]] == ["n=1", "n=2", "n=7", "n=32", "all"]
    whole = found["times"][-1]
    assert whole["calls"] == sum(t["calls"] for t in found["times"][:-1])
    assert 0 < whole["calls"] < found["calls"]  # the first round of each caller is not timed
    assert 0 < whole["p50"] <= whole["p90"] <= whole["p99"] <= whole["max"]
    assert found["calls_per_s"] == pytest.approx(found["calls"] / found["seconds"])
    assert found["errors"] == found["wrong"] == {"count": 0, "first": {}}
    assert found["memory"]["start"] > 0
    assert found["memory"]["growth"] <= found["memory"]["bound"]


def test_it_says_how_it_goes_and_what_it_found(lutcc_command, files: Files):
    done = patiently(
        lambda seconds: lutcc_command(
            "serve-check", files.artifact, files.rows, "--seconds", seconds, "--callers", 1
        ),
        lambda done: "too short to tell" not in done.out,
    )
    assert done.code == 0, done.err
    assert "calling from 1 threads for " in done.err
    for words in ("n=600", "n=1 ", "p99", "0 errors, 0 wrong results", "MiB after warm-up", "ok"):
        assert words in done.out
    assert done.out.rstrip().endswith("ok")


CHECK = """
import json, sys
from lutcc.cli.main import main
for path in sys.argv[1:]:
    assert main(["serve-check", path, "--seconds", "0.4", "--callers", "2", "-q", "--json"]) == 0
print(sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "tvm", "transformers"}))
"""


def test_neither_torch_nor_the_compiler_is_needed(files: Files, mixed: Path):
    done = subprocess.run(
        [sys.executable, "-c", CHECK, files.artifact, mixed],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '"kind": "ir"' in done.stdout
    assert '"kind": "relax"' in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def after(first: int, every: int, act, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``act(results)`` take the place of what calls of an artifact give, now and then."""
    real, count = Artifact.__call__, itertools.count()

    def call(self: Artifact, *tensors: object) -> object:
        results, index = real(self, *tensors), next(count)
        return act(results) if index >= first and index % every == 0 else results

    monkeypatch.setattr(Artifact, "__call__", call)


def test_errors_of_callers_are_counted_and_told(lutcc_command, files: Files, monkeypatch):
    def fail(results: np.ndarray) -> np.ndarray:
        raise InputError("went wrong in the middle", where="here", fix="nothing")

    after(40, 10, fail, monkeypatch)
    done = lutcc_command("serve-check", files.artifact, *QUICK)
    assert done.code == 1
    found = done.json
    assert found["errors"]["count"] > 1
    assert found["wrong"]["count"] == 0
    assert found["problems"] == [f"{found['errors']['count']} errors"]
    assert all(
        text.endswith(": InputError: here: went wrong in the middle")
        for text in found["errors"]["first"]
    )
    assert sum(found["errors"]["first"].values()) == found["errors"]["count"]


def test_results_that_differ_are_counted_and_placed(lutcc_command, files: Files, monkeypatch):
    def spoil(results: np.ndarray) -> np.ndarray:
        results[0, 3] = np.nextafter(results[0, 3], np.float32(np.inf))  # the next number
        return results

    after(40, 10, spoil, monkeypatch)
    done = lutcc_command(
        "serve-check", files.artifact, "--seconds", 0.5, "--callers", 2, "-q", "--rows", 3
    )
    assert done.code == 1
    assert "output 0: 1 of 21 elements differ, the first at (0, 3)" in done.out
    assert "FAILED: " in done.out.splitlines()[-1]
    assert " wrong results" in done.out.splitlines()[-1]


def test_memory_that_grows_fails_the_check(lutcc_command, files: Files, monkeypatch):
    kept: list[bytes] = []

    def leak(results: np.ndarray) -> np.ndarray:
        if len(kept) < 300:
            kept.append(b"x" * (1 << 18))
            time.sleep(0.005)
        return results

    after(16, 1, leak, monkeypatch)
    done = lutcc_command("serve-check", files.artifact, *QUICK, "--max-growth", 8)
    assert done.code == 1
    assert done.json["errors"]["count"] == done.json["wrong"]["count"] == 0
    assert "memory grew by" in done.json["problems"][0]
    assert done.json["memory"]["bytes_per_minute"] > 60 * (8 << 20)
    assert done.json["memory"]["bound"] == 8 << 20


def of(call, seconds: float = 0.3, callers: int = 2, **options) -> Soak:
    cases, _ = make_cases(call, random_inputs([ROWS], (2, 5)))
    return soak(call, cases, callers=callers, seconds=seconds, **options)


def test_calls_that_get_into_each_others_way_are_found():
    shared = np.empty((5, 4), np.float32)

    def unsafe(x: np.ndarray) -> np.ndarray:
        shared[: len(x)] = x
        time.sleep(0.001)
        return shared[: len(x)].copy()

    assert not of(unsafe, callers=1).wrong.count
    assert of(unsafe).wrong.count > 0


def test_a_call_that_does_not_come_back_is_an_error():
    release, calls = threading.Event(), itertools.count()

    def hang(x: np.ndarray) -> np.ndarray:
        if next(calls) == 20:
            release.wait(30)
        return x * 2

    try:
        found = of(hang, seconds=0.2, grace=0.1)
    finally:
        release.set()
    assert found.errors.count == 1
    (message,) = found.errors.first
    assert "has not come back from a call" in message
    assert not found.wrong.count


def test_a_case_that_the_artifact_refuses_is_named(lutcc_command, files: Files, tmp_path: Path):
    np.save(tmp_path / "narrow.npy", np.zeros((3, 23), np.float32))
    done = lutcc_command("serve-check", files.artifact, tmp_path / "narrow.npy", "-q")
    assert done.code == 1
    assert "23" in done.err

    def refuse(x: np.ndarray) -> np.ndarray:
        raise InputError("at most 4 rows", fix="pass fewer")

    with pytest.raises(InputError, match=r"at most 4 rows \(in the first call with n=5\)"):
        make_cases(refuse, random_inputs([ROWS], (5,)))


def test_ctrl_c_reports_what_there_is(files: Files):
    process = subprocess.Popen(
        [sys.executable, "-m", "lutcc.cli.main", "serve-check", files.artifact, "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        # a shell's background job hands down an ignored SIGINT, which Python would respect
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr is not None
    while "Ctrl-C ends it" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    found = json.loads(out)
    assert found["interrupted"]
    assert found["ok"]
    assert found["calls"] > 0
    assert found["seconds"] < 50


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seconds", "0"], "0 s is no time"),
        (["--seconds", "nan"], "nan s is no time"),
        (["--callers", "0"], "0 threads cannot call"),
        (["--max-growth", "-1"], "-1 MiB is no bound"),
        (["--rows", "0"], "lists no batch sizes"),
        (["ROWS", "--rows", "3"], "batch sizes are for random inputs"),
        (["ROWS", "ROWS"], "2 inputs given, the artifact takes 1"),
        (["-o", "no/such/report.json"], "mkdir -p no/such"),
    ],
)
def test_wrong_usage(lutcc_command, files: Files, words: list[str], message: str):
    words = [str(files.rows) if word == "ROWS" else word for word in words]
    done = lutcc_command("serve-check", files.artifact, *words)
    assert done.code == 2
    assert message in done.err
    assert lutcc_command("serve-check", files.module).code == 2


def test_given_inputs_are_also_rolled_and_taken_row_by_row():
    specs = [
        ROWS,
        TensorSpec("pairs", (("n", 2),), "int32"),
        TensorSpec("fixed", (3,), "float32"),
    ]
    x, pairs, fixed = np.arange(12.0).reshape(3, 4), np.arange(6), np.ones(3)
    (name, (given, rolled)), (one, (first, last)) = given_inputs(specs, [x, pairs, fixed])
    assert (name, one) == ("n=3", "n=1")
    assert given == [x, pairs, fixed]
    assert rolled[1].tolist() == [2, 3, 4, 5, 0, 1]
    np.testing.assert_array_equal(rolled[0], x[[1, 2, 0]])
    assert [first[1].tolist(), last[1].tolist()] == [[0, 1], [4, 5]]
    np.testing.assert_array_equal(last[0], x[2:])
    assert last[2] is fixed
    assert given_inputs(specs[2:], [fixed]) == [("fixed shape", [[fixed]])]
    with pytest.raises(InputError, match="argument 'pairs'"):
        given_inputs(specs, [x, pairs[:4], fixed])


def test_random_inputs_are_of_the_declared_kind():
    specs = [
        TensorSpec("ids", (("n", 1), ("s", 1)), "int64"),
        TensorSpec("mask", (("n", 1), ("s", 1)), "bool"),
        TensorSpec("bytes", (5, 2), "uint8"),
        TensorSpec("scalar", (), "float32"),
    ]
    cases = random_inputs(specs, (1, 9), seed=3)
    assert [name for name, _ in cases] == ["n=1, s=16", "n=9, s=7"]
    for name, draws in cases:
        assert len(draws) == 2
        for draw in draws:
            for spec, value in zip(specs, draw, strict=True):
                assert value.dtype == spec.numpy_dtype()
            assert draw[0].shape == draw[1].shape == ((1, 16) if "n=1," in name else (9, 7))
            assert set(draw[0].flat) == {0, 1}
    assert not np.array_equal(cases[1][1][0][0], cases[1][1][1][0])
    bounded = random_inputs(specs, (1, 9, 10), bounds={"n": (2, 4), "s": (8, None)})
    assert [name for name, _ in bounded] == ["n=2, s=16", "n=4, s=8", "n=4, s=33"]
    assert len(random_inputs(specs, (1, 9, 10), bounds={"n": (2, 2), "s": (8, 8)})) == 1
    again = random_inputs(specs, (1, 9), seed=3)
    np.testing.assert_array_equal(cases[1][1][0][0], again[1][1][0][0])


def test_differences_are_bits():
    x = np.array([[np.nan, 0.0]], np.float32)
    cases, _ = make_cases(lambda x: (x, x.view(np.int32)), [("n=1", [[x]])])
    (draw,) = cases[0].draws
    good = (x.copy(), x.view(np.int32))
    assert difference(draw, good) is None
    negative = np.array([[np.nan, -0.0]], np.float32)
    told = difference(draw, (negative, good[1]))
    assert told == "output 0: 1 of 2 elements differ, the first at (0, 1): -0.0, not 0.0"
    assert difference(draw, good[0]) == "1 outputs, not 2"
    assert "output 1 is float32 (1, 2), not int32" in str(difference(draw, (good[0], good[0])))


def test_percentiles_are_those_of_the_calls():
    values = (np.random.default_rng(0).lognormal(12, 1.5, 4000)).astype(int)
    both = Latencies(), Latencies()
    for index, value in enumerate(values):
        both[index % 2].add(int(value))
    both[0].merge(both[1])
    times = both[0].summary("all")
    assert times.calls == 4000
    assert times.max == pytest.approx(values.max() * 1e-9)
    for share, found in ((50, times.p50), (90, times.p90), (99, times.p99)):
        assert found == pytest.approx(np.percentile(values, share) * 1e-9, rel=0.015)
    assert Latencies().summary("none").p50 is None


def test_too_many_threads_are_an_error_with_a_fix(monkeypatch: pytest.MonkeyPatch):
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(lutcc.LutccError, match="only 0 of 2 threads can be started"):
        of(lambda x: x)


def test_cores_are_the_default(lutcc_command, files: Files):
    done = lutcc_command("serve-check", files.artifact, "--seconds", 0.1, "--json", "-q")
    assert done.json["callers"] == cpu.allowed_cpus()
