"""The torch operators against the IR's definition, bit by bit, with and without kernels."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lutcc import ir, ops
from lutcc.errors import InputError
from lutcc.ops import kernels

HAS_KERNELS = kernels.cpu.best_isa() is not None
needs_kernels = pytest.mark.skipif(not HAS_KERNELS, reason="the CPU lacks AVX2")


@pytest.fixture(autouse=True)
def _mode() -> Iterator[None]:
    before = ops.get_compilation()
    yield
    ops.set_compilation(before)


def interpret(opcode: str, arrays: list[np.ndarray], **attrs: Any) -> np.ndarray:
    """Run one op through a module of its own: the definition."""
    b = ir.Builder("main")
    names = [operand.name for operand in ir.OPS[opcode].operands]
    rows = ir.Sym("n", attrs["oh"] * attrs["ow"] if opcode == "rows_to_nchw" else 1)
    shapes = [(rows, *arrays[0].shape[1:]), *(a.shape for a in arrays[1:])]
    types = [ir.TensorType(s, str(a.dtype)) for s, a in zip(shapes, arrays, strict=True)]
    operands = [b.param(name, type_) for name, type_ in zip(names, types, strict=True)]
    b.returns(b.op(opcode, *operands, **attrs))
    return ir.interpret(b.module(), arrays)[0]


def same(result: Any, want: np.ndarray) -> None:
    assert str(result.dtype).removeprefix("torch.") == str(want.dtype)
    assert tuple(result.shape) == want.shape
    np.testing.assert_array_equal(
        result.numpy().view(f"u{want.itemsize}"), want.view(f"u{want.itemsize}")
    )


def tree_case(
    rng: np.random.Generator, n: int, d: int, c: int, levels: int, dtype: str
) -> list[np.ndarray]:
    dims = rng.integers(0, d, (c, levels)).astype(np.int32)
    if dtype == "uint8":
        x = rng.integers(0, 256, (n, d)).astype(np.uint8)
        return [x, dims, rng.integers(0, 256, (c, 2**levels)).astype(np.uint8)]
    x = rng.standard_normal((n, d)).astype(np.float32)
    values = rng.standard_normal((c, 2**levels)).astype(np.float32)
    if x.size:
        x.flat[rng.integers(0, x.size, max(1, x.size // 9))] = rng.choice(
            [np.nan, np.inf, -np.inf, -0.0]
        )
    return [x, dims, values]


def nearest_case(
    rng: np.random.Generator, n: int, d: int, c: int, k: int
) -> tuple[list[np.ndarray], tuple[int, ...]]:
    width = int(rng.integers(c, 3 * c + 1))
    starts = (0, *sorted(rng.choice(np.arange(1, width), c - 1, replace=False).tolist()), width)
    centroids = rng.standard_normal((k, width)).astype(np.float32)
    norms = np.stack([0.5 * (centroids[:, a:b] ** 2).sum(1) for a, b in pairwise(starts)])
    x = rng.standard_normal((n, d)).astype(np.float32)
    columns = rng.integers(0, d, width).astype(np.int32)
    return [x, centroids, norms.astype(np.float32), columns], starts


def check(opcode: str, arrays: list[np.ndarray], *arguments: Any, **attrs: Any) -> None:
    result = getattr(torch.ops.lutcc, opcode)(*map(torch.from_numpy, arrays), *arguments)
    same(result, interpret(opcode, arrays, **attrs))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_reference_is_the_definition(data: st.DataObject) -> None:
    ops.set_compilation("never")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    n, d, c = (data.draw(st.integers(low, 12)) for low in (0, 1, 1))
    opcode = data.draw(
        st.sampled_from(["tree_encode", "nearest_encode", "lut_accumulate", "lut_dequantize"])
    )
    if opcode == "tree_encode":
        dtype = data.draw(st.sampled_from(["float32", "uint8"]))
        check(opcode, tree_case(rng, n, d, c, data.draw(st.integers(1, 7)), dtype))
    elif opcode == "nearest_encode":
        arrays, starts = nearest_case(rng, n, d, c, data.draw(st.integers(2, 20)))
        check(opcode, arrays, list(starts), starts=starts)
    elif opcode == "lut_accumulate":
        k, m = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
        codes = rng.integers(0, k, (n, c)).astype(np.uint8)
        dtype = data.draw(st.sampled_from(["uint8", "int8", "float32"]))
        lut = (rng.standard_normal((c, k, m)) * 50).astype(dtype)
        mean = dtype == "uint8" and data.draw(st.booleans())
        accumulate = "mean" if mean else "exact"
        every = data.draw(st.sampled_from([2, 4, 8, 16, 32, 64, 128, 256]))
        check(opcode, [codes, lut], accumulate, every, accumulate=accumulate, upcast_every=every)
    else:
        m = data.draw(st.integers(1, 20))
        acc = rng.integers(-(2**31), 2**31, (n, m)).astype(np.int32)
        scale, offset = rng.standard_normal((2, m)).astype(np.float32)
        activation = data.draw(st.sampled_from(["none", "relu"]))
        check(opcode, [acc, scale, offset], activation, activation=activation)


# (rows, columns, codebooks, tree levels, outputs); the schedules' own tests have many more.
SHAPES = [(5, 8, 3, 4, 7), (33, 20, 9, 3, 21)]


def kernel_case(what: str, shape: tuple[int, ...]) -> tuple[str, list[np.ndarray], dict[str, Any]]:
    """Return opcode, arrays and attributes (in the order of the torch operator)."""
    n, d, c, levels, m = shape
    rng = np.random.default_rng(n)
    codes = rng.integers(0, 2**levels, (n, c)).astype(np.uint8)
    opcode, _, kind = what.partition(" ")
    if opcode == "tree_encode":
        return opcode, tree_case(rng, n, d, c, levels, kind), {}
    if opcode == "nearest_encode":
        arrays, starts = nearest_case(rng, n, d, c, 2**levels)
        return opcode, arrays, {"starts": starts}
    if opcode == "lut_dequantize":
        acc = rng.integers(-(2**24), 2**24, (n, m)).astype(np.int32)
        return opcode, [acc, *rng.standard_normal((2, m)).astype(np.float32)], {"activation": kind}
    dtype = "uint8" if kind == "mean" else kind
    low, high = (-128, 128) if dtype == "int8" else (0, 256)
    lut = (rng.integers(low, high, (c, 2**levels, m)) * (0.37 if dtype == "float32" else 1)).astype(
        dtype
    )
    accumulate = "mean" if kind == "mean" else "exact"
    return opcode, [codes, lut], {"accumulate": accumulate, "upcast_every": 4}


KERNELS = [
    "tree_encode float32",
    "tree_encode uint8",
    "nearest_encode",
    "lut_accumulate uint8",
    "lut_accumulate int8",
    "lut_accumulate float32",
    "lut_accumulate mean",
    "lut_dequantize none",
    "lut_dequantize relu",
]


@pytest.mark.one_in(3)
@needs_kernels
@pytest.mark.parametrize("what", KERNELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_are_the_definition(what: str, shape: tuple[int, ...]) -> None:
    opcode, arrays, attrs = kernel_case(what, shape)
    ops.set_compilation("always")
    before = ops.kernel_statistics()["kernel_calls"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        arguments = [list(v) if isinstance(v, tuple) else v for v in attrs.values()]
        check(opcode, arrays, *arguments, **attrs)
    assert ops.kernel_statistics()["kernel_calls"] == before + 1


@needs_kernels
def test_any_strides_and_no_rows_on_kernels() -> None:
    rng = np.random.default_rng(3)
    x, dims, values = tree_case(rng, 40, 24, 4, 4, "float32")
    ops.set_compilation("always")
    t, tables = torch.from_numpy(x), (torch.from_numpy(dims), torch.from_numpy(values))
    for view in (t[::3], t.t().contiguous().t(), t[:0], t[5:6], t[:1].expand(7, 24), t[1::2, :]):
        same(ops.tree_encode(view, *tables), interpret("tree_encode", [view.numpy(), dims, values]))
    strided = torch.from_numpy(np.asfortranarray(dims)), torch.from_numpy(np.asfortranarray(values))
    same(ops.tree_encode(t, *strided), interpret("tree_encode", [x, dims, values]))


def tables(value: int, shape: tuple[int, int, int] = (4, 16, 8)) -> torch.Tensor:
    """Tables whose entry 1 is ``value``; entry 0 keeps the bound, and so the code, the same."""
    lut = torch.full(shape, value, dtype=torch.uint8)
    lut[:, 0] = 255
    return lut


@needs_kernels
def test_changed_tables_are_noticed_and_earlier_ones_forgotten() -> None:
    codes = torch.ones((9, 4), dtype=torch.uint8)
    lut = tables(5)
    ops.set_compilation("always")
    ops.clear_kernels()
    for change in (
        lambda: None,
        lut[:, 1:].zero_,
        lambda: lut[1, 1].fill_(7),
        lambda: lut[:, 1].add_(3),
    ):
        change()
        same(
            ops.lut_accumulate(codes, lut),
            interpret("lut_accumulate", [codes.numpy(), lut.numpy()]),
        )
        assert ops.kernel_statistics()["kept"] == 1


@needs_kernels
def test_tables_that_take_the_place_of_others() -> None:
    """Freed tables' memory is used again by tables of the same shape: none is taken for another."""
    ops.set_compilation("always")
    codes = torch.ones((2, 4), dtype=torch.uint8)
    for value in range(20):
        lut = tables(value)
        assert ops.lut_accumulate(codes, lut).unique().tolist() == [4 * value]
        del lut
    assert ops.kernel_statistics()["kept"] <= kernels.MAX_KERNELS


@needs_kernels
def test_inference_tensors() -> None:
    ops.set_compilation("always")
    with torch.inference_mode():
        codes, lut = torch.ones((2, 4), dtype=torch.uint8), tables(1)
        assert ops.lut_accumulate(codes, lut).unique().tolist() == [4]
        lut[:, 1] = 2
        assert ops.lut_accumulate(codes, lut).unique().tolist() == [8]


@needs_kernels
def test_one_code_for_many_tables() -> None:
    """Tables of the same shape share machine code."""
    ops.clear_kernels()
    ops.set_compilation("always")
    codes = torch.ones((2, 4), dtype=torch.uint8)
    kept = [tables(value) for value in (3, 200)]
    for lut in kept:
        ops.lut_accumulate(codes, lut)
    assert ops.kernel_statistics()["compiled"] == 2
    assert len(kernels._state.libraries) == 1


def test_reference_first_kernel_when_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    ops.clear_kernels()
    ops.set_compilation("auto")
    compiled = []
    monkeypatch.setattr(kernels, "_compile", lambda signature, *_: compiled.append(signature))
    codes, lut = torch.zeros((2, 3), dtype=torch.uint8), torch.ones((3, 2, 5), dtype=torch.uint8)
    ops.lut_accumulate(codes, lut)
    assert not compiled
    (entry,) = kernels._state.kernels.values()
    entry.spent = 100.0
    ops.lut_accumulate(codes, lut)
    assert [signature.opcode for signature in compiled] == ["lut_accumulate"]


def test_without_tvm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference runs, and a warning says once that it is slow."""
    import lutcc.codegen
    from lutcc.errors import DependencyError

    def absent(*_: Any, **__: Any) -> Any:
        raise DependencyError("TVM is missing", fix="pip install apache-tvm")

    ops.clear_kernels()
    monkeypatch.setattr(lutcc.codegen, "lower", absent)
    ops.set_compilation("always")
    codes, lut = torch.zeros((2, 3), dtype=torch.uint8), torch.ones((3, 2, 6), dtype=torch.uint8)
    ops.lut_accumulate(codes, lut)
    with pytest.warns(RuntimeWarning, match="(?s)NumPy reference, which is slow.*pip install"):
        ops.lut_accumulate(codes, lut)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ops.lut_accumulate(codes, lut).unique().tolist() == [3]
    ops.clear_kernels()


def _samples() -> dict[str, tuple[Any, ...]]:
    g = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 4, (6, 3), generator=g, dtype=torch.uint8)
    return {
        "tree_encode": (
            torch.randn(6, 5, generator=g),
            torch.randint(0, 5, (3, 2), generator=g, dtype=torch.int32),
            torch.randn(3, 4, generator=g),
        ),
        "nearest_encode": (
            torch.randn(6, 5, generator=g),
            torch.randn(4, 5, generator=g),
            torch.rand(2, 4, generator=g),
            torch.arange(5, dtype=torch.int32),
            [0, 2, 5],
        ),
        "lut_accumulate": (codes, torch.randint(0, 256, (3, 4, 7), generator=g, dtype=torch.uint8)),
        "lut_accumulate float": (codes, torch.randn(3, 4, 7, generator=g, requires_grad=True)),
        "lut_accumulate mean": (
            codes,
            torch.randint(0, 256, (3, 4, 7), generator=g, dtype=torch.uint8),
            "mean",
            4,
        ),
        "lut_dequantize": (
            torch.randint(-50, 50, (6, 7), generator=g, dtype=torch.int32),
            torch.rand(7, generator=g, requires_grad=True),
            torch.randn(7, generator=g, requires_grad=True),
            "relu",
        ),
        "im2col": (
            torch.randn(2, 3, 6, 5, generator=g, requires_grad=True),
            [3, 2],
            [2, 1],
            [1, 0],
            [1, 2],
        ),
        "rows_to_nchw": (torch.randn(12, 4, generator=g, requires_grad=True), 3, 2),
    }


@pytest.mark.parametrize("name", list(_samples()))
def test_opcheck(name: str) -> None:
    op = getattr(torch.ops.lutcc, name.split()[0]).default
    ops.set_compilation("never")
    torch.library.opcheck(op, _samples()[name])


@pytest.mark.parametrize(
    "name", ["lut_accumulate float", "lut_dequantize", "im2col", "rows_to_nchw"]
)
def test_gradients(name: str) -> None:
    """Against finite differences; the ops are piecewise linear where they are differentiable."""
    op = getattr(torch.ops.lutcc, name.split()[0])
    arguments = list(_samples()[name])
    result = op(*arguments)
    weight = torch.randn(result.shape, generator=torch.Generator().manual_seed(1))
    (result * weight).sum().backward()
    for index, value in enumerate(arguments):
        if not (isinstance(value, torch.Tensor) and value.requires_grad):
            continue
        gradient = value.grad
        assert gradient is not None
        direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(2))
        step = 1e-3
        ends = []
        for sign in (-1, 1):
            moved = [*arguments]
            moved[index] = value.detach() + sign * step * direction
            ends.append((op(*moved).detach().double() * weight).sum())
        slope = (ends[1] - ends[0]) / (2 * step)
        assert torch.isclose(slope, (gradient.double() * direction).sum(), rtol=2e-2, atol=2e-2)


def test_codes_carry_no_gradient() -> None:
    x, dims, values = _samples()["tree_encode"]
    codes = ops.tree_encode(x.requires_grad_(), dims, values)
    assert not codes.requires_grad


class _Chain(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        _, dims, values = _samples()["tree_encode"]
        self.register_buffer("dims", dims)
        self.register_buffer("values", values)
        self.register_buffer("lut", _samples()["lut_accumulate"][1])
        self.register_buffer("scale", torch.rand(7))
        self.register_buffer("offset", torch.randn(7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes = torch.ops.lutcc.tree_encode(x, self.dims, self.values)
        sums = torch.ops.lutcc.lut_accumulate(codes, self.lut)
        return torch.ops.lutcc.lut_dequantize(sums, self.scale, self.offset, "relu") + 1


@pytest.mark.parametrize("dynamic", [False, True])
def test_torch_compile(dynamic: bool) -> None:
    chain = _Chain()
    compiled = torch.compile(chain, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for n in (6, 9, 2):
        x = torch.randn(n, 5)
        assert torch.equal(compiled(x), chain(x))


def test_torch_export_with_a_dynamic_batch() -> None:
    chain = _Chain()
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(chain, (torch.randn(6, 5),), dynamic_shapes={"x": {0: batch}})
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets[:3] == [
        "lutcc.tree_encode.default",
        "lutcc.lut_accumulate.default",
        "lutcc.lut_dequantize.default",
    ]
    x = torch.randn(11, 5)
    assert torch.equal(program.module()(x), chain(x))


class _Images(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = torch.ops.lutcc.im2col(x, [3, 3], [1, 1], [1, 1], [1, 1])
        return torch.ops.lutcc.rows_to_nchw(rows, x.shape[2], x.shape[3])


def test_images_export_with_a_dynamic_batch() -> None:
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(
        _Images(), (torch.randn(4, 2, 5, 6),), dynamic_shapes={"x": {0: batch}}
    )
    x = torch.randn(3, 2, 5, 6)
    assert torch.equal(program.module()(x), _Images()(x))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_image_ops_are_the_definition(data: st.DataObject) -> None:
    draw = data.draw
    pairs = [
        [draw(st.integers(low, high)) for _ in "hw"]
        for low, high in ((1, 3), (1, 3), (0, 2), (1, 2))
    ]
    kernel, _, padding, dilation = pairs
    size = [
        max(draw(st.integers(1, 7)), dilation[a] * (kernel[a] - 1) + 1 - 2 * padding[a])
        for a in (0, 1)
    ]
    n, c = draw(st.integers(0, 3)), draw(st.integers(1, 3))
    x = np.random.default_rng(n).standard_normal((n, c, *size)).astype(np.float32)
    attrs = dict(zip(("kernel", "stride", "padding", "dilation"), map(tuple, pairs), strict=True))
    want = interpret("im2col", [x], **attrs)
    layout = draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))
    same(ops.im2col(torch.from_numpy(x).contiguous(memory_format=layout), *pairs), want)
    if want.shape[0]:
        per_image = want.shape[0] // n
        same(
            ops.rows_to_nchw(torch.from_numpy(want), per_image, 1),
            interpret("rows_to_nchw", [want], oh=per_image, ow=1),
        )


_op = torch.ops.lutcc
BAD: dict[str, tuple[Any, str]] = {
    "half": (
        lambda s: _op.tree_encode(s["tree_encode"][0].half(), *s["tree_encode"][1:]),
        r"x must be torch.float32 or",
    ),
    "vector": (
        lambda s: _op.tree_encode(s["tree_encode"][0][0], *s["tree_encode"][1:]),
        r"x must have 2 dimensions",
    ),
    "long": (
        lambda s: _op.tree_encode(
            s["tree_encode"][0], s["tree_encode"][1].long(), s["tree_encode"][2]
        ),
        r"splitdims must be torch.int32",
    ),
    "depth": (
        lambda s: _op.tree_encode(s["tree_encode"][0], s["tree_encode"][1], torch.zeros(3, 8)),
        r"2\*\*L",
    ),
    "column": (
        lambda s: _op.tree_encode(
            s["tree_encode"][0], s["tree_encode"][1] + 9, s["tree_encode"][2]
        ),
        r"splitdims.*holds.*columns",
    ),
    "starts": (
        lambda s: _op.nearest_encode(*s["nearest_encode"][:4], [0, 3, 4]),
        r"starts",
    ),
    "columns": (
        lambda s: _op.nearest_encode(
            *s["nearest_encode"][:3], torch.full((5,), 7, dtype=torch.int32), [0, 2, 5]
        ),
        r"column",
    ),
    "codebooks": (
        lambda s: _op.lut_accumulate(s["lut_accumulate"][0][:, :2], s["lut_accumulate"][1]),
        r"lut of shape \(2, K, M\)",
    ),
    "code": (
        lambda s: _op.lut_accumulate(s["lut_accumulate"][0] + 4, s["lut_accumulate"][1]),
        r"codes holds \d.*K = 4",
    ),
    "mode": (
        lambda s: _op.lut_accumulate(*s["lut_accumulate"], "sum"),
        r"accumulate='sum'",
    ),
    "group": (
        lambda s: _op.lut_accumulate(*s["lut_accumulate"], "mean", 12),
        r"upcast_every=12",
    ),
    "float mean": (
        lambda s: _op.lut_accumulate(*s["lut_accumulate float"], "mean"),
        r"needs a uint8 lut",
    ),
    "scale": (
        lambda s: _op.lut_dequantize(s["lut_dequantize"][0], torch.ones(6), torch.ones(7)),
        r"scale must be \(7,\)",
    ),
    "activation": (
        lambda s: _op.lut_dequantize(*s["lut_dequantize"][:3], "gelu"),
        r"activation='gelu'",
    ),
    "kernel": (lambda s: ops.im2col(s["im2col"][0], (9, 9)), r"does not fit"),
    "pair": (lambda s: ops.im2col(s["im2col"][0], (3,)), r"kernel must be two numbers"),
    "image": (lambda s: ops.im2col(s["im2col"][0][0], (3, 3)), r"must be \(N, C, H, W\)"),
    "rows": (lambda s: ops.rows_to_nchw(s["rows_to_nchw"][0], 5, 2), r"no multiple"),
}


@pytest.mark.parametrize("mode", ["never", "always"])
@pytest.mark.parametrize("name", list(BAD))
def test_mistakes_are_explained(name: str, mode: str) -> None:
    call, pattern = BAD[name]
    ops.set_compilation(mode)
    with pytest.raises(InputError, match=rf"(?s)torch\.ops\.lutcc\..*{pattern}"):
        call(_samples())


def test_mode_names() -> None:
    with pytest.raises(InputError, match="no mode"):
        ops.set_compilation("sometimes")


@needs_kernels
def test_eight_threads() -> None:
    ops.set_compilation("always")
    rng = np.random.default_rng(5)
    x, dims, values = tree_case(rng, 50, 12, 6, 4, "float32")
    want = interpret("tree_encode", [x, dims, values])
    arguments = [torch.from_numpy(a) for a in (x, dims, values)]
    right: list[int] = []

    def work(seed: int) -> None:
        for _ in range(30):
            np.testing.assert_array_equal(_op.tree_encode(*arguments).numpy(), want)
        right.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(right) == list(range(8))
