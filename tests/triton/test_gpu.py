"""The operators on a GPU: values and gradients in all dtypes against float64, through torch.ops.

References run on the CPU in float64 on the same, rounded, inputs.
"""

from __future__ import annotations

import pytest
import torch

import lutcc.ops
from lutcc.ops.bh import bh_stage
from tests.triton import references
from tests.triton.references import relative_error

pytestmark = pytest.mark.gpu

DEVICE = "cuda"

#: Relative errors in the Euclidean norm; tf32x3 and the fast exp and log cost float32 a few bits.
TOLERANCES = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1e-2,
}
DTYPES = list(TOLERANCES)


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def compare(function, reference, inputs, dtype, slack=1.0):
    """Check the value and the gradients of a function of tensors that are all differentiable."""
    wide = [x.double().requires_grad_() for x in inputs]
    wanted = reference(*wide)
    grad = random(*wanted.shape, dtype=dtype, seed=99)
    expected = [wanted, *torch.autograd.grad(wanted, wide, grad.double())]
    leaves = [x.to(DEVICE).requires_grad_() for x in inputs]
    y = function(*leaves)
    found = [y, *torch.autograd.grad(y, leaves, grad.to(DEVICE))]
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert one.dtype is dtype
        assert one.device.type == DEVICE
        assert relative_error(one.detach().cpu(), other.detach()) <= slack * TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [(5, 1), (70, 6), (3, 7, 100), (33, 256), (1000, 512), (129, 768), (9, 4000), (3, 9000)],
)
def test_hadamard(shape, dtype):
    scale = shape[-1] ** -0.5
    x = random(*shape, dtype=dtype)
    compare(
        lambda a: lutcc.ops.hadamard(a, scale), lambda a: references.hadamard(a, scale), [x], dtype
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "shape", "columns"),
    [
        (3000, (8, 64, 128), None),
        (100, (16, 64, 64), 1000),
        (77, (128, 8, 8), None),
        (65, (3, 12, 20), 41),
        (31, (2, 256, 256), 500),
        (1, (5, 48, 24), None),
    ],
)
def test_block_diagonal_matmul(rows, shape, columns, dtype):
    count, p, _ = shape
    x, blocks = random(rows, count * p, dtype=dtype), random(*shape, dtype=dtype, seed=1)
    compare(
        lambda a, b: lutcc.ops.block_diagonal_matmul(a, b, columns),
        lambda a, b: references.block_diagonal_matmul(a, b, columns),
        [x, blocks],
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("d", "shape", "columns"),
    [(512, (8, 64, 128), None), (700, (16, 64, 64), 1000), (500, (64, 8, 8), None)],
)
def test_bh_stage(d, shape, columns, dtype):
    count, p, _ = shape
    scale = (count * p) ** -0.5
    x, blocks = random(333, d, dtype=dtype), random(*shape, dtype=dtype, seed=1)
    compare(
        lambda a, b: bh_stage(a, b, scale, columns),
        lambda a, b: references.block_diagonal_matmul(references.hadamard(a, scale), b, columns),
        [x, blocks],
        dtype,
        slack=2,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", ["gelu", "softmax"])
@pytest.mark.parametrize(("length", "neighbors"), [(1, 2), (8, 1), (9, 4), (16, 17)])
def test_sign_hash(length, neighbors, variant, dtype):
    z = random(300, 5 * length, dtype=dtype)
    codes, _ = lutcc.ops.sign_hash(z.to(DEVICE), length, variant, neighbors)
    assert torch.equal(codes.cpu(), references.sign_hash(z, length, variant, neighbors)[0])
    compare(
        lambda a: lutcc.ops.sign_hash(a, length, variant, neighbors)[1],
        lambda a: references.sign_hash(a, length, variant, neighbors)[1],
        [z],
        dtype,
    )


def gather_inputs(rows, tables, entries, neighbors, outputs, dtype):
    generator = torch.Generator().manual_seed(rows)
    shape = (rows, tables * neighbors)
    codes = torch.randint(0, entries, shape, generator=generator, dtype=torch.int32)
    scores = random(*shape, dtype=dtype, seed=1)
    return codes, scores, random(tables, entries, outputs, dtype=dtype, seed=2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize(
    "shape",
    [(2000, 16, 256, 1, 512), (300, 5, 512, 1, 768), (64, 3, 8192, 2, 1030), (7, 2, 4, 3, 1)],
)
def test_weighted_gather(shape, deterministic, dtype):
    codes, scores, tables = gather_inputs(*shape, dtype=dtype)
    lutcc.ops.set_deterministic_gradients(deterministic)
    try:
        compare(
            lambda s, t: lutcc.ops.weighted_gather(codes.to(DEVICE), s, t),
            lambda s, t: references.weighted_gather(codes, s, t),
            [scores, tables],
            dtype,
        )
    finally:
        lutcc.ops.set_deterministic_gradients(True)


def test_table_gradients_are_the_same_every_time():
    codes, scores, tables = (
        t.to(DEVICE) for t in gather_inputs(4000, 8, 64, 1, 256, torch.float32)
    )
    grad = torch.randn(4000, 256, device=DEVICE)
    op = torch.ops.lutcc.weighted_gather_backward
    first, second = (op(grad, codes, scores, tables, True)[1] for _ in range(2))
    assert torch.equal(first, second)


def test_int8_tables_give_the_bits_of_the_cpu():
    codes, scores, tables = gather_inputs(500, 32, 256, 1, 300, torch.float32)
    whole = (tables * 40).clamp(-127, 127).to(torch.int8)
    scores[3] = 0
    scores[4, 5] = 1e-38
    y = lutcc.ops.weighted_gather(codes.to(DEVICE), scores.to(DEVICE), whole.to(DEVICE))
    assert torch.equal(y.cpu(), lutcc.ops.weighted_gather(codes, scores, whole))


def test_opcheck():
    x = torch.randn(20, 60, device=DEVICE, requires_grad=True)
    blocks = torch.randn(4, 16, 16, device=DEVICE, requires_grad=True)
    z = torch.randn(20, 24, device=DEVICE, requires_grad=True)
    codes, scores = (t.detach() for t in lutcc.ops.sign_hash(z, 8))
    scores.requires_grad_()
    tables = torch.randn(3, 256, 40, device=DEVICE, requires_grad=True)
    ops = torch.ops.lutcc
    for op, args in (
        (ops.hadamard, (x, 0.5)),
        (ops.block_diagonal_matmul, (torch.randn(20, 64, device=DEVICE), blocks, 50)),
        (ops.bh_stage, (x, blocks, 0.125, 50)),
        (ops.sign_hash, (z, 8, "gelu", 2)),
        (ops.weighted_gather, (codes, scores, tables)),
    ):
        checks: tuple[str, ...] = ("test_schema", "test_autograd_registration", "test_faketensor")
        if op is not ops.sign_hash:  # opcheck cannot add integer results to a loss
            checks += ("test_aot_dispatch_dynamic",)
        torch.library.opcheck(op.default, args, test_utils=checks)


def layer(variant="gelu"):
    from lutcc.nn import LookupFFN

    torch.manual_seed(0)
    return LookupFFN(100, 90, 12, 6, block_size=16, variant=variant)


def test_layer_is_the_same_as_on_the_cpu():
    here, there = layer(), layer().to(DEVICE)
    x = torch.randn(50, 100)
    results = []
    for module, rows in ((here, x), (there, x.to(DEVICE))):
        rows = rows.clone().requires_grad_()
        y = module(rows)
        grads = torch.autograd.grad(y.square().sum(), (rows, *module.parameters()))
        results.append([t.detach().cpu() for t in (y, *grads)])
    for one, other in zip(*results, strict=True):
        assert relative_error(one, other) <= 1e-4


def test_autocast_and_compile():
    module = layer().to(DEVICE)
    x = torch.randn(50, 100, device=DEVICE)
    compiled = torch.compile(module, fullgraph=True)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        plain, fast = module(x), compiled(x)
    # The compiler keeps float32 where each operator rounds to bfloat16: projections next to zero
    # change their sign, and a few codes (3 % of the norm on an H200) name other rows of a table.
    assert relative_error(fast.detach(), plain.detach()) <= 0.1
    fast.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_on_another_than_the_current_device():
    x = torch.randn(10, 100, device="cuda:1")
    y = lutcc.ops.hadamard(x)
    assert y.device == x.device
    assert relative_error(y.cpu(), references.hadamard(x.cpu().double())) <= 1e-5
