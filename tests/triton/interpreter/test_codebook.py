"""Products with codebooks and sparse matrices, forward and backward, against plain formulas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from triton.runtime.errors import InterpreterError

from lutcc import ir
from lutcc.ir.arithmetic import quantize_rows as reference_rows
from lutcc.ir.codebooks import entry_tables, integer_tables, pack_indices
from lutcc.schedules.triton import codebook_matmul as product
from lutcc.schedules.triton import codebook_matmul_backward as gradient
from lutcc.schedules.triton.codebook_dequantize import codebook_dequantize
from lutcc.schedules.triton.codebook_matmul import codebook_matmul
from lutcc.schedules.triton.codebook_table_grad import codebook_dequantize_backward
from lutcc.schedules.triton.codebook_tables import Weights, quantize_rows
from lutcc.schedules.triton.sparse_add import sparse_add, sparse_add_backward
from tests.triton.interpreter.test_kernels import TOLERANCES, check, gradients, random
from tests.triton.references import relative_error

pytestmark = pytest.mark.one_in(3)

DTYPES = list(TOLERANCES)


@dataclass(frozen=True)
class Matrix:
    """A stored matrix and, by loops over its definition, the matrix that it stands for."""

    rows: int
    columns: int
    bits: int
    codebooks: torch.Tensor
    scales: torch.Tensor
    segment_size: int
    order: torch.Tensor | None

    @classmethod
    def of(cls, rows, columns, bits, books, factors, size, *, ordered=False, dtype=torch.float64):
        order = None
        if ordered:
            generator = torch.Generator().manual_seed(5)
            order = torch.randperm(rows, generator=generator).to(torch.int32)
        codebooks = random(books, 2**bits, dtype=dtype, seed=6)
        return cls(
            rows, columns, bits, codebooks, random(factors, dtype=dtype, seed=7), size, order
        )

    @property
    def numbers(self) -> np.ndarray:
        shape = self.rows, self.columns
        return np.random.default_rng(self.bits).integers(0, 2**self.bits, shape)

    @property
    def indices(self) -> torch.Tensor:
        return torch.from_numpy(pack_indices(self.numbers, self.bits))

    def region(self, regions: int) -> torch.Tensor:
        """Return (M, K): the region of each weight."""
        found = np.empty((self.rows, self.columns), np.int64)
        for m in range(self.rows):
            for k in range(self.columns):
                if regions <= self.rows:
                    found[m, k] = m * regions // self.rows
                else:
                    segments = -(-self.columns // self.segment_size)
                    found[m, k] = m * segments + k // self.segment_size
        return torch.from_numpy(found)

    def dense(self, codebooks=None, scales=None) -> torch.Tensor:
        """Return (M, K) of the rows as stored, differentiable."""
        codebooks = self.codebooks if codebooks is None else codebooks
        scales = self.scales if scales is None else scales
        books = codebooks[self.region(len(codebooks)), torch.from_numpy(self.numbers)]
        return scales[self.region(len(scales))] * books

    def outputs(self, stored: torch.Tensor) -> torch.Tensor:
        """Return (N, M) of products with the rows as stored, in the order of outputs."""
        return stored if self.order is None else stored[:, self.order.long().argsort()]

    def args(self):
        return self.indices, self.codebooks, self.scales, self.order


# rows, columns, bits, codebooks, scales, segment_size, ordered: odd sizes, whole words and not.
# A tile has 16 rows of x, 16 outputs and 32 columns.
MATRICES = [
    (21, 40, 3, 42, 5, 32, True),
    (18, 33, 4, 1, 1, 0, False),
    (5, 64, 2, 5, 10, 32, True),
    (3, 70, 4, 1, 6, 64, False),
    (17, 32, 4, 7, 17, 0, False),
    (1, 1, 3, 1, 1, 0, False),
]


#: Parts of a sum start at other columns, so they depend on the segments alone.
SPLIT = [MATRICES[i] for i in (0, 2, 3, 5)]
WAYS = [
    *(("fused", case) for case in MATRICES),
    *(("split", case) for case in SPLIT),
    *(("expanded", case) for case in MATRICES),
]


@pytest.fixture(params=["fused", "split", "expanded"])
def _way(request, monkeypatch):
    """Few rows; sums in several parts; and what is done with many rows, though there are few."""
    if request.param == "expanded":
        monkeypatch.setattr(product, "FUSED_ROWS", 0)
        monkeypatch.setattr(gradient, "FUSED_ROWS", 0)
        monkeypatch.setattr(gradient, "FUSED_GRADIENT_ROWS", 0)
    if request.param == "split":
        for module in (product, gradient):
            monkeypatch.setattr(module, "splits_of", lambda tiles, length, depth: 3)


def rows_of_x(matrix):
    """Return two tiles for the first matrix, one row for another, and few for the rest."""
    return {21: 18, 3: 1}.get(matrix.rows, 5)


def wanted(matrix, x, bias, grad):
    """Return y, and the gradients of x, codebooks, scales and bias, in float64."""

    def whole(x, codebooks, scales, bias):
        return matrix.outputs(x @ matrix.dense(codebooks, scales).t() + bias)

    return gradients(whole, [x, matrix.codebooks, matrix.scales, bias], grad)


def run(matrix, x, bias, grad):
    indices, codebooks, scales, order = matrix.args()
    size = matrix.segment_size
    y = codebook_matmul(x, indices, codebooks, scales, order, bias, matrix.bits, size)
    rest = gradient.codebook_matmul_backward(
        grad, x, indices, codebooks, scales, order, matrix.bits, size, True, True
    )
    return [y, *rest]


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize(("_way", "case"), WAYS, indirect=["_way"])
def test_products_and_their_gradients(case):
    *sizes, ordered = case
    matrix = Matrix.of(*sizes, ordered=ordered)
    x = random(rows_of_x(matrix), matrix.columns, dtype=torch.float64)
    bias = random(matrix.rows, dtype=torch.float64, seed=1)
    grad = random(len(x), matrix.rows, dtype=torch.float64, seed=2)
    check(run(matrix, x, bias, grad), wanted(matrix, x, bias, grad)[:4], torch.float64)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_and_leading_dimensions(dtype):
    stored = torch.float32 if dtype is torch.bfloat16 else torch.float16
    matrix = Matrix.of(7, 40, 3, 14, 5, 32, ordered=True, dtype=stored)
    x, bias = random(2, 4, 40, dtype=dtype), random(7, dtype=torch.float32, seed=1)
    grad = random(2, 4, 7, dtype=dtype, seed=2)
    y, dx, dcodebooks, dscales = run(matrix, x, bias, grad)
    expected = wanted(matrix, x.flatten(0, 1), bias, grad.flatten(0, 1))
    check([y.flatten(0, 1), dx.flatten(0, 1)], expected[:2], dtype, slack=2)
    worse = max(TOLERANCES[dtype], TOLERANCES[stored]) / TOLERANCES[stored]
    check([dcodebooks, dscales], expected[2:4], stored, slack=2 * worse)


def interpreted(matrix, x, bias, compute):
    """Return what the IR's interpreter computes."""
    order = np.arange(matrix.rows) if matrix.order is None else matrix.order.numpy()
    tables = (t.numpy() for t in (matrix.indices, matrix.codebooks, matrix.scales))
    arrays = [x.float().numpy(), *tables, order.astype(np.int32), bias.numpy()]
    attrs = {"bits": matrix.bits, "segment_size": matrix.segment_size, "compute": compute}
    b = ir.Builder("main")
    params = [b.param(f"p{i}", ir.TensorType(a.shape, a.dtype.name)) for i, a in enumerate(arrays)]
    b.returns(b.op("codebook_matmul", *params, **attrs))
    return torch.from_numpy(ir.interpret(b.module(), arrays)[0])


def computed(matrix, x, bias, compute):
    indices, codebooks, scales, order = matrix.args()
    size = matrix.segment_size
    return codebook_matmul(x, indices, codebooks, scales, order, bias, matrix.bits, size, compute)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize(
    ("_way", "case"), [pair for pair in WAYS if pair[1] in MATRICES[:4]], indirect=["_way"]
)
def test_integers_are_the_same_bits_as_the_definition_s(case):
    *sizes, ordered = case
    matrix = Matrix.of(*sizes, ordered=ordered, dtype=torch.float16)
    x = random(rows_of_x(matrix), matrix.columns, dtype=torch.float32) * 3
    bias = random(matrix.rows, dtype=torch.float32, seed=1)
    if matrix.rows == 5:
        x = x.to(torch.bfloat16)
    y = computed(matrix, x, bias, "int8")
    assert torch.equal(y, interpreted(matrix, x, bias, "int8").to(x.dtype))


def test_integers_of_what_is_not_finite_and_of_zeros():
    matrix = Matrix.of(6, 40, 2, 6, 6, 0, dtype=torch.float32)
    matrix.codebooks[1, 3], matrix.codebooks[2, 0] = float("nan"), float("inf")
    matrix.codebooks[3] = 0
    matrix.codebooks[4] *= 1e-40
    x = random(7, 40, dtype=torch.float32)
    x[0, 39], x[1, 5], x[2], x[3] = float("nan"), float("inf"), 0.0, x[3] * 1e-40
    x[4] = torch.arange(40) * 0.5 - 7  # ties
    bias = random(6, dtype=torch.float32)
    y, expected = computed(matrix, x, bias, "int8"), interpreted(matrix, x, bias, "int8")
    np.testing.assert_array_equal(y.numpy(), expected.numpy())
    assert y.isnan().any(0).all()
    assert y[4:, 3:].isfinite().all()


def test_rows_and_tables_as_integers():
    x = random(9, 1300, dtype=torch.float32)
    x[1] = torch.arange(1300) / 1299 * 127  # many ties, or nearly
    x[2] = torch.arange(1300) % 255 * 0.5
    q, unit = quantize_rows(x)
    wanted_q, wanted_unit = reference_rows(x.numpy())
    assert np.array_equal(q.numpy(), wanted_q)
    assert np.array_equal(unit.numpy(), wanted_unit)
    matrix = Matrix.of(21, 70, 3, 63, 5, 32, dtype=torch.float16)
    weights = Weights.of(matrix.indices, matrix.codebooks, matrix.scales, 3, 70, 32)
    integers, units = weights.as_integers()
    shape = (21, 70, 32)
    tables = entry_tables(matrix.codebooks.numpy(), matrix.scales.numpy(), *shape)
    wanted_q, wanted_unit = integer_tables(tables)
    assert np.array_equal(integers.codebooks.numpy(), wanted_q.reshape(63, 8))
    assert np.array_equal(units.numpy(), wanted_unit)


@pytest.mark.usefixtures("_way")
def test_bfloat16_rounds_the_operands_alone():
    matrix = Matrix.of(7, 40, 3, 14, 5, 32, ordered=True, dtype=torch.float16)
    x, bias = random(5, 40, dtype=torch.float32), random(7, dtype=torch.float32, seed=1)
    expected = interpreted(matrix, x, bias, "bfloat16")
    check([computed(matrix, x, bias, "bfloat16")], [expected], torch.float32)
    assert relative_error(computed(matrix, x, bias, "float32"), expected) > 1e-4


@pytest.mark.usefixtures("_way")
def test_no_rows_and_no_bias():
    matrix = Matrix.of(5, 32, 3, 5, 3, 0, ordered=True, dtype=torch.float32)
    x, grad = random(3, 32, dtype=torch.float32), torch.ones(0, 5)
    bias = torch.zeros(5)
    for compute in ("float32", "int8"):
        assert torch.equal(computed(matrix, x, None, compute), computed(matrix, x, bias, compute))
        assert computed(matrix, x[:0], None, compute).shape == (0, 5)
    _, dx, *rest = run(matrix, x[:0], bias, grad)
    assert dx.shape == (0, 32)
    assert [g.shape for g in rest] == [(5, 8), (3,)]
    assert not any(g.any() for g in rest)


def test_strides():
    """Of rows, indices and tables with gaps, and of gradients that a sum spreads."""
    matrix = Matrix.of(3, 70, 2, 3, 3, 0)
    wide = torch.full((5, 90), float("nan"), dtype=torch.float64)
    x = wide[:, 3:73]
    x.copy_(random(5, 70, dtype=torch.float64))
    indices = torch.full((3, 30), 255, dtype=torch.uint8)[:, 3:21]
    indices.copy_(matrix.indices)
    books = torch.stack([matrix.codebooks, matrix.codebooks], 2)[..., 1]
    scales = torch.stack([matrix.scales, matrix.scales], 1)[:, 1]
    grad = torch.ones(1, 1, dtype=torch.float64).expand(5, 3)
    bias = torch.zeros(3, dtype=torch.float64)
    y = codebook_matmul(x, indices, books, scales, None, None, 2)
    rest = gradient.codebook_matmul_backward(
        grad, x, indices, books, scales, None, 2, 0, True, True
    )
    check([y, *rest], wanted(matrix, x, bias, grad)[:4], torch.float64)


def test_a_mask_that_is_too_wide_is_seen(monkeypatch):
    """One byte more per row than there is, of 3-bit indices."""
    before = Weights.arguments

    def wrong(self):
        arguments = list(before(self))
        arguments[4] += 40  # columns
        return tuple(arguments)

    matrix = Matrix.of(3, 20, 3, 3, 1, 0, dtype=torch.float32)
    monkeypatch.setattr(Weights, "arguments", wrong)
    x = torch.ones(2, 20)
    with pytest.raises(InterpreterError, match="outside of every tensor"):
        codebook_matmul(x, *matrix.args(), None, 3)


@pytest.mark.usefixtures("_way")
def test_gradients_are_the_same_every_time_and_only_those_asked_for():
    matrix = Matrix.of(5, 40, 2, 1, 10, 32, dtype=torch.float32)
    x, grad = random(7, 40, dtype=torch.float32), random(7, 5, dtype=torch.float32, seed=2)
    args = (grad, x, *matrix.args(), 2, 32)
    first, second = (gradient.codebook_matmul_backward(*args, True, True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    shapes = [g.shape for g in gradient.codebook_matmul_backward(*args, False, True)]
    assert shapes == [(0,), (1, 4), (10,)]
    shapes = [g.shape for g in gradient.codebook_matmul_backward(*args, True, False)]
    assert shapes == [(7, 40), (0,), (0,)]


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(MATRICES[0], torch.float16), *((case, torch.float64) for case in MATRICES[:4])],
)
def test_rows_and_their_gradients(case, dtype):
    *sizes, _ = case
    matrix = Matrix.of(*sizes, dtype=dtype)
    rows = torch.randint(0, matrix.rows, (2, 5), generator=torch.Generator().manual_seed(0))
    args = (matrix.indices, matrix.codebooks, matrix.scales, matrix.bits, matrix.columns)
    y = codebook_dequantize(rows.to(torch.int32), *args, matrix.segment_size)
    stored = torch.float64 if dtype is torch.float64 else torch.float32
    exact = (
        matrix.dense().to(stored)
        if dtype is torch.float64
        else matrix.dense(matrix.codebooks.float(), matrix.scales.float())
    )
    assert torch.equal(y, exact[rows])
    grad = random(*y.shape, dtype=stored, seed=1)
    found = codebook_dequantize_backward(grad, rows, *args, matrix.segment_size)
    leaves = [matrix.codebooks, matrix.scales]
    expected = gradients(lambda c, s: matrix.dense(c, s)[rows], leaves, grad)[1:]
    check(found, expected, dtype)


def test_rows_that_do_not_exist():
    matrix = Matrix.of(5, 40, 4, 1, 1, 0, dtype=torch.float32)
    args = (matrix.indices, matrix.codebooks, matrix.scales, 4, 40)
    rows = torch.tensor([1, 5, -1])
    y = codebook_dequantize(rows, *args)
    assert y[0].isfinite().all()
    assert y[1:].isnan().all()
    grad = torch.ones(3, 40)
    found = codebook_dequantize_backward(grad, rows, *args, 0)
    one = codebook_dequantize_backward(grad[:1], rows[:1], *args, 0)
    assert all(torch.equal(a, b) for a, b in zip(found, one, strict=True))
    assert codebook_dequantize(rows[:0], *args).shape == (0, 40)
    none = codebook_dequantize_backward(grad[:0], rows[:0], *args, 0)
    assert not any(g.any() for g in none)


def sparse(outputs: int, columns: int, share: float, seed: int = 0):
    """Return a dense matrix (M, K) float64, and the same compressed by rows."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(outputs, columns, generator=generator, dtype=torch.float64)
    dense[torch.rand(outputs, columns, generator=generator) >= share] = 0
    counts = (dense != 0).sum(1)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)
    where = dense.nonzero()
    return dense, starts, where[:, 1].to(torch.int32), dense[dense != 0]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *(((17, 37, 18, 0.1), dtype) for dtype in DTYPES),
        ((2, 40, 18, 0.05), torch.float64),
        ((5, 7, 3, 0.0), torch.float64),
    ],
)
def test_sparse_products_and_their_gradients(shape, dtype):
    rows, columns, outputs, share = shape
    _, starts, where, values = sparse(outputs, columns, share)
    values = values.to(torch.float16) if dtype is torch.bfloat16 else values.to(dtype)
    base, x = random(rows, outputs, dtype=dtype), random(rows, columns, dtype=dtype, seed=1)
    grad = random(rows, outputs, dtype=dtype, seed=2)
    output = torch.arange(outputs).repeat_interleave(starts.diff().long())

    def formula(base, x, values):
        matrix = torch.zeros(outputs, columns, dtype=torch.float64)
        return base + x @ matrix.index_put((output, where.long()), values).t()

    y, _, dx, dvalues = gradients(formula, [base, x, values], grad)
    found = sparse_add(base[None], x[None], starts, where, values)
    check([found[0]], [y], dtype)
    found = sparse_add_backward(grad, x, starts, where, values, True, True)
    check([found[0]], [dx], dtype)
    check([found[1]], [dvalues], values.dtype)
    none = sparse_add_backward(grad, x, starts, where, values, False, False)
    assert [g.shape for g in none] == [(0,), (0,)]


def test_sparse_columns_that_do_not_exist():
    starts, columns = torch.tensor([0, 1, 2, 3]).int(), torch.tensor([1, 9, -1]).int()
    base, x, values = torch.ones(2, 3), torch.ones(2, 5), torch.ones(3)
    y = sparse_add(base, x, starts, columns, values)
    assert torch.equal(y[:, 0], torch.full((2,), 2.0))
    assert y[:, 1:].isnan().all()
    dx, dvalues = sparse_add_backward(base, x, starts, columns, values, True, True)
    assert torch.equal(dx, torch.eye(5)[1].expand(2, 5))
    assert dvalues.tolist() == [2.0, 0.0, 0.0]
