"""The demonstration and the benchmarks run end to end and report what the issue asks of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lutcc.bench.machine import has_amx
from lutcc.runtime import cpu


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """Run ``lutcc demo --quick`` once."""
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("demo")
    command = [
        sys.executable,
        "-m",
        "lutcc.cli.main",
        "demo",
        "--quick",
        "--json",
        "-o",
        str(folder),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "fresh process" in ran.stderr
    return json.loads(ran.stdout), folder


def test_accuracy_kept_by_plain_conversion(demo):
    result, _ = demo
    kept = {
        row["ncodebooks"]: row["relative_accuracy"]
        for row in result["models"]
        if row["kind"] == "lutcc"
    }
    assert result["exact_accuracy"] > 0.94
    assert kept[16] >= 0.94
    assert kept[30] >= 0.96


def test_artifacts_ran_in_a_fresh_process_without_torch(demo):
    result, folder = demo
    rows = [row for row in result["models"] if row["kind"] == "lutcc"]
    assert len(rows) == 2
    for row in rows:
        assert row["loaded_without_torch"]
        assert row["isa"] == cpu.best_isa()
        assert Path(row["artifact"]).stat().st_size == row["bytes"]
        assert Path(row["artifact"]).parent == folder


def test_every_candidate_was_measured_at_every_batch(demo):
    result, _ = demo
    labels = {row["label"] for row in result["models"]}
    expected = {"lutcc 16", "lutcc 30", "compiled", "fp32", "bf16", "bf16_cast", "int8_onednn"}
    expected.add("int8_x86")
    if has_amx():
        expected |= {"bf16/amx", "bf16_cast/amx", "int8_onednn/amx"}
    assert labels == expected
    for row in result["models"]:
        assert list(row["times"]) == ["1", "64", "1024"]
        assert all(0 < timing["best"] <= timing["median"] for timing in row["times"].values())


def test_each_layer_has_a_verdict(demo):
    result, _ = demo
    assert [(layer["in"], layer["out"]) for layer in result["layers"]] == [
        (64, 30), (30, 30), (30, 30), (30, 10),
    ]  # fmt: skip
    for layer in result["layers"]:
        for verdict in layer["batches"].values():
            times = verdict["times"]
            fastest = min(
                (label for label in times if label != "lutcc"), key=lambda k: times[k]["best"]
            )
            assert verdict["fastest"] == fastest
            ratio = times[fastest]["best"] / times["lutcc"]["best"]
            assert verdict["speedup"] == pytest.approx(ratio, abs=1e-3)


def test_the_results_and_the_picture_are_written(demo):
    result, folder = demo
    assert json.loads((folder / "results.json").read_text()) == result
    assert (folder / "accuracy-latency.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("arguments", [["limits"], ["kernels", "--only", "relu"]], ids=" ".join)
def test_bench_sections(lutcc_command, tmp_path: Path, arguments):
    out = tmp_path / "bench.json"
    done = lutcc_command("bench", *arguments, "--quick", "--json", "-q", "-o", out)
    assert done.code == 0, done.err
    assert json.loads(out.read_text()) == done.json
    assert done.json["machine"]["cpu"]
    assert list(done.json["sections"]) == arguments[:1]
    rows = done.json["sections"][arguments[0]]
    expected = set(cpu.supported_isas())
    if arguments[0] == "limits":  # those of look-ups, to which bfloat16 products add nothing
        expected.discard("avx512_bf16")
    assert {row["isa"] for row in rows if row["isa"]} == expected
    assert all(row["rate"] > 0 and row["best"] <= row["median"] for row in rows)


def test_bench_layers_prints_every_candidate_and_who_is_faster(lutcc_command, tmp_path: Path):
    out = tmp_path / "bench.json"
    done = lutcc_command("bench", "layers", "--quick", "-o", out)
    assert done.code == 0, done.err
    rows = json.loads(out.read_text())["sections"]["layers"]
    assert [row["N"] for row in rows] == [1, 1024]
    assert "1 x 512 x 512, 64" in done.out
    for row in rows:
        winner = "look-ups are" if row["speedup"] >= 1 else "dense"
        assert f"{winner} " in done.out
        times = {label: timing["best"] for label, timing in row["times"].items()}
        assert set(times) >= {"lutcc", "fp32", "bf16", "bf16_cast", "int8_onednn", "int8_x86"}
        dense = min(time for label, time in times.items() if label != "lutcc")
        assert row["speedup"] == pytest.approx(dense / times["lutcc"], abs=1e-3)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--core", "7777"], 2, "core 7777 is not usable"),
        (["--target", "nosuch"], 1, "there is no target 'nosuch'"),
        (["-o", "file"], 2, "is a file"),
        (["-o", "file/inside"], 2, "is a file"),
    ],
    ids=str,
)
def test_demo_checks_its_options_before_training(
    lutcc_command, tmp_path: Path, monkeypatch, words, code, message
):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    done = lutcc_command("demo", "--quick", *words)
    assert done.code == code
    assert message in done.err
    assert "training" not in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_such_kernel(lutcc_command):
    done = lutcc_command("bench", "kernels", "--only", "lut_acumulate")
    assert done.code == 2
    assert "did you mean 'lut_accumulate'" in done.err
