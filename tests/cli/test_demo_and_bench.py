"""The demonstration and the benchmarks run end to end and report what the issue asks of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lutcc.bench.machine import has_amx
from lutcc.cli.bench import SECTIONS
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
    expected = {"lutcc 16", "lutcc 30", "fp32", "bf16", "bf16_cast", "int8_onednn", "int8_x86"}
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


@pytest.mark.parametrize("section", SECTIONS)
def test_bench_section(lutcc_command, tmp_path: Path, section):
    out = tmp_path / "bench.json"
    done = lutcc_command("bench", section, "--quick", "--json", "-q", "-o", out)
    assert done.code == 0, done.err
    assert json.loads(out.read_text()) == done.json
    assert done.json["machine"]["cpu"]
    assert done.json["sections"][section]
    assert list(done.json["sections"]) == [section]


def test_bench_prints_tables(lutcc_command):
    done = lutcc_command("bench", "layers", "--quick")
    assert done.code == 0, done.err
    assert "1 x 512 x 512, 64" in done.out
    assert "faster" in done.out
