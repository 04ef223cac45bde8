"""The comparison of compiled encoders runs, on a small random model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples.test_sampled_training import load


@pytest.mark.thorough
def test_precisions_are_compared(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    args = ["--tiny", "--quick", "--precisions", "int8", "--output", str(tmp_path)]
    found = load("compile_minilm").main(args)
    (row,) = found["precisions"]
    assert row["precision"] == "int8"
    assert row["cosine"] > 0.999
    assert 1e-6 < row["difference"] < 0.01, "integers, not the exact model"
    (times,) = found["times"].values()
    assert {"lutcc, int8", "torch, float32"} <= set(times)
    assert "| lutcc, int8 |" in found["text"]
    assert (tmp_path / "int8.lutcc").exists()
