"""codebook_matmul of many rows: every level against the interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lutcc import ir
from lutcc.schedules.x86.config import MOST_FEW
from tests.schedules.codebook_modules import Weights
from tests.schedules.harness import ALL_ISA_PARAMS, built, product_configs

pytestmark = pytest.mark.one_in(3)

F32 = np.float32
#: Every packing; segments inside a step and beyond it; columns and rows that fill nothing.
CASES = {
    2: Weights(9, 70, bits=2, codebooks=27, scales=1, segment_size=32),
    3: Weights(21, 300, bits=3, codebooks=84, scales=5, segment_size=96),
    4: Weights(37, 45, bits=4, codebooks=2, scales=37),
}


def many_only(module: ir.Module, **fields: int) -> dict[str, Any]:
    """Leave out the code of few rows, which takes most of the compiler's time."""
    return product_configs(module, few=0, **fields)


def rows_of_x(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    x = rng.normal(size=(rows, columns)).astype(F32)
    x[rows // 2] = 0
    return x


def assert_close(got: np.ndarray, want: np.ndarray, x: np.ndarray, compute: str) -> None:
    """Integers to the bit; floats within 1e-5 of the terms' magnitudes (weights are below 12)."""
    if compute == "int8":
        np.testing.assert_array_equal(got, want)
        return
    bound = 1e-5 * 12 * (np.abs(x).sum(axis=1, keepdims=True) + 1)
    assert (np.abs(got - want) <= bound).all()


@pytest.mark.parametrize("isa", ALL_ISA_PARAMS)
@pytest.mark.parametrize(("bits", "compute"), [(4, "int8"), (3, "bfloat16"), (2, "float32")])
def test_any_shape(isa: str, bits: int, compute: str) -> None:
    case = CASES[bits]
    module, rng = case.matmul(compute, reordered=bits == 3), np.random.default_rng(bits)
    # several blocks of columns
    _, call = built(module, isa, many_only(module, panel_bytes=2048, block_rows=12))
    for rows in (1, 7, 12, 29):
        x = rows_of_x(rng, rows, case.columns)
        (got,), (want,) = call(x), ir.interpret(module, [x])
        assert_close(got, want, x, compute)


@pytest.mark.isa("avx2")
@pytest.mark.parametrize("bits", [2, 3])
def test_integers_of_other_packings_are_exact(bits: int) -> None:
    case = CASES[bits]
    module, rng = case.matmul("int8"), np.random.default_rng(bits)
    _, call = built(module, "avx2", many_only(module), threads=3)
    for rows in (1, 40):
        x = rows_of_x(rng, rows, case.columns)
        x[-1, 3] = np.nan
        np.testing.assert_array_equal(call(x)[0], ir.interpret(module, [x])[0])


@pytest.mark.isa("avx2")
def test_threads_share_panels_and_columns_may_be_strided() -> None:
    case = Weights(8 * 9 + 3, 64, bits=4, codebooks=1, scales=1)
    module, rng = case.matmul("float32"), np.random.default_rng(5)
    _, call = built(module, "avx2", many_only(module), threads=2)
    wide = rows_of_x(rng, 2 * 23, 2 * case.columns)
    for x in (wide[::2, ::2], wide[:23, : case.columns], np.asfortranarray(wide[:5, :64])):
        assert_close(call(x)[0], ir.interpret(module, [x])[0], x, "float32")


@pytest.mark.isa("avx2")
def test_few_and_many_rows_meet() -> None:
    case = Weights(17, 40, bits=4, codebooks=17, scales=1)
    module, rng = case.matmul("int8"), np.random.default_rng(6)
    _, call = built(module, "avx2")
    x = rows_of_x(rng, MOST_FEW + 1, case.columns)
    for rows in (MOST_FEW, MOST_FEW + 1):
        np.testing.assert_array_equal(call(x[:rows])[0], ir.interpret(module, [x[:rows]])[0])
