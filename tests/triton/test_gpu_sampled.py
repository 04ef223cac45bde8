"""Sampled products on a GPU: scores, selection, products and layers, against float64 on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lutcc.ops
from lutcc.ir import sampling
from lutcc.nn import SampledLinear
from tests.triton.references import relative_error
from tests.triton.test_gpu import DEVICE, DTYPES, TOLERANCES, random

pytestmark = pytest.mark.gpu

# (N, K, M, group_size)
SHAPES = [
    (1000, 768, 500, 1),
    (77, 4000, 33, 16),
    (129, 300, 130, 12),
    (1, 1, 1, 1),
    (5000, 64, 48, 1),
]


@pytest.fixture(params=["fused", "index_select", "auto"])
def _backend(request):
    lutcc.ops.set_sampled_backend(request.param)
    yield
    lutcc.ops.set_sampled_backend("auto")


def counts_of(indices, scales, columns, group_size):
    whole = torch.zeros(-(-columns // group_size), dtype=torch.float64)
    taken = scales != 0
    whole[indices[taken].long()] = scales[taken].double()
    return whole.repeat_interleave(group_size)[:columns]


@pytest.mark.usefixtures("_backend")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["topk", "bernoulli"])
def test_products_and_gradients(mode, dtype):
    for rows, columns, outputs, group_size in SHAPES:
        a, b = random(rows, columns, dtype=dtype), random(outputs, columns, dtype=dtype, seed=1).t()
        bias, grad = random(outputs, dtype=dtype), random(rows, outputs, dtype=dtype, seed=2)
        scores = lutcc.ops.column_row_scores(a, b, group_size)
        sample = lutcc.ops.column_row_sample(scores, -(-len(scores) // 2), mode, seed=3)
        counts = counts_of(*sample, columns, group_size)
        leaves = [x.to(DEVICE).requires_grad_() for x in (a, b, bias)]
        places = [x.to(DEVICE) for x in sample]
        y = torch.ops.lutcc.sampled_matmul(*leaves, *places, group_size)
        found = [y, *torch.autograd.grad(y, leaves, grad.to(DEVICE))]
        a, b, bias, grad = (x.double() for x in (a, b, bias, grad))
        wanted = [
            (a * counts) @ b + bias,
            grad @ b.t() * counts,
            (a * counts).t() @ grad,
            grad.sum(0),
        ]
        for one, other in zip(found, wanted, strict=True):
            assert one.dtype is dtype
            assert relative_error(one.detach().cpu(), other) <= 2 * TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores(dtype):
    for rows, columns, outputs, group_size in SHAPES:
        a, b = random(rows, columns, dtype=dtype), random(outputs, columns, dtype=dtype, seed=1).t()
        for weights_only in (False, True):
            wanted = lutcc.ops.column_row_scores(a, b, group_size, weights_only)
            found = lutcc.ops.column_row_scores(
                a.to(DEVICE), b.to(DEVICE), group_size, weights_only
            )
            torch.testing.assert_close(found.cpu(), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("mode", sampling.MODES)
def test_selection_is_that_of_the_definition(mode):
    generator = torch.Generator().manual_seed(0)
    for pairs, k in ((1, 1), (7, 7), (4096, 2048), (5000, 3)):
        scores = torch.rand(pairs, generator=generator) ** 2
        scores[pairs // 2 :: 3] = 0.5
        for seed in (0, 2**62 - 1, -5):
            found = lutcc.ops.column_row_sample(scores.to(DEVICE), k, mode, seed=seed)
            wanted = sampling.select(scores.numpy(), k, mode, seed=seed % 2**64)
            assert np.array_equal(found[0].cpu().numpy(), wanted.indices)
            np.testing.assert_allclose(found[1].cpu().numpy(), wanted.scales, rtol=1e-6)


def test_what_is_not_taken_does_not_show():
    a, b = torch.randn(300, 256, device=DEVICE), torch.randn(256, 200, device=DEVICE)
    scores = lutcc.ops.column_row_scores(a, b)
    indices, scales = lutcc.ops.column_row_sample(scores, 128)
    others = torch.ones(256, dtype=torch.bool, device=DEVICE)
    others[indices.long()] = False
    a[:, others], b[others] = float("nan"), float("inf")
    for backend in ("fused", "index_select"):
        lutcc.ops.set_sampled_backend(backend)
        assert torch.ops.lutcc.sampled_matmul(a, b, None, indices, scales).isfinite().all()
    lutcc.ops.set_sampled_backend("auto")


def test_gradients_are_the_same_every_time():
    a, grad = torch.randn(9000, 256, device=DEVICE), torch.randn(9000, 128, device=DEVICE)
    indices = torch.arange(0, 256, 2, dtype=torch.int32, device=DEVICE)
    scales = torch.ones(128, device=DEVICE)
    lutcc.ops.set_sampled_backend("fused")
    op = torch.ops.lutcc.sampled_matmul_weight_grad
    first, second = (op(a, grad, indices, scales, 1) for _ in range(2))
    lutcc.ops.set_sampled_backend("auto")
    assert torch.equal(first, second)


@pytest.mark.parametrize("mode", ["topk", "crs", "bernoulli"])
def test_a_layer_waits_for_nothing(mode):
    """No call of a training step asks the GPU for a number: "error" raises where one does."""
    layer = SampledLinear(256, 128, mode=mode, seed=3, device=DEVICE)
    x = torch.randn(64, 256, device=DEVICE, requires_grad=True)
    lutcc.ops.set_sampled_backend("fused")
    try:
        layer(x).sum().backward()  # compiles
        torch.cuda.set_sync_debug_mode("error")
        layer(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        lutcc.ops.set_sampled_backend("auto")


@pytest.mark.parametrize("mode", ["topk", "wta_crs"])
def test_a_layer_is_the_same_as_on_the_cpu(mode):
    torch.manual_seed(0)
    here = SampledLinear(100, 70, mode=mode, seed=5)
    there = SampledLinear(100, 70, mode=mode, seed=5, device=DEVICE)
    there.load_state_dict(here.state_dict())
    x = torch.randn(50, 100)
    results = []
    for layer, rows in ((here, x), (there, x.to(DEVICE))):
        rows = rows.clone().requires_grad_()
        y = layer(rows)
        grads = torch.autograd.grad(y.square().sum(), (rows, *layer.parameters()))
        results.append([t.detach().cpu() for t in (y, *grads)])
    for one, other in zip(*results, strict=True):
        assert relative_error(one, other) <= 1e-5


def test_opcheck():
    a = torch.randn(20, 60, device=DEVICE, requires_grad=True)
    b = torch.randn(60, 30, device=DEVICE, requires_grad=True)
    scores = lutcc.ops.column_row_scores(a.detach(), b.detach())
    sample = lutcc.ops.column_row_sample(scores, 30)
    ops, seed = torch.ops.lutcc, torch.tensor(3, device=DEVICE)
    for op, args in (
        (ops.column_row_scores, (a.detach(), b.detach(), 4)),
        (ops.column_row_sample, (scores, seed, 7, "crs")),
        (ops.sampled_matmul, (a, b, None, *sample)),
    ):
        torch.library.opcheck(op.default, args)
