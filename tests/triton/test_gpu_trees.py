"""Look-ups by trees on a GPU: codes and values to the bit, gradients against float64 on the CPU."""

from __future__ import annotations

import pytest
import torch

import lutcc.ops  # noqa: F401  registers torch.ops.lutcc
from lutcc.nn import MaddnessLinear
from lutcc.nn.latent_lookup import LatentLookup
from tests.triton.references import relative_error
from tests.triton.test_gpu import DEVICE
from tests.triton.tree_references import CASES, operands, soft_gradients

pytestmark = pytest.mark.gpu

#: Beside the small ones: many rows, in parts; many outputs.
SIZES = [*CASES, (3000, 512, 64, 4, 300), (1500, 100, 10, 6, 10)]


@pytest.mark.parametrize("case", SIZES)
def test_codes_and_sums_are_the_same_bits_as_on_the_cpu(case):
    x, dims, vals, _, lut, unit, grad = operands(case, torch.float32)
    offset, floats = grad[0], lut.float() / 3
    ops = torch.ops.lutcc
    results = []
    for device in ("cpu", DEVICE):
        a, d, v, t, s, o, f = (q.to(device) for q in (x, dims, vals, lut, unit, offset, floats))
        codes = ops.tree_encode(a, d, v)
        wholes = [ops.lut_accumulate(codes, t), ops.lut_accumulate(codes, t, "mean", 16)]
        values = [ops.lut_dequantize(acc, s, o, "relu") for acc in wholes]
        results.append([codes, *wholes, *values, ops.lut_accumulate(codes, f)])
        bytes_ = ops.tree_encode((a * 50 + 99).to(torch.uint8), d, (v * 50 + 99).to(torch.uint8))
        results[-1].append(bytes_)
    assert all(torch.equal(one.cpu(), other) for one, other in zip(*results[::-1], strict=True))


def test_nearest_centroids_are_the_same_bits_as_on_the_cpu():
    generator = torch.Generator().manual_seed(0)
    x, centroids, half = (
        torch.randn(shape, generator=generator).mul(4).round() / 4
        for shape in ((999, 40), (24, 37), (5, 24))
    )
    columns = torch.randint(0, 40, (37,), generator=generator, dtype=torch.int32)
    results = [
        torch.ops.lutcc.nearest_encode(
            *(t.to(device) for t in (x, centroids, half, columns)), [0, 7, 8, 20, 36, 37]
        ).cpu()
        for device in ("cpu", DEVICE)
    ]
    assert torch.equal(*results)


@pytest.mark.parametrize("lut", [torch.uint8, torch.float32])
@pytest.mark.parametrize("case", SIZES)
def test_gradients(case, lut):
    *given, grad = operands(case, torch.float32, lut=lut)
    wanted, codes = soft_gradients(*given, grad)
    x, *rest = (t.to(DEVICE) for t in given)
    op = torch.ops.lutcc.soft_tree_backward
    found = op(grad.to(DEVICE), x, codes.to(DEVICE), *rest)
    for one, other in zip(found, wanted, strict=True):
        assert relative_error(one.cpu(), other) <= 1e-5
    again = op(grad.to(DEVICE), x, codes.to(DEVICE), *rest)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    rounded = op(grad.to(DEVICE), x, codes.to(DEVICE), *rest, True)
    for one, other in zip(rounded, wanted, strict=True):
        assert relative_error(one.cpu(), other) <= 3e-2


def layer(accumulate: str) -> MaddnessLinear:
    torch.manual_seed(0)
    made = MaddnessLinear(96, 70, 12, accumulate=accumulate, activation="relu")
    made.splitdims.copy_(torch.randint(0, 96, made.splitdims.shape))
    made.splitvals.copy_(torch.randn(made.splitvals.shape))
    made.lut.copy_(torch.randint(0, 256, made.lut.shape))
    made.scale.copy_(torch.rand(70) / 100)
    made.offset.copy_(-made.scale * 127 * 12 / (16 if accumulate == "mean" else 1))
    return made


@pytest.mark.parametrize("accumulate", ["exact", "mean"])
def test_a_layer_that_is_trained(accumulate):
    """Values are the bits of the CPU, and of the layer that is stored; gradients are the same."""
    rows, grad = torch.randn(500, 96), torch.randn(500, 70)
    results = []
    for device in ("cpu", DEVICE):
        made = layer(accumulate).to(device)
        latent = LatentLookup(made).to(device)
        trained = [latent.compared, latent.log_temperature, latent.tables, latent.shift]
        x = rows.to(device).requires_grad_()
        y = latent.look_up(x)
        found = torch.autograd.grad(y, [x, *trained], grad.to(device))
        results.append([y.detach().cpu(), *(g.cpu() for g in found)])
        latent.finish()
        assert torch.equal(made.look_up(x.detach()).cpu(), results[-1][0])
    assert torch.equal(results[0][0], results[1][0])
    for one, other in zip(results[1][1:], results[0][1:], strict=True):
        assert relative_error(one, other) <= 1e-5


def test_no_soft_code_is_held():
    """(N, C, K) float32 would be 537 MB: all that a step takes is less than half of that."""
    made = MaddnessLinear(512, 256, 64, nprototypes=64).to(DEVICE)
    latent = LatentLookup(made).to(DEVICE)
    x = torch.randn(32768, 512, device=DEVICE, requires_grad=True)
    latent.look_up(x[:64]).sum().backward()  # compiles, and sets temperatures
    grad = torch.randn(32768, 256, device=DEVICE)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    y = latent.look_up(x)
    kept = torch.cuda.memory_allocated() - before - y.nbytes
    assert kept <= 32768 * 64 * 1.1 + 2 * latent.tables.nbytes
    y.backward(grad)
    # gradients of x and of what is compared, (N, D) and (N, C, L), are of the same size as x
    assert torch.cuda.max_memory_allocated() - before <= 4 * x.nbytes


def test_opcheck():
    *given, grad = operands((20, 8, 6, 3, 5), torch.float32)
    x, dims, vals, warmth, lut, unit, grad = (t.to(DEVICE) for t in (*given, grad))
    ops = torch.ops.lutcc
    codes = ops.tree_encode(x, dims, vals)
    acc = ops.lut_accumulate(codes, lut)
    for op, args in (
        (ops.tree_encode, (x, dims, vals)),
        (ops.lut_accumulate, (codes, lut, "exact", 16)),
        (ops.lut_dequantize, (acc, unit, unit, "relu")),
        (ops.soft_tree_backward, (grad, x, codes, dims, vals, warmth, lut, unit)),
    ):
        torch.library.opcheck(op.default, args)
