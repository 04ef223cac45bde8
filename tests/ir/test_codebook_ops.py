"""codebook_matmul, codebook_dequantize, sparse_add: rules and arithmetic."""

# ruff: noqa: E501 (tables read better in one line per case)

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutcc import ir
from lutcc.errors import InputError, VerifyError
from lutcc.ir.codebooks import (
    TABLE_LIMIT,
    columns_of,
    entry_tables,
    integer_tables,
    pack_indices,
    packed_columns,
    region_starts,
    unpack_indices,
)
from tests.ir.models import Case, N, floats

F, F16, I32, U8 = "float32", "float16", "int32", "uint8"
T = ir.TensorType
RNG = np.random.default_rng(0)


def run(opcode: str, *arrays: np.ndarray, **attrs: Any) -> np.ndarray:
    return ir.interpret(Case(opcode, arrays, dict(attrs)).module(), list(arrays))[0]


def layer(
    m: int, k: int, bits: int, books: int, scales: int = 1, segment_size: int = 0
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return float64 weights (M, K), and the operands behind x."""
    indices = RNG.integers(0, 2**bits, (m, k))
    c, s = (
        floats(RNG, books, 2**bits).astype(np.float16),
        RNG.uniform(0.5, 2, scales).astype(np.float16),
    )
    w = np.empty((m, k))
    for i in range(m):
        for j in range(k):
            g = i * books // m if books <= m else i * (books // m) + j // segment_size
            t = i * scales // m if scales <= m else i * (scales // m) + j // segment_size
            w[i, j] = float(c[g, indices[i, j]]) * float(s[t])
    return w, [pack_indices(indices, bits), c, s, np.arange(m, dtype=np.int32), floats(RNG, m)]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.sampled_from([2, 3, 4]), st.integers(0, 99))
def test_indices_come_back(rows: int, columns: int, bits: int, seed: int) -> None:
    indices = np.random.default_rng(seed).integers(0, 2**bits, (rows, columns)).astype(np.uint8)
    packed = pack_indices(indices, bits)
    assert packed.shape == (rows, packed_columns(columns, bits))
    np.testing.assert_array_equal(unpack_indices(packed, bits, columns), indices)


def test_groups_are_contiguous_and_even() -> None:
    for rows, groups in [(7, 3), (10, 10), (5, 1), (100, 33)]:
        found = region_starts(groups, rows, 64, 0)[:, 0]
        sizes = np.bincount(found, minlength=groups)
        assert (np.diff(found) >= 0).all()
        assert sizes.min() >= rows // groups
        assert sizes.max() <= -(-rows // groups)


@pytest.mark.parametrize("compute", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(
    "form", [(5, 40, 3, 2, 1, 0), (4, 70, 2, 12, 4, 32), (3, 33, 4, 3, 6, 32), (1, 1, 2, 1, 1, 0)]
)
def test_near_the_float_product(form: tuple[int, ...], compute: str) -> None:
    w, operands = layer(*form)
    x = floats(RNG, 3, form[1])
    got = run("codebook_matmul", x, *operands, bits=form[2], segment_size=form[5], compute=compute)
    want = x.astype(float) @ w.T + operands[-1]
    size = np.abs(x).astype(float) @ np.abs(w).T + 1
    step = {"float32": 1e-6, "bfloat16": 2.0**-7, "int8": 0.03}[compute]
    assert (np.abs(got - want) <= step * size).all()


def test_integers_are_bounded_and_rows_are_alone() -> None:
    _, operands = layer(6, 33, 4, 3)
    tables = entry_tables(operands[1], operands[2], 6, 33, 0)
    integers, units = integer_tables(tables)
    assert integers.min() >= -TABLE_LIMIT
    assert np.abs(integers).max(axis=(1, 2)).tolist() == [TABLE_LIMIT] * 6
    assert (np.abs(tables - integers * units[:, None, None]) <= units[:, None, None] * 0.5001).all()


def test_what_is_not_finite_stays_in_its_row() -> None:
    _, operands = layer(4, 6, 2, 2)
    x = floats(RNG, 4, 6)
    want = run("codebook_matmul", x, *operands, bits=2, compute="int8")
    x[1, 2], x[3, 0] = np.nan, np.inf
    got = run("codebook_matmul", x, *operands, bits=2, compute="int8")
    assert np.isnan(got[[1, 3]]).all()
    np.testing.assert_array_equal(got[[0, 2]], want[[0, 2]])
    operands[1][1, 0] = np.inf  # the second codebook: rows 2 and 3 of the matrix
    got = run("codebook_matmul", x, *operands, bits=2, compute="int8")
    assert np.isnan(got[0, 2:]).all()
    np.testing.assert_array_equal(got[0, :2], want[0, :2])


def test_zeros_give_the_bias() -> None:
    _, operands = layer(4, 6, 3, 1)
    for compute in ("float32", "int8"):
        got = run(
            "codebook_matmul", np.zeros((2, 6), np.float32), *operands, bits=3, compute=compute
        )
        np.testing.assert_array_equal(got, np.tile(operands[-1], (2, 1)))
        tiny = np.full((1, 6), 1e-42, np.float32)  # 127 / a is infinite
        got = run("codebook_matmul", tiny, *operands, bits=3, compute="int8")
        np.testing.assert_array_equal(got, operands[-1][None])
    operands[1] = 0 * operands[1]
    got = run("codebook_matmul", floats(RNG, 2, 6), *operands, bits=3, compute="int8")
    np.testing.assert_array_equal(got, np.tile(operands[-1], (2, 1)))


def test_order_puts_rows_where_they_belong() -> None:
    _, operands = layer(5, 8, 4, 2)
    x = floats(RNG, 2, 8)
    plain = run("codebook_matmul", x, *operands, bits=4)
    operands[3] = order = RNG.permutation(5).astype(np.int32)
    np.testing.assert_array_equal(run("codebook_matmul", x, *operands, bits=4)[:, order], plain)


def test_dequantized_rows_are_the_weights() -> None:
    w, operands = layer(4, 70, 2, 12, 4, 32)
    rows = np.array([3, 0, 3], np.int32)
    got = run("codebook_dequantize", rows, *operands[:3], bits=2, columns=70, segment_size=32)
    np.testing.assert_array_equal(got, w[rows].astype(np.float32))
    tables = entry_tables(operands[1], operands[2], 4, 70, 32)
    every = columns_of(tables, unpack_indices(operands[0], 2, 70), 32)
    np.testing.assert_array_equal(every, w.astype(np.float32))


def test_sparse_values_are_added() -> None:
    dense = np.where(RNG.random((3, 7)) < 0.4, floats(RNG, 3, 7), 0).astype(np.float32)
    starts = np.concatenate([[0], np.cumsum((dense != 0).sum(1))]).astype(np.int32)
    base, x = floats(RNG, 2, 3), floats(RNG, 2, 7)
    m, columns = np.nonzero(dense)
    got = run("sparse_add", base, x, starts, columns.astype(np.int32), dense[m, columns])
    np.testing.assert_allclose(got, base + x.astype(float) @ dense.T, rtol=1e-6, atol=1e-6)


def refused(opcode: str, types: list[ir.TensorType], **attrs: Any) -> str:
    b = ir.Builder("main")
    operands = [b.param(f"p{i}", t) for i, t in enumerate(types)]
    with pytest.raises(VerifyError) as caught:
        b.op(opcode, *operands, **attrs)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "attrs", "message"),
    [
        ({1: T((5, 3), U8)}, {}, "'indices' has B = 3 bytes a row, but 9 indices of 3 bits take 4"),
        ({2: T((2, 4), F16)}, {}, "'codebooks' has L = 4 values, but indices of 'bits' = 3 point at 8"),
        ({2: T((6, 8), F16)}, {}, "'codebooks' has G = 6 regions of 5 rows, which needs 'segment_size'"),
        ({3: T((7,), F16)}, {"segment_size": 32}, "'scales' has T = 7 regions, but 5 rows of 9 columns have 5"),
        ({}, {"segment_size": 48}, "'segment_size' is 48, not a multiple of 32"),
        ({}, {"bits": 5}, "'bits' is 5, but it must be in 2..4"),
        ({}, {"compute": "fp8"}, "'compute' is 'fp8', but it must be one of 'float32', 'bfloat16', 'int8'"),
        ({0: T((N, 9), F16)}, {}, "'x' of type float16[n, 9] must be float32"),
        ({4: T((4,), I32)}, {}, "'order' of type int32[4] has dimension 0 (M) = 4"),
        (
            {0: T((N, 2**17 + 8), F), 1: T((5, 49155), U8)},
            {"compute": "int8"},
            "K = 131080 columns may overflow the int32 sums",
        ),
    ],
)  # fmt: skip
def test_types_that_do_not_fit(
    change: dict[int, ir.TensorType], attrs: dict[str, Any], message: str
) -> None:
    types = [T((N, 9), F), T((5, 4), U8), T((2, 8), F16), T((1,), F16), T((5,), I32), T((5,), F)]
    for place, type_ in change.items():
        types[place] = type_
    assert message in refused("codebook_matmul", types, **{"bits": 3, **attrs})


def test_values_that_do_not_fit() -> None:
    _, operands = layer(3, 4, 2, 1)
    operands[3] = np.array([0, 0, 2], np.int32)
    with pytest.raises(InputError, match="order is not a permutation of the rows"):
        run("codebook_matmul", floats(RNG, 1, 4), *operands, bits=2)
    with pytest.raises(InputError, match=r"rows holds 3, but there are rows 0\.\.2"):
        run("codebook_dequantize", np.array([3], np.int32), *operands[:3], bits=2, columns=4)
    sparse = [np.array([0, 2, 1], np.int32), np.array([0], np.int32), floats(RNG, 1)]
    base, x = floats(RNG, 1, 2), floats(RNG, 1, 4)
    with pytest.raises(InputError, match="starts must rise from 0 to the 1 values"):
        run("sparse_add", base, x, *sparse)
    sparse[:2] = np.array([0, 1, 1], np.int32), np.array([4], np.int32)
    with pytest.raises(InputError, match=r"columns holds 4, but x has columns 0\.\.3"):
        run("sparse_add", base, x, *sparse)
    assert "'starts' has 2 entries, but operand 'base' has M = 2" in refused(
        "sparse_add", [T((N, 2), F), T((N, 4), F), T((2,), I32), T((1,), I32), T((1,), F)]
    )
    b = ir.Builder("main")
    rows = b.constant("rows", np.array([5], np.int32))
    weights = [b.constant(f"c{i}", a) for i, a in enumerate(operands[:3])]
    b.returns(b.op("codebook_dequantize", rows, *weights, bits=2, columns=4))
    with pytest.raises(VerifyError, match=r"'rows' holds 5, but there are rows 0\.\.2"):
        ir.verify(b.module())


def test_costs() -> None:
    _, operands = layer(8, 64, 4, 2)
    x = floats(RNG, 3, 64)
    module = Case("codebook_matmul", (x, *operands), {"bits": 4}).module()
    total = ir.cost(module).total
    assert total.lookups == 8 * 64
    assert total.flops == 2 * 3 * 8 * 64
    assert total.bytes_read == x.nbytes + sum(a.nbytes for a in operands)
