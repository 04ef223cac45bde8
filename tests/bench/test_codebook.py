"""lutcc bench codebook: rows, tables and README's block of a small shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lutcc.bench import codebook
from lutcc.bench.codebook_report import codebook_tables, notes
from lutcc.bench.machine import describe
from lutcc.bench.options import BenchOptions
from lutcc.bench.readme import codebook_block


def timing(best: float) -> dict[str, float]:
    return {"best": best, "median": 2 * best}


@pytest.fixture
def row() -> dict[str, Any]:
    hot = {"lutcc 4 bits int8": 2e-6, "lutcc 4 bits float32": 4e-6, "read 4 bits": 1e-6,
           "onnxruntime 4 bits block 128": 3e-6, "fp32": 8e-6, "int8_x86": 1e-6}  # fmt: skip
    return {
        "N": 1, "K": 64, "M": 32, "bits": [4], "isa": "avx2", "index_bytes": {"4": 1024},
        "onnxruntime": True, "bf16_native": False, "threads": None,
        "hot": {k: timing(t) for k, t in hot.items()},
        "cold": {k: timing(3 * t) for k, t in hot.items()},
    }  # fmt: skip


def test_wins_and_losses_are_called_so(row: dict[str, Any]) -> None:
    said = notes([row])
    assert "1.50x faster than onnxruntime block 128" in said
    assert "a loss, 2.00x slower than dense int8" in said
    assert "cold 2.00x the time to read the indices" in said
    assert "two cores not timed" in said
    row["onnxruntime"] = False
    assert "onnxruntime is not installed" in notes([row])
    (table,) = codebook_tables([row])
    assert table.row_count == 6


def test_readme_block(row: dict[str, Any]) -> None:
    block = codebook_block({"machine": describe(0), "sections": {"codebook": [row]}})
    assert "| 1 x 64 x 32 | 4 | 2.00 | 6.00 | 3.00 | 3.00 | 8.00 | - | 1.00 |" in block


@pytest.mark.thorough
def test_a_small_shape_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebook, "has_onnxruntime", lambda: False)
    options = BenchOptions(seconds=0.001, rounds=1, quick=True)
    (row,) = codebook.bench_codebook(options, shapes=[codebook.Shape(1, 64, 32, (2,))])
    assert {"lutcc 2 bits int8", "read 2 bits", "fp32"} <= set(row["hot"])
    assert set(row["hot"]) == set(row["cold"])
    assert row["index_bytes"] == {"2": 32 * 16}
    assert not row["onnxruntime"]


def test_the_baseline_multiplies() -> None:
    pytest.importorskip("onnxruntime")
    call = codebook.blocked_product(64, 32, 32, 0, np.ones((2, 64), np.float32))
    call()
