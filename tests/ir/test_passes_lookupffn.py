"""What the passes make of LookupFFN: one fused function, rows as they lie, nothing folded wrong."""

# ruff: noqa: E501 (expected text is exact)

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lutcc import ir
from lutcc.ir.passes import FoldConstants, FuseRows, run_pipeline
from tests.ir.lookupffn import N, lookup_ffn
from tests.ir.models import floats
from tests.ir.pass_checks import body, check

BEFORE = """
constant @t : float32[2, 4, 3] = dense [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23]
constant @w : bfloat16[2, 2, 2] = dense [1, 0, 0, 1, 1, 2, 3, 4]
func @main(%x: float32[n, 3]) {
  %w = constant() {ref = "w"} : bfloat16[2, 2, 2]
  %h = hadamard(%x) {scale = 0.5} : float32[n, 4]
  %z = block_diagonal_matmul(%h, %w) : float32[n, 4]
  %codes, %scores = sign_hash(%z) {code_length = 2, neighbors = 2} : int32[n, 4], float32[n, 4]
  %t = constant() {ref = "t"} : float32[2, 4, 3]
  %g = weighted_gather(%codes, %scores, %t) : float32[n, 3]
  %y = add(%g, %x) : float32[n, 3]
  return %y
}
"""
FUSED = """
constant @t : float32[2, 4, 3] = dense [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0, 18.0, 19.0, 20.0, 21.0, 22.0, 23.0]
constant @w : bfloat16[2, 2, 2] = dense [1.0, 0.0, 0.0, 1.0, 1.0, 2.0, 3.0, 4.0]

func @main(%x: float32[n, 3]) {
  %y = call(%x) {callee = "rows0"} : float32[n, 3]
  return %y
}

func @rows0(%x: float32[n, 3]) {
  %h = hadamard(%x) {scale = 0.5} : float32[n, 4]
  %w = constant() {ref = "w"} : bfloat16[2, 2, 2]
  %z = block_diagonal_matmul(%h, %w) : float32[n, 4]
  %codes, %scores = sign_hash(%z) {code_length = 2, neighbors = 2, variant = "gelu"} : int32[n, 4], float32[n, 4]
  %t = constant() {ref = "t"} : float32[2, 4, 3]
  %g = weighted_gather(%codes, %scores, %t) {score_dtype = "float32"} : float32[n, 3]
  %y = add(%g, %x) : float32[n, 3]
  return %y
}
"""


def test_one_function_holds_it_all() -> None:
    check(FuseRows(), BEFORE, FUSED)


def test_the_pipeline_keeps_its_rows_as_they_lie() -> None:
    """No repacks, no scale folded into the blocks: kernels do that when they pack."""
    result = run_pipeline(ir.parse("lutcc.ir 1\n" + BEFORE))
    assert ir.to_text(result).removeprefix("lutcc.ir 1\n\n").strip() == body(FUSED)


@pytest.mark.parametrize("kind", [np.float32, ml_dtypes.bfloat16, np.int8])
@pytest.mark.parametrize(("neighbors", "variant"), [(1, "gelu"), (3, "softmax"), (1, "constant")])
def test_nothing_changes_by_a_bit(kind: Any, neighbors: int, variant: str) -> None:
    rng = np.random.default_rng(7)
    module = lookup_ffn(rng, neighbors=neighbors, variant=variant, table_dtype=kind)
    result = run_pipeline(module)
    assert [f.name for f in result.functions] == ["main", "rows0"]
    assert [op.opcode for op in result.main.body] == ["call"]
    opcodes = [op.opcode for op in result.function("rows0").body if op.opcode != "constant"]
    assert opcodes == [
        *["hadamard", "block_diagonal_matmul"] * 4,
        "sign_hash",
        "weighted_gather",
        "affine",
        "add",
    ]
    assert result.constants == module.constants
    assert all(result.constants[k] is module.constants[k] for k in module.constants), "no copies"
    for n in (0, 1, 13):
        x = floats(rng, n, 24)
        (got,), (want,) = ir.interpret(result, [x]), ir.interpret(module, [x])
        np.testing.assert_array_equal(got, want)
    assert run_pipeline(result).canonical() == result.canonical()
    assert ir.parse(ir.to_text(result)) == result


def test_both_results_of_the_hash_leave_a_function() -> None:
    """Codes that another function reads as a whole, scores that leave: both are returned."""
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((N, 4), "float32"))
    codes, scores = b.ops("sign_hash", b.op("hadamard", x), code_length=2, variant="softmax")
    b.returns(scores, b.op("reshape", codes, shape=(ir.Sym("n", 2),)), codes)
    module = b.module()
    fused = FuseRows()(module)
    ir.verify(fused)
    (call,) = (op for op in fused.main.body if op.opcode == "call")
    assert [str(v.type) for v in call.results] == ["int32[n, 2]", "float32[n, 2]"]
    array = floats(np.random.default_rng(0), 5, 4)
    for got, want in zip(ir.interpret(fused, [array]), ir.interpret(module, [array]), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kept", [0, 1])
def test_one_result_is_enough_to_live(kept: int) -> None:
    b = ir.Builder("main")
    results = b.ops("sign_hash", b.param("x", ir.TensorType((N, 4), "float32")), code_length=4)
    b.returns(results[kept])
    fused = run_pipeline(b.module())
    assert [v.name for v in fused.function("rows0").returns] == [results[kept].name]
    assert [op.opcode for op in fused.function("rows0").body] == ["sign_hash"]


def test_constants_fold_through_the_family() -> None:
    """Both results of a hash of constants become constants, and a gather of them one row each."""
    rng = np.random.default_rng(0)
    b = ir.Builder("main")
    h = b.op("hadamard", b.constant("c", floats(rng, 2, 8)))
    z = b.op("block_diagonal_matmul", h, b.constant("w", floats(rng, 2, 4, 4)))
    codes, scores = b.ops("sign_hash", z, code_length=4, neighbors=2)
    tables = rng.integers(-9, 9, (2, 16, 3)).astype(np.int8)
    b.returns(b.op("weighted_gather", codes, scores, b.constant("t", tables)), codes, scores)
    module = b.module()
    folded = FoldConstants()(module)
    assert {op.opcode for op in folded.main.body} == {"constant"}
    assert len(folded.constants) == 3
    for got, want in zip(ir.interpret(folded, []), ir.interpret(module, []), strict=True):
        np.testing.assert_array_equal(got, want)


def test_what_would_grow_is_left_to_run_time() -> None:
    b = ir.Builder("main")
    h = b.op("hadamard", b.constant("c", np.ones((4, 5), np.float32)))  # 20 elements to 32
    b.returns(h)
    assert "hadamard" in {op.opcode for op in FoldConstants(max_bytes=100)(b.module()).main.body}
    assert {op.opcode for op in FoldConstants()(b.module()).main.body} == {"constant"}
