"""Hadamard, block-diagonal products, sign hash, gather: values, gradients, dtypes, torch's tools.

Everything here runs on torch's own operators; ``test_hadamard_and_gather_kernels.py`` has the
compiled kernels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lutcc import ir, ops

_op = torch.ops.lutcc
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
EPSILON = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.float16: 2.0**-10,
    torch.bfloat16: 2.0**-8,
}


@pytest.fixture(autouse=True)
def _never() -> Iterator[None]:
    before = ops.get_compilation()
    ops.set_compilation("never")
    yield
    ops.set_compilation(before)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


@lru_cache
def sylvester(n: int) -> torch.Tensor:
    """By the definition, element by element: not how the operator does it."""
    return torch.tensor(
        [[(-1.0) ** (i & j).bit_count() for j in range(n)] for i in range(n)], dtype=torch.float64
    )


def plain_blocks(x: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    return x @ torch.block_diag(*blocks)


def plain_hash(
    z: torch.Tensor, length: int, variant: str, neighbors: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Equation 7 by exponentials over sign vectors, code by code."""
    parts = z.reshape(*z.shape[:-1], -1, length)
    denominator = (torch.exp(parts) + torch.exp(-parts)).prod(-1)
    code = ((parts > 0) * 2 ** torch.arange(length)).sum(-1)
    order = parts.detach().abs().argsort(dim=-1, stable=True)
    codes, scores = [], []
    for j in range(neighbors):
        code_j = code if j == 0 else code ^ (1 << order[..., j - 1])
        signs = ((code_j[..., None] >> torch.arange(length)) & 1) * 2.0 - 1
        inner = (parts * signs).sum(-1)
        score = torch.exp(inner) / denominator
        codes.append(code_j)
        scores.append(inner * score if variant == "gelu" else score)
    if variant == "constant":
        scores = [torch.ones_like(scores[0])]
    flat = (*z.shape[:-1], -1)
    return torch.stack(codes, -1).int().reshape(flat), torch.stack(scores, -1).reshape(flat)


def plain_gather(codes: torch.Tensor, scores: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    neighbors = codes.shape[-1] // tables.shape[0]
    which = torch.arange(codes.shape[-1]) // neighbors
    return (scores[..., None] * tables[which, codes.long()]).sum(-2)


def gather_case(
    lead: tuple[int, ...], h: int, j: int, k: int, m: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    codes = torch.randint(0, k, (*lead, h * j), generator=generator(1), dtype=torch.int32)
    return codes, randn(*lead, h * j, dtype=dtype), randn(h, k, m, seed=2, dtype=dtype)


def near(got: torch.Tensor, want: torch.Tensor, bound: torch.Tensor | float) -> None:
    """Compare with a float64 result; ``bound`` is the size of what was summed."""
    assert got.shape == want.shape
    error = (got.double() - want).abs() / (torch.as_tensor(bound).double() + 1e-300)
    assert not error.numel() or float(error.max()) <= EPSILON[got.dtype]


# values


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("d", [1, 2, 3, 32, 63, 64, 65, 200, 512, 768])
def test_hadamard_is_its_definition(d: int, dtype: torch.dtype) -> None:
    x = randn(3, 5, d, dtype=dtype)
    n = 1 << (d - 1).bit_length()
    want = x.double() @ sylvester(n)[:d] * 0.37
    y = ops.hadamard(x, 0.37)
    assert y.dtype is dtype
    near(y, want, 0.37 * x.double().abs().sum(-1, keepdim=True))


@pytest.mark.parametrize("n", [16, 128, 4096])
def test_hadamard_twice_is_n_times_the_identity(n: int) -> None:
    x = randn(7, n, dtype=torch.float64)
    assert torch.allclose(ops.hadamard(ops.hadamard(x)), n * x, rtol=0, atol=n * 1e-13)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("columns", [None, 1, 8, 11, 14])
def test_block_diagonal_is_a_product_with_the_whole_matrix(
    columns: int | None, dtype: torch.dtype
) -> None:
    x, blocks = randn(4, 3, 15, dtype=dtype), randn(3, 5, 8, seed=1, dtype=dtype)
    want = plain_blocks(x.double(), blocks.double())[..., :columns]
    bound = plain_blocks(x.double().abs(), blocks.double().abs())[..., :columns]
    y = ops.block_diagonal_matmul(x, blocks, columns)
    assert y.dtype is dtype
    near(y, want, bound)


def test_bfloat16_blocks_round_x_first() -> None:
    x, blocks = randn(6, 12), randn(3, 4, 5, seed=1).bfloat16()
    want = plain_blocks(x.bfloat16().double(), blocks.double())
    y = ops.block_diagonal_matmul(x, blocks)
    near(y, want, plain_blocks(x.double().abs(), blocks.double().abs()))


CASES = [
    (t, v, j)
    for t in (1, 2, 5, 8, 16)
    for v, js in (("gelu", (1, 2, 4)), ("softmax", (1, t + 1)), ("constant", (1,)))
    for j in sorted({min(j, t + 1) for j in js})
]


@pytest.mark.parametrize(("length", "variant", "neighbors"), CASES)
def test_sign_hash_is_equation_7(length: int, variant: str, neighbors: int) -> None:
    z = randn(4, 5, 3 * length, dtype=torch.float64)
    z[0, 0, ::2] = 0.0  # ties, and no bit
    codes, scores = ops.sign_hash(z, length, variant, neighbors)
    want_codes, want = plain_hash(z, length, variant, neighbors)
    assert codes.dtype is torch.int32
    assert torch.equal(codes, want_codes)
    near(scores, want, want.abs() + 1e-3)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_sign_hash_dtypes(dtype: torch.dtype) -> None:
    z = randn(40, 24, dtype=dtype)
    codes, scores = ops.sign_hash(z, 8, neighbors=3)
    assert scores.dtype is dtype
    want_codes, want = plain_hash(z.double(), 8, "gelu", 3)
    assert torch.equal(codes, want_codes)  # of the same z: there is no rounding before the signs
    near(scores, want, want.abs() + 1e-3)


def test_scores_at_extremes() -> None:
    z = torch.tensor([[300.0, -300.0], [1e-30, -1e-30], [float("nan"), 1.0], [-0.0, 0.0]])
    codes, scores = ops.sign_hash(z, 2)
    assert codes.ravel().tolist() == [1, 1, 2, 0]
    assert scores[:2].ravel().tolist() == pytest.approx([600.0, 0.0])
    assert bool(scores[2].isnan())


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("lead", [(7,), (2, 3), (4096,), (0,), ()], ids=str)
def test_gather_is_its_sum(lead: tuple[int, ...], dtype: torch.dtype) -> None:
    codes, scores, tables = gather_case(lead, 3, 2, 16, 10, dtype)
    y = ops.weighted_gather(codes, scores, tables)
    want = plain_gather(codes, scores.double(), tables.double())
    assert y.dtype is dtype
    near(y, want, plain_gather(codes, scores.double().abs(), tables.double().abs()))


@pytest.mark.parametrize("score_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [5, 3000])
def test_gather_of_half_precision_tables(rows: int, kind: torch.dtype, score_dtype: str) -> None:
    codes, scores, tables = gather_case((rows,), 8, 1, 16, 64)
    y = ops.weighted_gather(codes, scores, tables.to(kind), score_dtype)
    assert y.dtype is torch.float32
    rounded = scores.bfloat16() if score_dtype == "bfloat16" else scores
    want = plain_gather(codes, rounded.double(), tables.to(kind).double())
    near(y, want, plain_gather(codes, scores.double().abs(), tables.double().abs()))


def interpret(opcode: str, arrays: list[np.ndarray], rows: int, **attrs: Any) -> tuple[Any, ...]:
    """Run one op through a module of its own: the definition."""
    b = ir.Builder("main")
    operands = []
    for i, (operand, a) in enumerate(zip(ir.OPS[opcode].operands, arrays, strict=True)):
        shape = (ir.Sym("n"), *a.shape[1:]) if i < rows else a.shape
        operands.append(b.param(operand.name, ir.TensorType(shape, str(a.dtype))))
    b.returns(*b.ops(opcode, *operands, **attrs))
    return tuple(ir.interpret(b.module(), arrays))


@pytest.mark.parametrize(("h", "j", "m"), [(1, 1, 3), (5, 3, 16), (1200, 1, 4)])
@pytest.mark.parametrize("rows", [1, 9, 2000])
def test_int8_gather_is_the_definition_bit_by_bit(rows: int, h: int, j: int, m: int) -> None:
    if rows * h > 10**6:
        rows = 300  # more codes than float32 sums exactly, and more rows than are taken at once
    rng = np.random.default_rng(rows)
    tables = rng.integers(-128, 128, (h, 8, m)).astype(np.int8)
    codes = rng.integers(0, 8, (rows, h * j)).astype(np.int32)
    scores = (rng.standard_normal((rows, h * j)) * 10.0 ** rng.integers(-9, 9)).astype(np.float32)
    special = [0.0, np.nan, np.inf, 1e-38, 1e-45, -0.0]
    scores[: len(special), 0] = special[:rows]
    scores[0] = 0
    if rows > 6:
        scores[3, 1:] = 0  # so that 1e-38 is the largest of its row
        scores[6] = np.linspace(-1, 1, h * j)  # halves to be rounded to even
        tables[:, :, 0], scores[7] = -128, 3.0  # the largest sum
    (want,) = interpret("weighted_gather", [codes, scores, tables], 2)
    c, s, t = map(torch.from_numpy, (codes, scores, tables))
    y = ops.weighted_gather(c, s, t).numpy()
    np.testing.assert_array_equal(y.view(np.uint32), want.view(np.uint32))


def test_int8_gather_of_half_precision_scores() -> None:
    codes, scores, _ = gather_case((9,), 4, 1, 8, 5)
    tables = torch.randint(-128, 128, (4, 8, 5), generator=generator(), dtype=torch.int8)
    wide = ops.weighted_gather(codes, scores.bfloat16().float(), tables)
    assert torch.equal(ops.weighted_gather(codes, scores.bfloat16(), tables), wide.bfloat16())


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_operators_are_the_interpreters(data: st.DataObject) -> None:
    """On any shape and any strides: sums within the op's tolerance, codes exactly."""
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, d = draw(st.integers(0, 9)), draw(st.integers(1, 150))
    step = draw(st.integers(1, 3))
    x = rng.standard_normal((n * step, d)).astype(np.float32)[::step]
    t = torch.from_numpy(x)
    scale = draw(st.sampled_from([1.0, 0.125, -3.3]))
    (want,) = interpret("hadamard", [x], 1, scale=scale)
    near(ops.hadamard(t, scale), torch.from_numpy(want).double(), abs(scale) * abs(x).sum() + 1e-30)
    groups = draw(st.sampled_from([g for g in range(1, d + 1) if d % g == 0]))
    kind = draw(st.sampled_from(["float32", "bfloat16"]))
    width = draw(st.integers(1, 5))
    blocks = rng.standard_normal((groups, d // groups, width)).astype(
        ml_dtypes.bfloat16 if kind == "bfloat16" else np.float32
    )
    columns = draw(st.integers(1, groups * width))
    (want,) = interpret("block_diagonal_matmul", [x, blocks], 1, columns=columns)
    b = torch.from_numpy(blocks.astype(np.float32)).to(getattr(torch, kind))
    got = ops.block_diagonal_matmul(t, b, columns)
    near(got, torch.from_numpy(want).double(), 5 * float(abs(x).sum()) * 4 + 1e-30)
    length = draw(st.sampled_from([v for v in range(1, 17) if d % v == 0]))
    variant = draw(st.sampled_from(["gelu", "softmax", "constant"]))
    neighbors = 1 if variant == "constant" else draw(st.integers(1, length + 1))
    attrs = {"code_length": length, "variant": variant, "neighbors": neighbors}
    want_codes, want = interpret("sign_hash", [x], 1, **attrs)
    codes, scores = ops.sign_hash(t, length, variant, neighbors)
    np.testing.assert_array_equal(codes.numpy(), want_codes)
    np.testing.assert_allclose(scores.numpy(), want, rtol=2e-5, atol=1e-6)


# strides and empty inputs


def test_any_strides() -> None:
    x = randn(12, 40)
    blocks, tables = randn(4, 5, 6, seed=1), randn(5, 16, 7, seed=2)
    views = (x[::3], x.t().contiguous().t(), x[:, 20:], x[0], x[:1].expand(6, 40), x.view(3, 4, 40))
    for view in (*views, x[:0], x.view(3, 4, 40)[:, :0]):
        same = view.contiguous()
        assert torch.equal(ops.hadamard(view), ops.hadamard(same))
        if view.shape[-1] == 20:
            product = ops.block_diagonal_matmul(view, blocks)
            assert torch.equal(product, ops.block_diagonal_matmul(same, blocks))
        for got, want in zip(ops.sign_hash(view, 4), ops.sign_hash(same, 4), strict=True):
            assert torch.equal(got, want)
    swapped = blocks.transpose(1, 2).contiguous().transpose(1, 2)
    want = ops.block_diagonal_matmul(x[:, :20], blocks)
    assert torch.allclose(ops.block_diagonal_matmul(x[:, :20], swapped), want)
    codes, scores = ops.sign_hash(x[:, :20], 4)
    want = ops.weighted_gather(codes, scores, tables)
    codes, scores = (t.t().contiguous().t() for t in (codes, scores))
    assert torch.equal(
        ops.weighted_gather(codes, scores, tables.transpose(0, 2).contiguous().transpose(0, 2)),
        want,
    )


# gradients


def doubles(*shape: int, seed: int = 0) -> torch.Tensor:
    return randn(*shape, seed=seed, dtype=torch.float64).requires_grad_()


GRADIENTS: dict[str, Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]] = {
    "hadamard": lambda: (lambda x: _op.hadamard(x, 0.5), (doubles(2, 3, 11),)),
    "blocks": lambda: (_op.block_diagonal_matmul, (doubles(2, 2, 6), doubles(3, 2, 4, seed=1))),
    "blocks, first columns": lambda: (
        lambda x, b: _op.block_diagonal_matmul(x, b, 7),
        (doubles(3, 6), doubles(3, 2, 4, seed=1)),
    ),
    **{
        f"hash {variant} {neighbors}": lambda variant=variant, neighbors=neighbors: (
            lambda z: _op.sign_hash(z, 4, variant, neighbors)[1],
            (doubles(2, 2, 12),),
        )
        for variant, neighbors in (
            *((v, j) for v in ("gelu", "softmax") for j in (1, 2, 3, 5)),
            ("constant", 1),
        )
    },
    **{
        f"gather {j}": lambda j=j: (
            lambda s, t: _op.weighted_gather(gather_case((2, 4), 3, j, 4, 5)[0], s, t),
            (doubles(2, 4, 3 * j), doubles(3, 4, 5, seed=2)),
        )
        for j in (1, 2)
    },
}


@pytest.mark.parametrize("name", list(GRADIENTS))
def test_gradcheck(name: str) -> None:
    function, inputs = GRADIENTS[name]()
    assert torch.autograd.gradcheck(function, inputs)


def test_gradients_of_many_rows_and_one_at_a_time_agree() -> None:
    """The two ways of the CPU implementation, and a third: plain indexing."""
    codes, scores, tables = gather_case((3000,), 6, 2, 16, 48)
    grad = randn(3000, 48, seed=3)
    scores, tables = scores.requires_grad_(), tables.requires_grad_()
    got = torch.autograd.grad(ops.weighted_gather(codes, scores, tables), (scores, tables), grad)
    want = torch.autograd.grad(plain_gather(codes, scores, tables), (scores, tables), grad)
    for a, b in zip(got, want, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)
    one = slice(17, 18)
    (single,) = torch.autograd.grad(
        ops.weighted_gather(codes[one], scores[one], tables), scores, grad[one]
    )
    assert torch.allclose(single[one], got[0][one], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_gradients(dtype: torch.dtype) -> None:
    codes, scores, tables = gather_case((300,), 6, 1, 4, 32, dtype)
    grad = randn(300, 32, seed=3, dtype=dtype)
    dscores, dtables = _op.weighted_gather_backward(grad, codes, scores, tables)
    assert dscores.dtype is dtables.dtype is dtype
    wide = [t.double().requires_grad_() for t in (scores, tables)]
    want = torch.autograd.grad(plain_gather(codes, *wide), wide, grad.double())
    assert torch.allclose(dscores.double(), want[0], rtol=4 * EPSILON[dtype], atol=0.05)
    # some 75 rows are summed: in the dtype itself the error would be many times larger
    assert torch.allclose(dtables.double(), want[1], rtol=2 * EPSILON[dtype], atol=0.05)
    z = randn(50, 24, dtype=dtype)
    dz = _op.sign_hash_backward(z, torch.ones(50, 3, dtype=dtype), 8, "gelu", 1)
    exact = _op.sign_hash_backward(z.double(), torch.ones(50, 3).double(), 8, "gelu", 1)
    near(dz, exact, exact.abs() + 1e-3)


def test_table_gradient_has_one_order() -> None:
    codes, scores, tables = gather_case((2000,), 4, 1, 8, 16)
    grad = randn(2000, 16, seed=3)
    first = _op.weighted_gather_backward(grad, codes, scores, tables)[1]
    for flag in (True, False):
        assert torch.equal(
            _op.weighted_gather_backward(grad, codes, scores, tables, flag)[1], first
        )


def test_int8_tables_pass_a_gradient_to_the_scores() -> None:
    codes, scores, _ = gather_case((9,), 4, 1, 8, 5)
    tables = torch.randint(-128, 128, (4, 8, 5), generator=generator(), dtype=torch.int8)
    scores = scores.requires_grad_()
    (got,) = torch.autograd.grad(ops.weighted_gather(codes, scores, tables).sum(), scores)
    which = torch.arange(4)
    assert torch.allclose(got, tables[which, codes.long()].float().sum(-1))


def test_constant_scores_have_no_gradient_and_codes_never_have() -> None:
    z = randn(3, 8).requires_grad_()
    codes, scores = ops.sign_hash(z, 4)
    assert not codes.requires_grad
    assert scores.requires_grad
    (grad,) = torch.autograd.grad(ops.sign_hash(z, 4, "constant")[1].sum(), z)
    assert not grad.any()


def test_gradients_of_no_rows() -> None:
    layer = Layer()
    x = torch.zeros(0, 3, 13, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


@pytest.mark.parametrize("name", ["blocks", "hash gelu 1", "gather 1"])
def test_second_derivatives_are_refused(name: str) -> None:
    function, inputs = GRADIENTS[name]()
    grads = torch.autograd.grad(function(*inputs).square().sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        torch.autograd.grad([g.square().sum() for g in grads], inputs)


# torch's tools


def samples() -> dict[str, tuple[Any, ...]]:
    codes, scores, tables = gather_case((2, 3), 4, 2, 8, 5)
    z = randn(2, 3, 12)
    int8 = torch.randint(-128, 128, (4, 8, 5), generator=generator(), dtype=torch.int8)
    learned = [t.detach().clone().requires_grad_() for t in (scores, tables)]
    blocks = randn(3, 4, 5, seed=1).requires_grad_()
    return {
        "hadamard": (z.clone().requires_grad_(), 0.5),
        "block_diagonal_matmul": (z.clone().requires_grad_(), blocks, 13),
        "block_diagonal_matmul, all columns": (z.clone().requires_grad_(), blocks),
        "block_diagonal_matmul, bfloat16 blocks": (z, blocks.detach().bfloat16()),
        "block_diagonal_matmul_weight_grad": (z, randn(2, 3, 15), 3, 5),
        "sign_hash": (z, 4, "softmax", 3),
        "sign_hash, defaults": (z, 6),
        "sign_hash, constant": (z, 4, "constant"),
        "sign_hash, learned": (z.clone().requires_grad_(), 4, "softmax", 3),
        "sign_hash_backward": (z, randn(2, 3, 9), 4, "gelu", 3),
        "weighted_gather": (codes, *learned),
        "weighted_gather, bfloat16 tables": (codes, scores, tables.bfloat16(), "bfloat16"),
        "weighted_gather, int8 tables": (codes, learned[0], int8),
        "weighted_gather_backward": (randn(2, 3, 5), codes, scores, tables),
        "weighted_gather_backward, int8 tables": (randn(2, 3, 5), codes, scores, int8),
    }


@pytest.mark.parametrize("name", list(samples()))
def test_opcheck(name: str) -> None:
    op = getattr(_op, name.partition(",")[0]).default
    tests: Any = ("test_schema", "test_autograd_registration", "test_faketensor")
    if name != "sign_hash, learned":  # opcheck cannot add integer results to a loss; see below
        tests += ("test_aot_dispatch_dynamic",)
    torch.library.opcheck(op, samples()[name], test_utils=tests)


class Layer(torch.nn.Module):
    """A look-up layer: BH1, hash, gather."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.blocks = torch.nn.Parameter(randn(4, 4, 6, seed=1, dtype=dtype))
        self.tables = torch.nn.Parameter(randn(8, 8, 5, seed=2, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = _op.block_diagonal_matmul(_op.hadamard(x, 0.25), self.blocks)
        codes, scores = _op.sign_hash(z, 3, "gelu", 2)
        return _op.weighted_gather(codes, scores, self.tables)


@pytest.mark.parametrize("dynamic", [False, True])
def test_torch_compile_forward_and_backward(dynamic: bool) -> None:
    layer = Layer()
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for n in (6, 9, 2):
        x = randn(n, 3, 13, seed=n)
        results = []
        for model in (layer, compiled):
            layer.zero_grad()
            model(x).square().sum().backward()
            results.append([p.grad for p in layer.parameters()])
            results[-1].append(model(x).detach())
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b)


def test_torch_export_with_a_dynamic_batch() -> None:
    layer = Layer()
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(layer, (randn(6, 3, 13),), dynamic_shapes={"x": {0: batch}})
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert [t for t in targets if t.startswith("lutcc.")] == [
        "lutcc.hadamard.default",
        "lutcc.block_diagonal_matmul.default",
        "lutcc.sign_hash.default",
        "lutcc.weighted_gather.default",
    ]
    x = randn(11, 3, 13, seed=5)
    assert torch.equal(program.module()(x), layer(x))


def test_autocast() -> None:
    """Products and table rows in bfloat16, scores in float32, sums in float32 everywhere."""
    layer = Layer()
    x = randn(64, 13)
    seen: dict[str, Any] = {}
    with torch.autocast("cpu", torch.bfloat16):
        y = _op.hadamard(x, 0.25)
        z = _op.block_diagonal_matmul(y, layer.blocks)
        codes, scores = _op.sign_hash(z, 3)
        out = _op.weighted_gather(codes, scores, layer.tables)
        half = _op.hadamard(x.bfloat16(), 0.25)
        seen.update(y=y, z=z, scores=scores, out=out)
    dtypes = {name: t.dtype for name, t in seen.items()}
    assert dtypes == {
        "y": torch.float32,
        "z": torch.bfloat16,
        "scores": torch.float32,
        "out": torch.bfloat16,
    }
    assert torch.equal(y, _op.hadamard(x, 0.25))  # the products inside were not made bfloat16
    wide = x.bfloat16().double() @ sylvester(16)[:13] * 0.25
    near(half, wide, wide.abs() + 1e-6)
    rounded = (codes, scores.bfloat16(), layer.tables.bfloat16())
    assert torch.equal(out, _op.weighted_gather(*rounded))
    out.float().sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype is torch.float32
        assert bool(parameter.grad.any())
    int8 = torch.randint(-128, 128, (8, 8, 5), generator=generator(), dtype=torch.int8)
    with torch.autocast("cpu", torch.bfloat16):
        assert _op.weighted_gather(codes, scores.bfloat16(), int8).dtype is torch.float32


def test_autocast_under_torch_compile() -> None:
    layer = Layer()

    def step(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x)

    x = randn(32, 13)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), step(x))


def test_float64_is_left_alone_by_autocast() -> None:
    layer = Layer(torch.float64)
    x = randn(5, 13, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        y = _op.block_diagonal_matmul(_op.hadamard(x), layer.blocks)
    assert y.dtype is torch.float64


def test_no_warnings_in_training() -> None:
    layer = Layer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(randn(5, 13)).sum().backward()
