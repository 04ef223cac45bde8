"""Products with codebooks and sparse matrices on a GPU, against the CPU in float64."""

from __future__ import annotations

import pytest
import torch

import lutcc.ops
from lutcc.ir.codebooks import packed_columns
from tests.triton.references import relative_error
from tests.triton.test_gpu import DEVICE, TOLERANCES, random

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.float16, torch.bfloat16]

# N, K, M, bits, codebooks, scales, segment_size: few rows, and more than are fused
CASES = [
    (5, 768, 500, 4, 500, 1, 0),
    (100, 300, 130, 3, 130 * 10, 7, 32),
    (256, 4000, 77, 2, 1, 77, 0),
    (1000, 256, 130, 3, 1, 130 * 4, 64),
    (1, 1, 1, 4, 1, 1, 0),
]


Operands = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def operands(case, *, stored=torch.float32) -> Operands:
    _, columns, rows, bits, books, factors, _ = case
    generator = torch.Generator().manual_seed(0)
    shape = rows, packed_columns(columns, bits)
    indices = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    order = torch.randperm(rows, generator=generator).to(torch.int32)
    codebooks, scales = random(books, 2**bits, dtype=stored), random(factors, dtype=stored, seed=1)
    return indices, codebooks, scales, order


def call(leaves, indices, order, case, compute="float32"):
    x, codebooks, scales, bias = leaves
    _, _, _, bits, _, _, size = case
    return lutcc.ops.codebook_matmul(
        x, indices, codebooks, scales, order, bias, bits, size, compute
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_products_and_gradients(case, dtype):
    indices, codebooks, scales, order = operands(case)
    count, columns, rows = case[:3]
    x, bias = random(count, columns, dtype=dtype, seed=2), random(rows, dtype=torch.float32, seed=3)
    grad = random(count, rows, dtype=dtype, seed=4)
    results = []
    for device, wide in (("cpu", True), (DEVICE, False)):
        leaves = [
            (t.double() if wide else t).to(device).requires_grad_()
            for t in (x, codebooks, scales, bias)
        ]
        y = call(leaves, indices.to(device), order.to(device), case)
        results.append([y, *torch.autograd.grad(y, leaves, grad.to(y))])
    for one, other in zip(results[1], results[0], strict=True):
        error = relative_error(one.detach().cpu(), other.detach())
        assert error <= 3 * TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_integers_are_the_same_bits_as_on_the_cpu(case, dtype):
    indices, codebooks, scales, order = operands(case, stored=torch.float16)
    count, columns, rows = case[:3]
    x, bias = random(count, columns, dtype=dtype, seed=2), random(rows, dtype=torch.float32, seed=3)
    x[0] = torch.arange(columns) % 255 * 0.5 - 60  # ties
    x[-1, 0] = float("nan")
    results = [
        call(
            [t.to(device) for t in (x, codebooks, scales, bias)],
            indices.to(device),
            order.to(device),
            case,
            "int8",
        ).cpu()
        for device in ("cpu", DEVICE)
    ]
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("case", CASES)
def test_rounded_operands(case):
    indices, codebooks, scales, order = operands(case)
    x = random(case[0], case[1], dtype=torch.float32, seed=2)
    results = [
        call(
            [t.to(device) for t in (x, codebooks, scales)] + [None],
            indices.to(device),
            order.to(device),
            case,
            "bfloat16",
        ).cpu()
        for device in ("cpu", DEVICE)
    ]
    assert relative_error(results[1], results[0]) <= 1e-5


@pytest.mark.parametrize("case", CASES)
def test_rows_and_gradients(case):
    indices, codebooks, scales, _ = operands(case)
    _, columns, rows, bits, _, _, size = case
    chosen = torch.randint(0, rows, (7, 30), generator=torch.Generator().manual_seed(5))
    results = []
    for device in ("cpu", DEVICE):
        leaves = [t.to(device).requires_grad_() for t in (codebooks, scales)]
        books, factors = leaves
        y = lutcc.ops.codebook_dequantize(
            chosen.to(device), indices.to(device), books, factors, bits, columns, size
        )
        grad = random(*y.shape, dtype=torch.float32, seed=6).to(device)
        results.append([y.detach().cpu(), *(g.cpu() for g in torch.autograd.grad(y, leaves, grad))])
    assert torch.equal(results[0][0], results[1][0])
    for one, other in zip(results[1][1:], results[0][1:], strict=True):
        assert relative_error(one, other) <= 1e-5


@pytest.mark.parametrize("count", [40, 1000])
def test_gradients_are_the_same_every_time(count):
    case = (count, 512, 300, 3, 7, 300 * 16, 32)
    indices, codebooks, scales, order = (t.to(DEVICE) for t in operands(case))
    x, grad = torch.randn(count, 512, device=DEVICE), torch.randn(count, 300, device=DEVICE)
    op = torch.ops.lutcc.codebook_matmul_backward
    first, second = (
        op(grad, x, indices, codebooks, scales, order, 3, 32, True, True) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [3, 500])
def test_sparse_products_and_gradients(count, dtype):
    outputs, columns = 300, 200
    matrix = torch.randn(outputs, columns, generator=torch.Generator().manual_seed(0))
    matrix[matrix.abs() < 2] = 0
    values = matrix[matrix != 0]
    counts = (matrix != 0).sum(1)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)
    where = matrix.nonzero()[:, 1].to(torch.int32)
    base, x = random(count, outputs, dtype=dtype), random(count, columns, dtype=dtype, seed=1)
    grad = random(count, outputs, dtype=dtype, seed=2)
    results = []
    for device, wide in (("cpu", True), (DEVICE, False)):
        leaves = [
            (t.double() if wide else t).to(device).requires_grad_() for t in (base, x, values)
        ]
        left, right, factors = leaves
        y = lutcc.ops.sparse_add(left, right, starts.to(device), where.to(device), factors)
        results.append([y, *torch.autograd.grad(y, leaves, grad.to(y))])
    for one, other in zip(results[1], results[0], strict=True):
        assert relative_error(one.detach().cpu(), other.detach()) <= 2 * TOLERANCES[dtype]


def test_a_layer_waits_for_nothing():
    """No call of a training step asks the GPU for a number: "error" raises where one does."""
    case = (64, 256, 128, 4, 128, 1, 0)
    indices, codebooks, scales, order = (t.to(DEVICE) for t in operands(case))
    leaves = [torch.randn(64, 256, device=DEVICE), codebooks, scales, torch.zeros(128).to(DEVICE)]
    leaves = [t.requires_grad_() for t in leaves]

    def step():
        call(leaves, indices, order, case).sum().backward()
        with torch.no_grad():
            call(leaves, indices, order, case, "int8")

    step()  # compiles
    try:
        torch.cuda.set_sync_debug_mode("error")
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_opcheck():
    case = (20, 64, 30, 3, 30, 60, 32)
    indices, codebooks, scales, order = (t.to(DEVICE) for t in operands(case))
    x, rows = torch.randn(20, 64, device=DEVICE, requires_grad=True), torch.arange(7, device=DEVICE)
    codebooks.requires_grad_()
    ops = torch.ops.lutcc
    for op, args in (
        (ops.codebook_matmul, (x, indices, codebooks, scales, order, None, 3, 32)),
        (ops.codebook_dequantize, (rows, indices, codebooks, scales, 3, 64, 32)),
    ):
        torch.library.opcheck(op.default, args)
