"""sparse_add: every level against the interpreter."""

from __future__ import annotations

import numpy as np
import pytest

from lutcc import ir
from tests.schedules.harness import WIDEST_ISA_PARAMS, N, built

F32 = np.float32


def sparse_module(rng: np.random.Generator, outputs: int, width: int, share: float) -> ir.Module:
    """Return base, x -> sparse_add with a random matrix, whose first row is empty."""
    there = rng.random((outputs, width)) < share
    there[0] = False
    m, columns = np.nonzero(there)
    starts = np.concatenate([[0], np.cumsum(np.bincount(m, minlength=outputs))])
    b = ir.Builder("main")
    operands = [
        b.param("base", ir.TensorType((N, outputs), "float32")),
        b.param("x", ir.TensorType((N, width), "float32")),
        b.constant("starts", starts.astype(np.int32)),
        b.constant("columns", columns.astype(np.int32)),
        b.constant("values", rng.normal(size=len(m)).astype(F32)),
    ]
    b.returns(b.op("sparse_add", *operands))
    return b.module()


def compare(module: ir.Module, call: object, base: np.ndarray, x: np.ndarray) -> None:
    (got,), (want,) = call(base, x), ir.interpret(module, [base, x])  # type: ignore[operator]
    bound = 1e-5 * (np.abs(base) + 4 * np.abs(x).sum(axis=1, keepdims=True))
    assert (np.abs(got - want) <= bound).all()


@pytest.mark.parametrize("isa", WIDEST_ISA_PARAMS)
@pytest.mark.parametrize(("outputs", "width"), [(45, 37), (5, 7)])
def test_any_shape(isa: str, outputs: int, width: int) -> None:
    rng = np.random.default_rng(outputs)
    module = sparse_module(rng, outputs, width, 0.2)
    _, call = built(module, isa)
    for rows in (1, 3, 4, 17):
        base, x = (rng.normal(size=(rows, n)).astype(F32) for n in (outputs, width))
        compare(module, call, base, x)


@pytest.mark.isa("avx2")
def test_threads_and_strides() -> None:
    rng = np.random.default_rng(1)
    module = sparse_module(rng, 20, 50, 0.3)
    _, call = built(module, "avx2", threads=3)
    base, x = (rng.normal(size=(2 * n, 70)).astype(F32) for n in (20, 50))
    for rows in (2, 35):
        compare(module, call, base[:20, :rows].T, x[::2, :rows].T)
        compare(module, call, base[:rows, :20], x[:rows, :50])
