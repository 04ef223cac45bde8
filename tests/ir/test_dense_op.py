"""dense: rules and arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lutcc import ir
from lutcc.errors import InputError, VerifyError
from lutcc.ir.arithmetic import quantize_rows
from lutcc.ir.passes.fold_affine import FoldBatchNormAndAffine
from tests.ir.models import Case

F32 = np.float32
RNG = np.random.default_rng(0)


def operands(n: int = 2, m: int = 3, k: int = 5) -> list[np.ndarray]:
    x, weight, bias = (RNG.normal(size=s).astype(F32) for s in ((n, k), (m, k), (m,)))
    return [x, weight, np.ones(m, F32), bias]


def quantised(arrays: list[np.ndarray]) -> list[np.ndarray]:
    x, weight, _, bias = arrays
    integers, units = quantize_rows(weight)
    return [x, integers.astype(np.int8), units, bias]


def run(arrays: list[np.ndarray], **attrs: Any) -> np.ndarray:
    return ir.interpret(Case("dense", tuple(arrays), dict(attrs)).module(), arrays)[0]


@pytest.mark.parametrize("compute", ["float32", "bfloat16", "int8"])
def test_near_the_float_product(compute: str) -> None:
    arrays = operands(7, 11, 130)
    x, weight, _, bias = (a.astype(float) for a in arrays)
    got = run(quantised(arrays) if compute == "int8" else arrays, compute=compute)
    size = np.abs(x) @ np.abs(weight).T + 1
    step = {"float32": 1e-6, "bfloat16": 2.0**-7, "int8": 0.02}[compute]
    assert (np.abs(got - (x @ weight.T + bias)) <= step * size).all()


def test_what_is_not_finite_stays_in_its_row() -> None:
    arrays = quantised(operands(4))
    want = run(arrays, compute="int8")
    arrays[0][1, 2], arrays[0][3, 0] = np.nan, np.inf
    got = run(arrays, compute="int8")
    assert np.isnan(got[[1, 3]]).all()
    np.testing.assert_array_equal(got[[0, 2]], want[[0, 2]])


def test_extremes_are_exact() -> None:
    """The largest sums of the largest K: int32 holds them."""
    k = 2**17
    x, w = np.full((1, k), 3.0, F32), np.full((1, k), 127, np.int8)
    got = run([x, w, np.ones(1, F32), np.zeros(1, F32)], compute="int8")
    assert got[0, 0] == F32(127 * 127 * k) * (F32(3) / F32(127))


@pytest.mark.parametrize(
    ("compute", "dtype", "message"),
    [
        ("float32", np.int8, "operand 'weight' is int8, but 'compute' is 'float32'"),
        ("int8", F32, "operand 'weight' is float32, but 'compute' is 'int8': integers are"),
        ("int4", F32, "compute"),
        ("float32", np.float16, "must be float32 or bfloat16 or int8, not float16"),
    ],
)
def test_weights_fit_what_is_computed(compute: str, dtype: Any, message: str) -> None:
    x, weight, units, bias = operands()
    with pytest.raises(VerifyError, match=message):
        run([x, weight.astype(dtype), units, bias], compute=compute)


def test_sums_that_may_overflow_are_refused() -> None:
    k = 2**17 + 1
    b = ir.Builder("main")
    params = [((1, k), "float32"), ((1, k), "int8"), ((1,), "float32"), ((1,), "float32")]
    values = [b.param(f"p{i}", ir.TensorType(*p)) for i, p in enumerate(params)]
    with pytest.raises(VerifyError, match="K = 131073 columns may overflow the int32 sums"):
        b.op("dense", *values, compute="int8")


def test_minus_128_is_refused() -> None:
    arrays = quantised(operands())
    arrays[1][0, 0] = -128
    with pytest.raises(InputError, match="weight has -128"):
        run(arrays, compute="int8")
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((2, 5), "float32"))
    constants = [b.constant(f"c{i}", a) for i, a in enumerate(arrays[1:])]
    b.returns(b.op("dense", x, *constants, compute="int8"))
    with pytest.raises(VerifyError, match="operand 'weight' has -128"):
        b.module()


def test_relu_becomes_part_of_it() -> None:
    arrays = operands()
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((2, 5), "float32"))
    constants = [b.constant(f"c{i}", a) for i, a in enumerate(arrays[1:])]
    b.returns(b.op("relu", b.op("dense", x, *constants)))
    module = b.module()
    folded = FoldBatchNormAndAffine()(module)
    assert [op.opcode for op in folded.main.body if op.opcode != "constant"] == ["dense"]
    want = ir.interpret(module, arrays[:1])
    np.testing.assert_array_equal(ir.interpret(folded, arrays[:1]), want)
    assert (want[0] == 0).any()
