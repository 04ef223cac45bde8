"""codebook_dequantize: every level against the interpreter; rows that do not exist."""

from __future__ import annotations

import numpy as np
import pytest

from lutcc import ir
from lutcc.codegen.targets import parse_targets
from lutcc.compiler import compile_module
from lutcc.errors import CompileError, InputError
from tests.schedules.codebook_modules import Weights
from tests.schedules.harness import ISA_PARAMS, N, built

CASES = [
    Weights(37, 45, bits=4, codebooks=5, scales=37),
    Weights(10, 130, bits=3, codebooks=30, scales=1, segment_size=64),
    Weights(7, 64, bits=2, codebooks=1, scales=14, segment_size=32),
    Weights(5, 3, bits=3, codebooks=2, scales=1),
]


@pytest.mark.parametrize("isa", ISA_PARAMS)
def test_any_rows(isa: str) -> None:
    b, rng = ir.Builder("main"), np.random.default_rng(0)
    rows = b.param("rows", ir.TensorType((N,), "int32"))
    found = []
    for case in CASES:  # one module: a build for each level
        operands, attrs = case.operands(b)
        found.append(b.op("codebook_dequantize", rows, *operands, columns=case.columns, **attrs))
    b.returns(*found)
    module = b.module()
    _, call = built(module, isa)
    for count in (1, 2, 40):
        numbers = rng.integers(0, min(case.rows for case in CASES), count).astype(np.int32)
        for got, want in zip(call(numbers), ir.interpret(module, [numbers]), strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.isa("avx2")
def test_threads_and_large_results() -> None:
    case = Weights(300, 1024, bits=4, codebooks=300, scales=1)
    module = case.dequantize()
    _, call = built(module, "avx2", threads=3)
    rows = np.arange(300, dtype=np.int32)[::-1].copy()  # more than a megabyte: past the caches
    np.testing.assert_array_equal(call(rows)[0], ir.interpret(module, [rows])[0])


@pytest.mark.isa("avx2")
def test_a_row_that_does_not_exist_is_refused() -> None:
    case = CASES[3]
    artifact = compile_module(case.dequantize(), parse_targets("avx2"))
    for wrong in (-1, 5):
        with pytest.raises(InputError, match=r"not one of the rows 0\.\.4"):
            artifact(np.array([0, wrong], np.int32))
    assert artifact(np.array([4], np.int32)).shape == (1, 3)


def test_weights_must_be_constants() -> None:
    b = ir.Builder("main")
    rows = b.param("rows", ir.TensorType((N,), "int32"))
    indices = b.param("indices", ir.TensorType((5, 2), "uint8"))
    books = b.constant("codebooks", np.zeros((1, 8), np.float32))
    scales = b.constant("scales", np.ones(1, np.float32))
    b.returns(b.op("codebook_dequantize", rows, indices, books, scales, bits=3, columns=5))
    with pytest.raises(CompileError, match="must be constants: %indices of codebook_dequantize"):
        built(b.module(), "avx2")
