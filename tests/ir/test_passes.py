"""Each pass: the text before and after, and what it must leave alone."""

# ruff: noqa: E501 (expected text is exact)

from __future__ import annotations

import numpy as np
import pytest

from lutcc import ir
from lutcc.ir.arithmetic import mean_of_groups
from lutcc.ir.passes import (
    ChooseAccumulate,
    DeadCode,
    FoldBatchNormAndAffine,
    FoldConstants,
    averaging_bias,
    averaging_error,
)
from tests.ir.pass_checks import check, module


def test_dead_code() -> None:
    check(
        DeadCode(),
        """
        constant @used : float32[2] = dense [1.0, 2.0]
        constant @unused : float32[1] = dense [3.0]
        func @main(%x: float32[2]) {
          %c = constant() {ref = "used"} : float32[2]
          %d = constant() {ref = "unused"} : float32[1]
          %e = relu(%d) : float32[1]
          %y = call(%x) {callee = "live"} : float32[2]
          %z = call(%x) {callee = "dead"} : float32[2]
          %s = add(%y, %c) : float32[2]
          return %s
        }
        func @dead(%x: float32[2]) { %y = call(%x) {callee = "live"} : float32[2] return %y }
        func @live(%x: float32[2]) { %u = relu(%x) : float32[2] return %x }
        """,
        """
        constant @used : float32[2] = dense [1.0, 2.0]

        func @main(%x: float32[2]) {
          %c = constant() {ref = "used"} : float32[2]
          %y = call(%x) {callee = "live"} : float32[2]
          %s = add(%y, %c) : float32[2]
          return %s
        }

        func @live(%x: float32[2]) {
          return %x
        }
        """,
    )


def test_fold_constants() -> None:
    check(
        FoldConstants(),
        """
        constant @a : float32[2, 2] = dense [1.0, -2.0, 3.0, -4.0]
        func @main(%x: float32[n, 2]) {
          %a = constant() {ref = "a"} : float32[2, 2]
          %r = relu(%a) : float32[2, 2]
          %s = add(%r, %r) : float32[2, 2]
          %w = reshape(%s) {shape = (4, 1)} : float32[4, 1]
          %v = reshape(%w) {shape = (2, 2)} : float32[2, 2]
          %t = reshape(%x) {shape = (n, 2, 1)} : float32[n, 2, 1]
          %u = reshape(%t) {shape = (n, 2)} : float32[n, 2]
          %p = relu(%u) : float32[n, 2]
          %q = relu(%p) : float32[n, 2]
          return %q, %v
        }
        """,
        """
        constant @v : float32[2, 2] = dense [2.0, 0.0, 6.0, 0.0]

        func @main(%x: float32[n, 2]) {
          %v_1 = constant() {ref = "v"} : float32[2, 2]
          %p = relu(%x) : float32[n, 2]
          return %p, %v_1
        }
        """,
    )


def test_fold_constants_leaves_large_results() -> None:
    b = ir.Builder("main")
    image = b.constant("image", np.ones((1, 1, 64, 64), np.float32))
    b.returns(b.op("im2col", image, kernel=(8, 8)))
    before = b.module()
    assert FoldConstants(max_bytes=100_000)(before) == before
    folded = FoldConstants()(before)
    assert [op.opcode for op in folded.main.body] == ["constant"]
    np.testing.assert_array_equal(ir.interpret(folded, [])[0], ir.interpret(before, [])[0])


LINEAR = """
constant @w : float32[2, 3] = dense [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
constant @b : float32[2] = dense [0.5, -0.5]
constant @gamma : float32[2] = dense [2.0, 4.0]
constant @beta : float32[2] = dense [1.0, 0.0]
constant @mean : float32[2] = dense [1.5, 0.5]
constant @var : float32[2] = dense [0.25, 4.0]
func @main(%x: float32[n, 3]) {
  %w = constant() {ref = "w"} : float32[2, 3]
  %b = constant() {ref = "b"} : float32[2]
  %g = constant() {ref = "gamma"} : float32[2]
  %e = constant() {ref = "beta"} : float32[2]
  %m = constant() {ref = "mean"} : float32[2]
  %v = constant() {ref = "var"} : float32[2]
  %h = linear(%x, %w, %b) : float32[n, 2]
  %i = batch_norm(%h, %g, %e, %m, %v) {eps = 0.0} : float32[n, 2]
  %y = relu(%i) : float32[n, 2]
  return RETURNS
}
"""


def test_batch_norm_and_relu_fold_into_linear() -> None:
    check(
        FoldBatchNormAndAffine(),
        LINEAR.replace("RETURNS", "%y"),
        """
        constant @w_1 : float32[2, 3] = dense [4.0, 8.0, 12.0, 8.0, 10.0, 12.0]
        constant @b_1 : float32[2] = dense [-3.0, -2.0]

        func @main(%x: float32[n, 3]) {
          %w_1 = constant() {ref = "w_1"} : float32[2, 3]
          %b_1 = constant() {ref = "b_1"} : float32[2]
          %y = linear(%x, %w_1, %b_1) {activation = "relu"} : float32[n, 2]
          return %y
        }
        """,
    )


@pytest.mark.parametrize(
    ("returns", "opcodes"),
    [("%y, %h", ["linear", "affine", "relu"]), ("%y, %i", ["linear", "relu"])],
)
def test_what_others_read_is_not_folded_into(returns: str, opcodes: list[str]) -> None:
    result = FoldBatchNormAndAffine()(module(LINEAR.replace("RETURNS", returns)))
    assert [op.opcode for op in result.main.body if op.opcode != "constant"] == opcodes


def test_overflowing_folds_are_refused() -> None:
    text = LINEAR.replace("[2.0, 4.0]", "[3e38, 4.0]").replace("RETURNS", "%y")
    result = FoldBatchNormAndAffine()(module(text))
    assert [op.opcode for op in result.main.body if op.opcode != "constant"] == [
        "linear",
        "batch_norm",
        "relu",
    ]
    zero = LINEAR.replace("[0.25, 4.0]", "[0.0, 4.0]").replace("RETURNS", "%y")
    result = FoldBatchNormAndAffine()(module(zero))
    assert "batch_norm" in [op.opcode for op in result.main.body]


def test_affine_folds_into_dequantize_and_into_the_next_linear() -> None:
    check(
        FoldBatchNormAndAffine(),
        """
        constant @one : float32[2] = dense [0.5, 2.0]
        constant @two : float32[2] = dense [1.0, -1.0]
        constant @w : float32[1, 2] = dense [3.0, 5.0]
        constant @b : float32[1] = dense [1.0]
        func @main(%acc: int32[n, 2], %x: float32[n, 2]) {
          %s = constant() {ref = "one"} : float32[2]
          %t = constant() {ref = "two"} : float32[2]
          %d = lut_dequantize(%acc, %s, %t) : float32[n, 2]
          %e = affine(%d, %s, %t) : float32[n, 2]
          %f = relu(%e) : float32[n, 2]
          %g = affine(%x, %s, %t) : float32[n, 2]
          %w = constant() {ref = "w"} : float32[1, 2]
          %b = constant() {ref = "b"} : float32[1]
          %h = linear(%g, %w, %b) : float32[n, 1]
          return %f, %h
        }
        """,
        """
        constant @one_1 : float32[2] = dense [0.25, 4.0]
        constant @two_1 : float32[2] = dense [1.5, -3.0]
        constant @w_1 : float32[1, 2] = dense [1.5, 10.0]
        constant @b_1 : float32[1] = dense [-1.0]

        func @main(%acc: int32[n, 2], %x: float32[n, 2]) {
          %one = constant() {ref = "one_1"} : float32[2]
          %two = constant() {ref = "two_1"} : float32[2]
          %f = lut_dequantize(%acc, %one, %two) {activation = "relu"} : float32[n, 2]
          %w_1 = constant() {ref = "w_1"} : float32[1, 2]
          %b_1 = constant() {ref = "b_1"} : float32[1]
          %h = linear(%x, %w_1, %b_1) {activation = "none"} : float32[n, 1]
          return %f, %h
        }
        """,
    )


def test_affine_folds_into_float_tables() -> None:
    check(
        FoldBatchNormAndAffine(),
        """
        constant @lut : float32[2, 2, 1] = dense [1.0, 2.0, 3.0, 4.0]
        constant @s : float32[1] = dense [2.0]
        constant @t : float32[1] = dense [10.0]
        func @main(%codes: uint8[n, 2]) {
          %l = constant() {ref = "lut"} : float32[2, 2, 1]
          %s = constant() {ref = "s"} : float32[1]
          %t = constant() {ref = "t"} : float32[1]
          %a = lut_accumulate(%codes, %l) : float32[n, 1]
          %y = affine(%a, %s, %t) : float32[n, 1]
          return %y
        }
        """,
        """
        constant @lut_1 : float32[2, 2, 1] = dense [12.0, 14.0, 6.0, 8.0]

        func @main(%codes: uint8[n, 2]) {
          %lut = constant() {ref = "lut_1"} : float32[2, 2, 1]
          %y = lut_accumulate(%codes, %lut) {accumulate = "exact", upcast_every = 16} : float32[n, 1]
          return %y
        }
        """,
    )


def test_relu_moves_before_data_movement_into_the_epilogue() -> None:
    check(
        FoldBatchNormAndAffine(),
        """
        constant @w : float32[2, 9] = base64 "BASE64"
        constant @b : float32[2] = dense [0.0, 0.0]
        func @main(%x: float32[n, 1, 4, 4]) {
          %p = im2col(%x) {kernel = (3, 3)} : float32[4*n, 9]
          %w = constant() {ref = "w"} : float32[2, 9]
          %b = constant() {ref = "b"} : float32[2]
          %h = linear(%p, %w, %b) : float32[4*n, 2]
          %i = rows_to_nchw(%h) {oh = 2, ow = 2} : float32[n, 2, 2, 2]
          %y = relu(%i) : float32[n, 2, 2, 2]
          %z = reshape(%y) {shape = (n, 8)} : float32[n, 8]
          return %z
        }
        """.replace("BASE64", "AAAA" * 24),
        """
        constant @w : float32[2, 9] = dense [ZEROS]
        constant @b : float32[2] = dense [0.0, 0.0]

        func @main(%x: float32[n, 1, 4, 4]) {
          %p = im2col(%x) {dilation = (1, 1), kernel = (3, 3), padding = (0, 0), stride = (1, 1)} : float32[4*n, 9]
          %w = constant() {ref = "w"} : float32[2, 9]
          %b = constant() {ref = "b"} : float32[2]
          %y_1 = linear(%p, %w, %b) {activation = "relu"} : float32[4*n, 2]
          %y = rows_to_nchw(%y_1) {oh = 2, ow = 2} : float32[n, 2, 2, 2]
          %z = reshape(%y) {shape = (n, 8)} : float32[n, 8]
          return %z
        }
        """.replace("ZEROS", ", ".join(["0.0"] * 18)),
    )


LOOKUP = """
constant @lut : uint8[4, 2, 1] = dense [0, 100, 0, 100, 0, 100, 0, 100]
constant @s : float32[1] = dense [0.5]
constant @t : float32[1] = dense [10.0]
func @main(%codes: uint8[n, 4]) {
  %l = constant() {ref = "lut"} : uint8[4, 2, 1]
  %acc = lut_accumulate(%codes, %l) : int32[n, 1]
  %s = constant() {ref = "s"} : float32[1]
  %t = constant() {ref = "t"} : float32[1]
  %y = lut_dequantize(%acc, %s, %t) : float32[n, 1]
  return %y
}
"""


def test_choose_accumulate_records_the_proven_bound() -> None:
    result = ChooseAccumulate()(module(LOOKUP))
    line = (
        '%acc = lut_accumulate(%codes, %l) {accumulate = "exact", bound = 400, upcast_every = 16}'
    )
    assert line in ir.to_text(result)
    stale = LOOKUP.replace("(%codes, %l)", "(%codes, %l) {bound = 9999}")
    assert ChooseAccumulate()(module(stale)) == result
    assert ChooseAccumulate()(result) == result


def test_choose_accumulate_keeps_mean_where_it_was_asked_for() -> None:
    asked = LOOKUP.replace("(%codes, %l)", '(%codes, %l) {accumulate = "mean", upcast_every = 2}')
    op = ChooseAccumulate()(module(asked)).main.body[1]
    assert op.attr("accumulate") == "mean"
    assert op.attr("bound") == 200  # two groups of the average of 100 and 100


def test_choose_accumulate_averages_within_the_error_budget() -> None:
    # bias of a tree of 4: log2(4) / 4 = 0.5, so the error is at most 4 * 0.5 = 2 of a range of 400
    assert averaging_error(module(LOOKUP).constant("lut"), 4) == 0.005
    step = ChooseAccumulate(error_budget=0.005, upcast_every=4)
    check(
        step,
        LOOKUP,
        """
        constant @lut : uint8[4, 2, 1] = dense [0, 100, 0, 100, 0, 100, 0, 100]
        constant @s_1 : float32[1] = dense [2.0]
        constant @t_1 : float32[1] = dense [9.0]

        func @main(%codes: uint8[n, 4]) {
          %l = constant() {ref = "lut"} : uint8[4, 2, 1]
          %acc_1 = lut_accumulate(%codes, %l) {accumulate = "mean", bound = 100, upcast_every = 4} : int32[n, 1]
          %s_1 = constant() {ref = "s_1"} : float32[1]
          %t_1 = constant() {ref = "t_1"} : float32[1]
          %y = lut_dequantize(%acc_1, %s_1, %t_1) {activation = "none"} : float32[n, 1]
          return %y
        }
        """,
    )
    tight = ChooseAccumulate(error_budget=0.0049, upcast_every=4)(module(LOOKUP))
    assert tight.main.body[1].attr("accumulate") == "exact"
    shared = module(LOOKUP.replace("return %y", "return %y, %acc"))
    kept = step(shared)
    assert [op.attr("accumulate") for op in kept.main.body if op.opcode == "lut_accumulate"] == [
        "exact"
    ]


@pytest.mark.parametrize("upcast_every", [2, 4, 16, 128, 256])
@pytest.mark.parametrize("ncodebooks", [1, 3, 16, 37, 64])
def test_averaging_error_bound_and_bias(upcast_every: int, ncodebooks: int) -> None:
    """The corrected mean stays within the proven error, and its average error is about zero."""
    rng = np.random.default_rng(upcast_every * ncodebooks)
    values = rng.integers(0, 256, (4000, ncodebooks))
    bias = averaging_bias(ncodebooks, upcast_every)
    mean = mean_of_groups(values.astype(np.uint8), upcast_every)
    error = upcast_every * (mean - bias) - values.sum(axis=1)
    assert np.abs(error).max() <= upcast_every * bias + 1e-9
    spread = error.std() / np.sqrt(len(values))
    assert abs(error.mean()) < 5 * spread + 1e-9
    if ncodebooks % upcast_every == 0:
        assert upcast_every * bias == ncodebooks * np.log2(upcast_every) / 4
