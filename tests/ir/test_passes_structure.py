"""Outlining, layouts and inlining: the text before and after; the pipeline as a whole."""

# ruff: noqa: E501 (expected text is exact)

from __future__ import annotations

import numpy as np
import pytest

from lutcc import ir
from lutcc.errors import VerifyError
from lutcc.ir.passes import (
    PIPELINE,
    AssignLayouts,
    EraseLayouts,
    FuseRows,
    InlineCalls,
    run_pipeline,
)
from tests.ir.pass_checks import check, module

CONVOLUTION = """
constant @w : float32[2, 4] = dense [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
constant @b : float32[2] = dense [0.5, -0.5]
func @main(%x: float32[n, 1, 3, 3], %r: float32[n, 8]) {
  %p = im2col(%x) {kernel = (2, 2)} : float32[4*n, 4]
  %w = constant() {ref = "w"} : float32[2, 4]
  %b = constant() {ref = "b"} : float32[2]
  %h = linear(%p, %w, %b) : float32[4*n, 2]
  %i = relu(%h) : float32[4*n, 2]
  %early = relu(%r) : float32[n, 8]
  %j = rows_to_nchw(%i) {oh = 2, ow = 2} : float32[n, 2, 2, 2]
  %k = reshape(%j) {shape = (n, 8)} : float32[n, 8]
  %s = add(%k, %early) : float32[n, 8]
  %y = relu(%s) : float32[n, 8]
  return %y, %i
}
"""


def test_fuse_rows() -> None:
    check(
        FuseRows(),
        CONVOLUTION,
        """
        constant @w : float32[2, 4] = dense [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
        constant @b : float32[2] = dense [0.5, -0.5]

        func @main(%x: float32[n, 1, 3, 3], %r: float32[n, 8]) {
          %p = im2col(%x) {dilation = (1, 1), kernel = (2, 2), padding = (0, 0), stride = (1, 1)} : float32[4*n, 4]
          %i = call(%p) {callee = "rows0"} : float32[4*n, 2]
          %early = call(%r) {callee = "rows1"} : float32[n, 8]
          %j = rows_to_nchw(%i) {oh = 2, ow = 2} : float32[n, 2, 2, 2]
          %k = reshape(%j) {shape = (n, 8)} : float32[n, 8]
          %y = call(%k, %early) {callee = "rows2"} : float32[n, 8]
          return %y, %i
        }

        func @rows0(%p: float32[4*n, 4]) {
          %w = constant() {ref = "w"} : float32[2, 4]
          %b = constant() {ref = "b"} : float32[2]
          %h = linear(%p, %w, %b) {activation = "none"} : float32[4*n, 2]
          %i = relu(%h) : float32[4*n, 2]
          return %i
        }

        func @rows1(%r: float32[n, 8]) {
          %early = relu(%r) : float32[n, 8]
          return %early
        }

        func @rows2(%k: float32[n, 8], %early: float32[n, 8]) {
          %s = add(%k, %early) : float32[n, 8]
          %y = relu(%s) : float32[n, 8]
          return %y
        }
        """,
    )


def test_fuse_rows_does_not_group_what_reads_rows_as_a_weight() -> None:
    """Here the weight of a linear has as many rows as its input, but is read as a whole."""
    before = module("""
        constant @b : float32[4] = dense [0.0, 0.0, 0.0, 0.0]
        func @main(%x: float32[4, 3]) {
          %h = relu(%x) : float32[4, 3]
          %b = constant() {ref = "b"} : float32[4]
          %y = linear(%h, %h, %b) : float32[4, 4]
          return %y
        }""")
    after = FuseRows()(before)
    ir.verify(after)
    assert [op.opcode for op in after.main.body] == ["call", "call"]
    rows1 = after.function("rows1")
    assert [op.opcode for op in rows1.body] == ["constant", "linear"]
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    np.testing.assert_array_equal(ir.interpret(after, [x])[0], ir.interpret(before, [x])[0])
    np.testing.assert_array_equal(
        ir.interpret(run_pipeline(before), [x])[0], ir.interpret(before, [x])[0]
    )


def test_fuse_rows_keeps_unconnected_chains_apart_and_joins_branches() -> None:
    after = FuseRows()(
        module("""
        func @main(%x: float32[n, 3], %y: float32[n, 3]) {
          %a = relu(%x) : float32[n, 3]
          %b = relu(%y) : float32[n, 3]
          %c = add(%a, %x) : float32[n, 3]
          return %c, %b, %a
        }""")
    )
    calls = [(op.attr("callee"), len(op.operands), len(op.results)) for op in after.main.body]
    assert calls == [("rows0", 1, 2), ("rows1", 1, 1)]


def test_fuse_rows_passes_constant_rows_as_a_parameter() -> None:
    """A constant read row by row must be cut along with the rows, so it comes from main."""
    after = FuseRows()(
        module("""
        constant @c : float32[2, 1] = dense [1.0, 2.0]
        func @main(%x: float32[2, 1]) {
          %c = constant() {ref = "c"} : float32[2, 1]
          %y = add(%x, %c) : float32[2, 1]
          return %y
        }""")
    )
    assert [op.opcode for op in after.main.body] == ["constant", "call"]
    assert [p.name for p in after.function("rows0").params] == ["x", "c"]


def test_fuse_rows_leaves_other_ranks_in_main() -> None:
    text = """
        func @main(%x: float32[n, 3, 1], %v: float32[4]) {
          %y = relu(%x) : float32[n, 3, 1]
          %w = add(%v, %v) : float32[4]
          return %y, %w
        }"""
    assert FuseRows()(module(text)) == module(text)


def test_assign_layouts() -> None:
    before = """
        constant @d : int32[1, 1] = dense [0]
        constant @v : float32[1, 2] = dense [0.0, 0.0]
        constant @l : uint8[1, 2, 1] = dense [1, 2]
        func @main(%x: float32[n, 2]) {
          %acc, %codes = call(%x) {callee = "rows0"} : int32[n, 1], uint8[n, 1]
          return %acc, %codes
        }
        func @rows0(%x: float32[n, 2]) {
          %d = constant() {ref = "d"} : int32[1, 1]
          %v = constant() {ref = "v"} : float32[1, 2]
          %codes = tree_encode(%x, %d, %v) : uint8[n, 1]
          %l = constant() {ref = "l"} : uint8[1, 2, 1]
          %acc = lut_accumulate(%codes, %l) : int32[n, 1]
          return %acc, %codes
        }
        """
    after = """
        constant @d : int32[1, 1] = dense [0]
        constant @v : float32[1, 2] = dense [0.0, 0.0]
        constant @l : uint8[1, 2, 1] = dense [1, 2]

        func @main(%x: float32[n, 2]) {
          %acc, %codes = call(%x) {callee = "rows0"} : int32[n, 1], uint8[n, 1]
          return %acc, %codes
        }

        func @rows0(%x: float32[n, 2]) {
          %x_1 = repack(%x) {layout = layout row_blocked<32, 4>} : float32[n, 2] row_blocked<32, 4>
          %d = constant() {ref = "d"} : int32[1, 1]
          %v = constant() {ref = "v"} : float32[1, 2]
          %codes = tree_encode(%x_1, %d, %v) : uint8[n, 1] row_blocked<32, 4>
          %l = constant() {ref = "l"} : uint8[1, 2, 1]
          %acc = lut_accumulate(%codes, %l) {accumulate = "exact", upcast_every = 16} : int32[n, 1] row_blocked<32, 4>
          %acc_1 = repack(%acc) {layout = layout row_major} : int32[n, 1]
          %codes_1 = repack(%codes) {layout = layout row_major} : uint8[n, 1]
          return %acc_1, %codes_1
        }
        """
    result = check(AssignLayouts(row_block=32, inner=4), before, after)
    assert EraseLayouts()(result) == module(before)


def test_assign_layouts_repacks_a_column_major_parameter() -> None:
    text = """
        func @main(%x: float32[n, 2] column_major) {
          %y = call(%x) {callee = "rows0"} : float32[n, 2]
          return %y
        }
        func @rows0(%x: float32[n, 2] column_major) { %y = relu(%x) : float32[n, 2] return %y }
        """
    result = AssignLayouts()(module(text))
    ir.verify(result)
    assert [op.opcode for op in result.function("rows0").body] == ["repack", "relu", "repack"]
    assert EraseLayouts()(result) == module(text)


def test_erase_layouts_keeps_what_the_interface_needs() -> None:
    text = """
        func @main(%x: float32[n, 2] column_major) {
          %r = repack(%x) {layout = layout row_major} : float32[n, 2]
          %y = reshape(%r) {shape = (n, 2, 1)} : float32[n, 2, 1]
          %z = relu(%r) : float32[n, 2] row_blocked<8, 1>
          return %y, %z
        }
        """
    assert EraseLayouts()(module(text)) == module(text)


def test_inline_calls() -> None:
    check(
        InlineCalls(),
        """
        func @main(%x: float32[4*m, 2]) {
          %a = call(%x) {callee = "f"} : float32[4*m, 2]
          %b = reshape(%a) {shape = (m, 8)} : float32[m, 8]
          return %b, %x
        }
        func @g(%p: float32[k, 2]) { %r = relu(%p) : float32[k, 2] return %r }
        func @f(%x: float32[2*n, 2]) {
          %a = call(%x) {callee = "g"} : float32[2*n, 2]
          %c = call(%a) {callee = "h"} : float32[2*n, 2]
          return %c
        }
        func @h(%x: float32[n, 2]) { return %x }
        """,
        """
        func @main(%x: float32[4*m, 2]) {
          %r = relu(%x) : float32[4*m, 2]
          %b = reshape(%r) {shape = (m, 8)} : float32[m, 8]
          return %b, %x
        }
        """,
    )


def test_inlining_renames_and_binds_shape_attributes() -> None:
    before = module(
        """
        func @main(%x: float32[6*m, 2]) {
          %r = call(%x) {callee = "f"} : float32[m, 12]
          %s = call(%x) {callee = "f"} : float32[m, 12]
          %y = add(%r, %s) : float32[m, 12]
          return %y
        }
        func @f(%x: float32[2*n, 2]) {
          %r = relu(%x) : float32[2*n, 2]
          %z = reshape(%r) {shape = (n, 4)} : float32[n, 4]
          return %z
        }""".replace("float32[m, 12]", "float32[3*m, 4]")
    )
    after = InlineCalls()(before)
    ir.verify(after)
    assert len(after.functions) == 1
    assert [op.opcode for op in after.main.body] == ["relu", "reshape", "relu", "reshape", "add"]
    x = np.random.default_rng(1).normal(size=(12, 2)).astype(np.float32)
    np.testing.assert_array_equal(ir.interpret(after, [x])[0], ir.interpret(before, [x])[0])


def test_pipeline_leaves_the_form_that_lowering_takes() -> None:
    result = run_pipeline(module(CONVOLUTION))
    allowed = {"call", "im2col", "rows_to_nchw", "reshape"}
    assert {op.opcode for op in result.main.body} <= allowed
    rows0 = result.function("rows0")
    assert [op.opcode for op in rows0.body] == [
        "repack",
        "constant",
        "constant",
        "linear",
        "repack",
    ]
    assert rows0.body[3].attr("activation") == "relu"


def test_a_pass_that_breaks_a_module_is_caught() -> None:
    def breaks(module: ir.Module) -> ir.Module:
        main = module.main
        return module.replace(ir.Function("main", main.params, (), main.returns))

    with pytest.raises(VerifyError, match="used before it is defined"):
        run_pipeline(module(CONVOLUTION), (breaks,))


def test_the_pipeline_lists_every_pass_once() -> None:
    assert [type(p).__name__ for p in PIPELINE] == [
        "InlineCalls",
        "EraseLayouts",
        "FoldConstants",
        "FoldBatchNormAndAffine",
        "ChooseAccumulate",
        "LookupConvolutions",
        "ImageChains",
        "PoolSums",
        "IntegerChains",
        "DeadColumns",
        "FuseImages",
        "FuseRows",
        "AssignLayouts",
        "DeadCode",
    ]


def test_assign_layouts_reads_a_weight_as_it_is_passed() -> None:
    """A parameter read both row by row and as a weight is repacked for the rows only."""
    text = """
        constant @b : float32[4] = dense [0.0, 0.0, 0.0, 0.0]
        func @main(%x: float32[4, 3]) {
          %y = call(%x) {callee = "rows0"} : float32[4, 4]
          return %y
        }
        func @rows0(%x: float32[4, 3]) {
          %b = constant() {ref = "b"} : float32[4]
          %y = linear(%x, %x, %b) : float32[4, 4]
          return %y
        }"""
    result = AssignLayouts()(module(text))
    ir.verify(result)
    linear = next(op for op in result.function("rows0").body if op.opcode == "linear")
    kinds = [v.type.layout.kind for v in linear.operands]
    assert kinds == ["row_blocked", "row_major", "row_major"]
