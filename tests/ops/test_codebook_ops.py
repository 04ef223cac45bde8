"""codebook_matmul, codebook_dequantize, sparse_add: values, gradients, dtypes, torch's tools."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from lutcc import ir, ops
from lutcc.errors import InputError
from lutcc.ir.codebooks import pack_indices
from lutcc.ops import codebook_tables, kernels
from lutcc.ops.codebook_tables import unpack_indices

_op = torch.ops.lutcc
RNG = np.random.default_rng(0)

#: rows, columns, bits, codebooks, scales, segment size
FORMS = [
    (7, 45, 3, 2, 1, 0),
    (6, 70, 4, 18, 6, 32),
    (6, 70, 2, 3, 18, 32),
    (4, 33, 3, 8, 8, 32),
    (5, 9, 2, 5, 5, 0),
    (1, 1, 4, 1, 1, 0),
]


@pytest.fixture(autouse=True)
def _never() -> Iterator[None]:
    before = ops.get_compilation()
    ops.set_compilation("never")
    yield
    ops.set_compilation(before)


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(np.asarray(RNG.standard_normal(shape))).to(dtype)


class Layer:
    """A compressed matrix as the operators take it, and its indices, plain."""

    def __init__(
        self,
        m: int,
        k: int,
        bits: int,
        books: int,
        scales: int,
        size: int,
        dtype: torch.dtype = torch.float16,
    ) -> None:
        self.rows, self.columns, self.bits, self.size = m, k, bits, size
        self.plain = RNG.integers(0, 2**bits, (m, k))
        self.indices = torch.from_numpy(pack_indices(self.plain, bits))
        self.codebooks = randn(books, 2**bits, dtype=dtype)
        self.scales = randn(scales, dtype=dtype)
        self.order = torch.from_numpy(RNG.permutation(m).astype(np.int32))
        self.bias = randn(m, dtype=dtype if dtype is torch.float64 else torch.float32)

    def region(self, count: int) -> torch.Tensor:
        """By the definition, element by element."""
        return torch.tensor(
            [
                [
                    i * count // self.rows
                    if count <= self.rows
                    else i * (count // self.rows) + j // self.size
                    for j in range(self.columns)
                ]
                for i in range(self.rows)
            ]
        )

    def weights(self, codebooks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """(M, K), which torch differentiates itself."""
        book = codebooks[self.region(len(codebooks)), torch.from_numpy(self.plain)]
        return book * scales[self.region(len(scales))]

    def product(
        self, x: torch.Tensor, codebooks: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        stored = x @ self.weights(codebooks, scales).T + bias
        return stored[..., torch.argsort(self.order)]

    def matmul(self, x: torch.Tensor, compute: str = "float32", **changed: Any) -> torch.Tensor:
        return _op.codebook_matmul(x, *self.arguments(**changed), compute)

    def arguments(self, **changed: Any) -> tuple[Any, ...]:
        names = ("indices", "codebooks", "scales", "order", "bias", "bits", "size")
        return tuple(changed.get(name, getattr(self, name)) for name in names)

    @property
    def tables(self) -> tuple[Any, ...]:
        parts = (self.indices, self.codebooks, self.scales)
        return *parts, self.bits, self.columns, self.size


def interpreted(layer: Layer, x: torch.Tensor, compute: str) -> np.ndarray:
    operands = [x, layer.indices, layer.codebooks, layer.scales, layer.order, layer.bias]
    b = ir.Builder("main")
    params = [
        b.param(o.name, ir.TensorType(tuple(t.shape), str(t.dtype).removeprefix("torch.")))
        for o, t in zip(ir.OPS["codebook_matmul"].operands, operands, strict=True)
    ]
    attrs = {"bits": layer.bits, "segment_size": layer.size, "compute": compute}
    b.returns(b.op("codebook_matmul", *params, **attrs))
    return ir.interpret(b.module(), [t.numpy() for t in operands])[0]


# values


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_indices_come_back(bits: int) -> None:
    for columns in (1, 2, 7, 8, 9, 33):
        plain = RNG.integers(0, 2**bits, (3, columns))
        packed = torch.from_numpy(pack_indices(plain, bits))
        np.testing.assert_array_equal(unpack_indices(packed, bits, columns), plain)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_near_the_float_product(form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebook_tables, "_ELEMENTS", 150)  # in pieces
    layer = Layer(*form)
    x = randn(2, 3, layer.columns)
    books, scales = layer.codebooks.double(), layer.scales.double()
    want = layer.product(x.double(), books, scales, layer.bias.double())
    size = x.abs().double() @ layer.weights(books, scales).abs().T
    size = size[..., torch.argsort(layer.order)] + layer.bias.abs().max()
    for compute, error in (("float32", 1e-6), ("bfloat16", 2**-8), ("int8", 0.1)):
        y = layer.matmul(x, compute)
        assert y.dtype is torch.float32
        assert float(((y - want).abs() / size).max()) < error
        assert torch.equal(layer.matmul(x[0, 1], compute), layer.matmul(x[:1, 1], compute)[0])
        assert layer.matmul(x[:0], compute).shape == (0, 3, layer.rows)
    plain = layer.matmul(x, order=None, bias=None)
    assert torch.allclose(plain, x @ layer.weights(books, scales).T.float(), atol=1e-4)


@pytest.mark.parametrize("form", [*FORMS, (3, 4200, 4, 3, 1, 0)], ids=str)
def test_int8_is_the_reference_bit_for_bit(form: Any) -> None:
    layer = Layer(*form)
    x = randn(6, layer.columns)
    x[1], x[2, -1], x[3, 0] = 0, torch.nan, torch.inf
    x[4] *= 1e-42
    with torch.no_grad():
        layer.codebooks[0, 1] = torch.inf
        np.testing.assert_array_equal(layer.matmul(x, "int8"), interpreted(layer, x, "int8"))
        layer.codebooks[0, 1] = 0
        np.testing.assert_array_equal(layer.matmul(x, "int8"), interpreted(layer, x, "int8"))


def test_nan_passes_and_strides_do_not_matter() -> None:
    layer = Layer(*FORMS[0])
    x = randn(layer.columns, 4).t()
    for compute in ("float32", "bfloat16", "int8"):
        assert torch.allclose(layer.matmul(x, compute), layer.matmul(x.contiguous(), compute))
        spoilt = x.clone()
        spoilt[2, 3] = torch.nan
        found = layer.matmul(spoilt, compute).isnan()
        assert found[2].all()
        assert int(found.sum()) == layer.rows


def test_half_precision_is_rounded_once() -> None:
    layer = Layer(*FORMS[1])
    for dtype in (torch.float16, torch.bfloat16):
        x = randn(3, layer.columns, dtype=dtype)
        for compute in ("float32", "int8"):
            y = layer.matmul(x, compute, bias=layer.bias.to(dtype))
            wide = layer.matmul(x.float(), compute, bias=layer.bias.to(dtype).float())
            assert y.dtype is dtype
            assert torch.equal(y, wide.to(dtype))
    books = layer.codebooks.bfloat16()
    assert torch.equal(
        layer.matmul(randn(1, 70) * 0 + 1, codebooks=books),
        layer.matmul(torch.ones(1, 70), codebooks=books.float()),
    )


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_rows_of_the_matrix(form: Any) -> None:
    layer = Layer(*form)
    want = layer.weights(layer.codebooks.float(), layer.scales.float())
    rows = torch.from_numpy(RNG.integers(0, layer.rows, (2, 5)))
    for dtype in (torch.int32, torch.int64):
        assert torch.equal(_op.codebook_dequantize(rows.to(dtype), *layer.tables), want[rows])
    assert _op.codebook_dequantize(rows[:0], *layer.tables).shape == (0, 5, layer.columns)
    assert torch.equal(_op.codebook_dequantize(rows[1, 1], *layer.tables), want[rows[1, 1]])


def sparse(
    m: int, k: int, share: float
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    dense = torch.where(torch.from_numpy(RNG.random((m, k)) < share), randn(m, k), 0.0)
    rows, columns = dense.nonzero().unbind(1)
    starts = torch.zeros(m + 1, dtype=torch.int32)
    starts[1:] = rows.bincount(minlength=m).cumsum(0)
    return dense, (starts, columns.int(), dense[rows, columns])


@pytest.mark.parametrize("share", [0, 0.1, 0.9])
def test_sparse_product(share: float) -> None:
    dense, parts = sparse(9, 21, share)
    base, x = randn(2, 3, 9), randn(2, 3, 21)
    assert torch.allclose(_op.sparse_add(base, x, *parts), base + x @ dense.T, atol=1e-5)
    assert _op.sparse_add(base[:0], x[:0], *parts).shape == (0, 3, 9)
    assert torch.allclose(_op.sparse_add(base[0, 0], x[0, 0], *parts), (base + x @ dense.T)[0, 0])
    half = _op.sparse_add(base.bfloat16(), x.bfloat16(), *parts[:2], parts[2].half())
    want = base.bfloat16().float() + x.bfloat16().float() @ dense.half().float().T
    assert torch.allclose(half.float(), want, rtol=2**-7, atol=2**-7)


# gradients


@pytest.mark.parametrize("form", [(4, 21, 3, 2, 1, 0), (3, 40, 2, 6, 2, 32), (2, 40, 2, 1, 4, 32)])
def test_gradients(form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebook_tables, "_ELEMENTS", 50)
    layer = Layer(*form, dtype=torch.float64)
    x = randn(2, 2, layer.columns, dtype=torch.float64)
    inputs = [x, layer.codebooks, layer.scales, layer.bias]
    for tensor in inputs:
        tensor.requires_grad_()

    def run(x: Any, codebooks: Any, scales: Any, bias: Any) -> torch.Tensor:
        return layer.matmul(x, "int8", codebooks=codebooks, scales=scales, bias=bias)

    y = run(*inputs)
    direction = randn(*y.shape, dtype=torch.float64)
    got = torch.autograd.grad(y, inputs, direction)
    want = torch.autograd.grad(layer.product(*inputs), inputs, direction)
    for one, other in zip(got, want, strict=True):
        assert torch.allclose(one, other, atol=1e-12)
    (only,) = torch.autograd.grad(run(*inputs), [layer.scales], direction)
    assert torch.equal(only, got[2])

    rows = torch.tensor([[0, 1], [1, 0]])
    looked = _op.codebook_dequantize(rows, *layer.tables)
    plain = layer.weights(layer.codebooks, layer.scales)[rows]
    direction = randn(*looked.shape, dtype=torch.float64)
    got = torch.autograd.grad(looked, inputs[1:3], direction)
    want = torch.autograd.grad(plain, inputs[1:3], direction)
    for one, other in zip(got, want, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_sparse_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, (starts, columns, values) = sparse(6, 13, 0.4)
    inputs = [randn(2, 3, 6).double(), randn(2, 3, 13).double(), values.double()]
    for tensor in inputs:
        tensor.requires_grad_()
    rows = torch.arange(6).repeat_interleave(starts.diff())

    def plain(base: Any, x: Any, values: Any) -> torch.Tensor:
        matrix = torch.zeros_like(dense).double().index_put((rows, columns.long()), values)
        return base + x @ matrix.T

    y = _op.sparse_add(inputs[0], inputs[1], starts, columns, inputs[2])
    direction = torch.randn_like(y)
    got = torch.autograd.grad(y, inputs, direction)
    want = torch.autograd.grad(plain(*inputs), inputs, direction)
    for one, other in zip(got, want, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_gradients_keep_their_dtypes_and_arithmetic_is_float() -> None:
    layer = Layer(*FORMS[1])
    x = randn(3, layer.columns, dtype=torch.bfloat16).requires_grad_()
    bias = layer.bias.bfloat16().requires_grad_()
    for tensor in (layer.codebooks, layer.scales):
        tensor.requires_grad_()
    y = layer.matmul(x, "int8", bias=bias)
    assert torch.equal(y, layer.matmul(x.detach(), "float32", bias=bias))
    y.sum().backward()
    for tensor in (x, bias, layer.codebooks, layer.scales):
        assert tensor.grad is not None
        assert tensor.grad.dtype is tensor.dtype
        assert bool(tensor.grad.any())


# torch's tools


def test_opcheck() -> None:
    layer = Layer(*FORMS[1])
    x = randn(3, layer.columns).requires_grad_()
    for tensor in (layer.codebooks, layer.scales, layer.bias):
        tensor.requires_grad_()
    # without the parts that take seconds: the test below that compiles stands in for them
    tests: Any = ("test_schema", "test_autograd_registration")
    _, parts = sparse(6, layer.columns, 0.1)
    for op, arguments in (
        (_op.codebook_matmul, (x, *layer.arguments(), "int8")),
        (_op.codebook_dequantize, (torch.tensor([[2, 2, 0]]), *layer.tables)),
        (_op.sparse_add, (randn(3, 6).requires_grad_(), x, *parts)),
    ):
        torch.library.opcheck(op.default, arguments, test_utils=tests)


def test_autocast() -> None:
    layer = Layer(*FORMS[1])
    x = randn(3, layer.columns)
    _, parts = sparse(6, layer.columns, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer.matmul(x)
        z = _op.sparse_add(y, x, *parts)
    assert torch.equal(y, layer.matmul(x.bfloat16()))
    assert torch.equal(z, _op.sparse_add(y, x.bfloat16(), *parts))


def test_training_step_compiles_with_dynamic_rows() -> None:
    layer = Layer(*FORMS[0])
    _, parts = sparse(layer.rows, layer.columns, 0.1)
    trained = (layer.codebooks, layer.scales, layer.bias, parts[2])
    for tensor in trained:
        tensor.requires_grad_()

    def step(x: torch.Tensor) -> torch.Tensor:
        added = _op.sparse_add(layer.matmul(x, "int8"), x, *parts)
        return (added * _op.codebook_dequantize(x[:, 0].int(), *layer.tables)[:, :1]).square()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (2, 5):
        x = torch.rand(rows, layer.columns)
        results = [function(x) for function in (compiled, step)]
        assert torch.equal(*results)
        grads = [torch.autograd.grad(y.sum(), trained) for y in results]
        for one, other in zip(*grads, strict=True):
            assert torch.equal(one, other)


# errors

LAYER = Layer(6, 70, 4, 18, 6, 32)
X = torch.zeros(2, 70)
ROWS = torch.tensor([0])


def matmul(x: torch.Tensor = X, compute: str = "float32", **changed: Any) -> torch.Tensor:
    return LAYER.matmul(x, compute, **changed)


def look_up(rows: torch.Tensor = ROWS, columns: int = 70, size: int = 32) -> torch.Tensor:
    books = (LAYER.indices, LAYER.codebooks, LAYER.scales)
    return _op.codebook_dequantize(rows, *books, 4, columns, size)


def add(
    base: torch.Tensor | None = None,
    x: torch.Tensor = X,
    starts: Any = (0, 1, 2),
    columns: Any = (3, 69),
    values: torch.Tensor | None = None,
) -> torch.Tensor:
    return _op.sparse_add(
        torch.zeros(2, 2) if base is None else base,
        x,
        torch.tensor(starts, dtype=torch.int32),
        torch.tensor(columns, dtype=torch.int32),
        torch.ones(2) if values is None else values,
    )


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "integers": (lambda: matmul(X.int()), "x must be torch.float32 or"),
    "no columns": (lambda: matmul(X[:, :0]), r"last dimension of at least 1.*\(2, 0\)"),
    "number": (lambda: matmul(X[0, 0]), r"last dimension of at least 1, got shape \(\)"),
    "bits": (lambda: matmul(bits=5), "bits=5 is not 2, 3 or 4"),
    "packed": (lambda: matmul(bits=3), r"have 35 bytes a row, but 70 indices of 3 bits take 27"),
    "columns": (lambda: matmul(X[:, :60]), "60 indices of 4 bits take 30"),
    "signed": (lambda: matmul(indices=LAYER.indices.char()), "indices must be torch.uint8"),
    "rank": (lambda: matmul(indices=LAYER.indices[0]), "indices must have 2 dimensions"),
    "empty": (lambda: matmul(indices=LAYER.indices[:0]), "0 rows and 70 columns is empty"),
    "width": (
        lambda: matmul(codebooks=LAYER.codebooks[:, 1:]),
        r"codebooks must be \(G, 16\), got \(18, 15\)",
    ),
    "scale rank": (lambda: matmul(scales=LAYER.scales[None]), r"scales must be \(T,\), got"),
    "no scales": (lambda: matmul(scales=LAYER.scales[:0]), r"scales must be \(T,\), got \(0,\)"),
    "regions": (
        lambda: matmul(codebooks=LAYER.codebooks[:17]),
        "codebooks has 17 regions, but 6 rows of 70 columns have 18 segments of segment_size=32",
    ),
    "no size": (lambda: matmul(size=0), "18 codebooks for 6 rows need segment_size"),
    "size": (lambda: matmul(size=24), "segment_size=24 is not a multiple of 32"),
    "double": (lambda: matmul(scales=LAYER.scales.double()), "scales are float64, beside torch.f"),
    "order dtype": (lambda: matmul(order=LAYER.order.long()), "order must be torch.int32"),
    "order size": (lambda: matmul(order=LAYER.order[1:]), r"order must be \(6,\), got \(5,\)"),
    "order": (lambda: matmul(order=LAYER.order * 0), "order is not a permutation of the rows"),
    "bias": (lambda: matmul(bias=LAYER.bias[1:]), r"bias must be \(6,\), got \(5,\)"),
    "bias dtype": (lambda: matmul(bias=LAYER.bias.half()), "bias must be torch.float32"),
    "compute": (lambda: matmul(compute="int4"), "compute='int4' is unknown"),
    "device": (lambda: matmul(scales=LAYER.scales.to("meta")), "scales is on meta, not on cpu"),
    "no row": (lambda: look_up(ROWS + 6), r"rows holds 6, but there are rows 0..5"),
    "row below": (lambda: look_up(ROWS - 1), r"rows holds -1, but"),
    "row dtype": (lambda: look_up(ROWS.float()), "rows must be torch.int32 or torch.int64"),
    "fewer columns": (lambda: look_up(columns=60), "60 indices of 4 bits take 30"),
    "dtypes": (lambda: add(torch.zeros(2, 2).half()), "base is torch.float16, but x is"),
    "rows": (lambda: add(torch.zeros(3, 2)), r"base \(3, 2\) and x \(2, 70\) must be"),
    "starts": (lambda: add(starts=(0, 2)), r"starts must be \(3,\), one more than the outputs"),
    "falling": (lambda: add(starts=(0, 3, 2)), "starts must rise from 0 to the 2 values"),
    "outside": (lambda: add(columns=(3, 70)), "columns holds 70, but x has columns 0..69"),
    "values": (lambda: add(values=torch.ones(3)), r"columns \(2,\) and values \(3,\) must be"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "torch.ops.lutcc." in str(caught.value)
    assert caught.value.fix


# kernels


LAYER_ROWS = randn(70, 5).t()
NARROW = LAYER.bias.half()
ADDED = sparse(6, 70, 0.1)[1]
SPARSE = (randn(5, 6), LAYER_ROWS, *ADDED[:2], ADDED[2].half())  # float32 in the kernel
CALLS: dict[str, Callable[[], torch.Tensor]] = {
    "float32": lambda: LAYER.matmul(LAYER_ROWS),
    "int8": lambda: LAYER.matmul(LAYER_ROWS, "int8"),
    "int8, half precision": lambda: LAYER.matmul(LAYER_ROWS.half(), "int8", bias=NARROW),
    "rows": lambda: _op.codebook_dequantize(torch.tensor([5, 0, 5]), *LAYER.tables),
    "sparse": lambda: _op.sparse_add(*SPARSE),
}


@pytest.mark.one_in(2)
@pytest.mark.skipif(kernels.cpu.best_isa() is None, reason="the CPU lacks AVX2")
@pytest.mark.parametrize("name", CALLS)
def test_kernels_give_the_same(name: str) -> None:
    want = CALLS[name]()
    ops.set_compilation("always")
    before = ops.kernel_statistics()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        results = [CALLS[name]() for _ in range(2)]
    after = ops.kernel_statistics()
    assert after["kernel_calls"] - before["kernel_calls"] == 2
    assert after["compiled"] - before["compiled"] == 1
    for got in results:
        near = torch.allclose(got, want, atol=1e-5)
        assert near if name in ("float32", "sparse") else torch.equal(got, want)
