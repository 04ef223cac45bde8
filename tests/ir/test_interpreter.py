"""The interpreter against the plain definitions, for every op and over random shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lutcc import ir
from lutcc.errors import InputError
from lutcc.ir.types import type_of_array
from tests.ir import (
    attention_cases,
    codebook_cases,
    dense_cases,
    image_cases,
    plain,
    rows_cases,
    sampled_cases,
)
from tests.ir.models import CASES as OTHER_CASES
from tests.ir.models import Case, N, inputs_for, modules

STRUCTURAL = {"constant", "call"}
CASES = {
    **OTHER_CASES,
    **sampled_cases.CASES,
    **codebook_cases.CASES,
    **dense_cases.CASES,
    **image_cases.CASES,
    **rows_cases.CASES,
    **attention_cases.CASES,
}


def assert_same(
    opcode: str,
    got: np.ndarray,
    want: np.ndarray,
    inputs: list[np.ndarray],
    attrs: Mapping[str, Any] | None = None,
) -> None:
    """Compare bit by bit (any NaN equals any NaN), or within the op's tolerance."""
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    tolerance = ir.OPS[opcode].tolerance_of([type_of_array(a) for a in inputs], attrs)
    if tolerance == 0 or got.dtype.kind == "i":
        np.testing.assert_array_equal(got, want)
        if got.dtype == np.float32:
            known = ~np.isnan(want)
            assert (np.signbit(got) == np.signbit(want))[known].all()
    else:
        finite = (np.nan_to_num(a.astype(np.float64), posinf=0, neginf=0) for a in inputs)
        scale = sum(float(np.abs(a).max()) for a in finite) + 1
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=tolerance * scale**2)


def test_every_op_has_a_plain_definition() -> None:
    assert set(plain.DEFINITIONS) == set(ir.OPS) - STRUCTURAL == set(CASES)


@pytest.mark.parametrize("opcode", sorted(CASES))
def test_against_plain_definition(opcode: str) -> None:
    @settings(
        max_examples=60,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(CASES[opcode])
    def check(case: Case) -> None:
        inputs = list(case.arrays)
        with np.errstate(all="ignore"):
            want = plain.DEFINITIONS[opcode](inputs, **case.attrs)
        got = ir.interpret(case.module(), inputs)
        assert len(got) == len(want)
        for g, w in zip(got, want, strict=True):
            assert_same(opcode, g, w, inputs, case.attrs)
        if ir.OPS[opcode].rowwise:
            symbolic = ir.interpret(case.module(symbolic=True), inputs)
            for s, g in zip(symbolic, got, strict=True):
                np.testing.assert_array_equal(s, g)

    check()


@pytest.mark.parametrize("opcode", sorted(op for op in CASES if ir.OPS[op].rowwise))
def test_rowwise_ops_map_rows_one_to_one(opcode: str) -> None:
    """Permuting the rows of the operands marked as rows permutes the rows of the result."""

    @settings(
        max_examples=25,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(CASES[opcode], st.randoms(use_true_random=False))
    def check(case: Case, random: object) -> None:
        specs = ir.OPS[opcode].operands
        rows = next(a for a, s in zip(case.arrays, specs, strict=True) if s.rows).shape[0]
        order = np.random.default_rng(random.getrandbits(32)).permutation(rows)  # type: ignore[attr-defined]
        moved = [a[order] if s.rows else a for a, s in zip(case.arrays, specs, strict=True)]
        got = ir.interpret(case.module(), list(case.arrays))
        for m, g in zip(ir.interpret(case.module(), moved), got, strict=True):
            np.testing.assert_array_equal(m, g[order])

    check()


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(modules(), st.integers(0, 6))
def test_random_modules_give_what_their_types_say(module: ir.Module, n: int) -> None:
    results = ir.interpret(module, inputs_for(module, n))
    for value, array in zip(module.main.returns, results, strict=True):
        assert array.dtype.name == value.type.dtype
        sizes = [d.factor * n if isinstance(d, ir.Sym) else d for d in value.type.shape]
        assert list(array.shape) == sizes


def test_strided_inputs() -> None:
    b = ir.Builder("main")
    b.returns(b.op("relu", b.param("x", ir.TensorType((N, 3), "float32"))))
    wide = np.arange(40, dtype=np.float32).reshape(4, 10) - 20
    for x in (wide[:, 1:9:3], wide[::-2, 6:3:-1], np.asfortranarray(wide[:, :3])):
        np.testing.assert_array_equal(ir.interpret(b.module(), [x])[0], np.maximum(x, 0))


def test_calls_bind_symbols() -> None:
    text = """lutcc.ir 1
    func @main(%x: float32[4*m, 3], %y: float32[2, 3]) {
      %a = call(%x) {callee = "twice"} : float32[2*m, 6]
      %b = call(%y) {callee = "twice"} : float32[1, 6]
      return %a, %b, %x
    }
    func @twice(%x: float32[2*n, 3]) {
      %s = add(%x, %x) : float32[2*n, 3]
      %r = reshape(%s) {shape = (n, 6)} : float32[n, 6]
      return %r
    }"""
    module = ir.parse(text)
    x, y = np.ones((8, 3), np.float32), np.ones((2, 3), np.float32)
    a, b, same = ir.interpret(module, [x, y])
    assert a.shape == (4, 6)
    assert b.shape == (1, 6)
    assert (a == 2).all()
    assert same.shape == (8, 3)
    assert ir.interpret(module, [x], function="twice")[0].shape == (4, 6)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([], "got 0 inputs for 2 parameters"),
        ([np.zeros((3, 4)), np.zeros((3, 2), np.float32)], "float64"),
        ([np.zeros(3, np.float32), np.zeros((3, 2), np.float32)], "rank 1"),
        (
            [np.zeros((4, 5), np.float32), np.zeros((2, 2), np.float32)],
            "dimension 1 must be 4, got 5",
        ),
        ([np.zeros((3, 4), np.float32), np.zeros((3, 2), np.float32)], "3 is not a multiple of 2"),
        ([np.zeros((4, 4), np.float32), np.zeros((3, 2), np.float32)], "n = 2 from another"),
    ],
)
def test_wrong_inputs(arrays: list[np.ndarray], message: str) -> None:
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((ir.Sym("n", 2), 4), "float32"))
    b.returns(x, b.param("y", ir.TensorType((N, 2), "float32")))
    with pytest.raises(InputError, match=message):
        ir.interpret(b.module(), arrays)


def test_values_that_an_op_refuses() -> None:
    b = ir.Builder("main")
    codes = b.param("codes", ir.TensorType((N, 2), "uint8"))
    b.returns(b.op("lut_accumulate", codes, b.constant("lut", np.zeros((2, 4, 1), np.uint8))))
    module = b.module()
    with pytest.raises(
        InputError, match=r"op 1 \(lut_accumulate\): codes holds 4, but lut has K = 4"
    ):
        ir.interpret(module, [np.array([[0, 4]], np.uint8)])
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((N, 2), "float32"))
    dims = b.param("dims", ir.TensorType((1, 1), "int32"))
    vals = b.param("vals", ir.TensorType((1, 2), "float32"))
    b.returns(b.op("tree_encode", x, dims, vals))
    x0, d0 = np.zeros((1, 2), np.float32), np.full((1, 1), -1, np.int32)
    with pytest.raises(InputError, match=r"splitdims holds -1\.\.-1, but x has 2 columns"):
        ir.interpret(b.module(), [x0, d0, x0])


def test_interpreting_does_not_change_inputs_or_constants() -> None:
    b = ir.Builder("main")
    c = b.constant("c", np.ones((2, 2), np.float32))
    x = b.param("x", ir.TensorType((2, 2), "float32"))
    b.returns(b.op("add", x, c), x, c)
    module = b.module()
    given_ = np.full((2, 2), 3, np.float32)
    ir.interpret(module, [given_])
    assert (given_ == 3).all()
    assert (module.constant("c") == 1).all()
