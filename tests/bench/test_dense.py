"""lutcc bench dense: rows and the table of a small shape."""

from __future__ import annotations

from typing import Any

import pytest

from lutcc.bench import dense
from lutcc.bench.dense_report import dense_table, notes
from lutcc.bench.options import BenchOptions


@pytest.fixture
def row() -> dict[str, Any]:
    times = {
        "lutcc float32": 2e-6, "read float32": 1.9e-6, "lutcc bfloat16": 3e-6, "lutcc int8": 1e-6,
        "lutcc bfloat16 in/out": 2.5e-6, "fp32": 3e-6, "fp32_onednn": 1.9e-6, "bf16": 2e-6,
        "bf16_onednn": 3e-6, "bf16_cast": 5e-6, "bf16_onednn_cast": 4.5e-6, "int8_x86": 4e-6,
        "int8_onednn": 5e-6,
    }  # fmt: skip
    return {
        "N": 1, "K": 64, "M": 32, "isa": "avx2", "bf16_native": False,
        "times": {k: {"best": t, "median": 2 * t} for k, t in times.items()},
    }  # fmt: skip


def test_wins_and_losses_are_called_so(row: dict[str, Any]) -> None:
    said = notes([row])
    assert "float32 0.95x the speed of fp32_onednn (goal 0.9: met) and 1.05x the time" in said
    assert "weights (goal 1.1: met), a loss;" in said
    assert "bfloat16 1.50x the speed of bf16_cast (goal 0.85: met);" in said
    assert "bfloat16 in/out 0.80x the speed of bf16 (goal 0.85: missed), a loss" in said
    assert said.endswith("torch emulates them.")
    assert "int8 4.00x the speed of int8 (goal 0.85: met)." in said
    table = dense_table([row])
    assert table.row_count == len(row["times"])


@pytest.mark.thorough
def test_a_small_shape_is_measured() -> None:
    options = BenchOptions(seconds=0.001, rounds=1, quick=True)
    seen: list[dict[str, Any]] = []
    (row,) = dense.bench_dense(options, seen.append, shapes=[dense.Shape(1, 64, 32)])
    assert seen == [row]
    kinds = ("float32", "bfloat16", "int8", "bfloat16 in/out")
    own = {f"{kind} {c}" for kind in ("lutcc", "read") for c in kinds}
    assert own | {"fp32", "fp32_onednn", "int8_x86"} <= set(row["times"])
    assert all(timing["best"] > 0 for timing in row["times"].values())
