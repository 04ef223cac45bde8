"""Look-ups by trees: codes and sums to the bit, gradients against autograd in float64."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest
import torch

from lutcc import ir
from lutcc.errors import InputError
from lutcc.ir.types import type_of_array
from lutcc.nn import MaddnessLinear, latent_kernels
from lutcc.nn.latent_lookup import LatentLookup
from lutcc.ops import cuda, soft_trees
from lutcc.schedules.triton.lut_accumulate import lut_accumulate, lut_dequantize
from lutcc.schedules.triton.nearest_encode import nearest_encode
from lutcc.schedules.triton.soft_tree_backward import soft_tree_backward
from lutcc.schedules.triton.tree_encode import tree_encode
from tests.triton.references import relative_error
from tests.triton.tree_references import CASES, operands, soft_gradients

pytestmark = pytest.mark.one_in(3)

TOLERANCES = {torch.float64: 1e-12, torch.float32: 3e-6}


def by_the_ir(opcode: str, *inputs: torch.Tensor, **attrs: Any) -> torch.Tensor:
    """Return what the IR's interpreter makes of an op: the definition."""
    arrays = [tensor.contiguous().numpy() for tensor in inputs]
    builder = ir.Builder()
    values = [builder.param(f"p{i}", type_of_array(a)) for i, a in enumerate(arrays)]
    builder.returns(builder.op(opcode, *values, **attrs))
    return torch.from_numpy(ir.interpret(builder.module(), arrays)[0])


def codes_for(case, *, seed: int = 0) -> torch.Tensor:
    rows, _, books, depth, _ = case
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**depth, (rows, books), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int32])
@pytest.mark.parametrize("case", [*CASES, (3, 200, 70, 4, 1)])
def test_codes_are_the_same_bits(case, dtype):
    x, dims, vals, *_ = operands(case, torch.float32)
    if dtype is not torch.float32:
        x, vals = (t.mul(50).add(128).clamp(0, 255).to(dtype) for t in (x, vals))
    x[0, 0] = vals[0, 1]  # equal is not greater
    wanted = by_the_ir("tree_encode", x, dims, vals)
    assert torch.equal(tree_encode(x, dims, vals), wanted)
    spread = x.t().contiguous().t()
    assert torch.equal(tree_encode(spread, dims, vals), wanted)
    wide = x.repeat_interleave(2, 0).repeat_interleave(3, 1)[::2, ::3]
    assert torch.equal(tree_encode(wide, dims, vals), wanted)


def test_numbers_that_are_none_go_left():
    x = torch.tensor([[float("nan")], [float("inf")], [-float("inf")], [0.0]])
    dims, vals = torch.zeros(1, 2, dtype=torch.int32), torch.tensor([[0.0, -0.0, 5.0, 5.0]])
    assert torch.equal(tree_encode(x, dims, vals), by_the_ir("tree_encode", x, dims, vals))
    beyond = torch.full((1, 2), 7, dtype=torch.int32)  # no such column: it counts as 0
    assert not tree_encode(x, beyond, vals).any()


@pytest.mark.parametrize(
    ("rows", "widths", "entries"), [(1, [1], 2), (37, [3, 1, 5], 16), (20, [2, 4], 130)]
)
def test_nearest_centroids_are_the_same_bits(rows, widths, entries):
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).mul(4).round() / 4  # many ties

    total = sum(widths)
    x, centroids, half = (
        random(rows, total + 2),
        random(entries, total),
        random(len(widths), entries),
    )
    columns = torch.randint(0, total + 2, (total,), generator=generator, dtype=torch.int32)
    starts = [0, *itertools.accumulate(widths)]
    x[0, columns[0]] = float("nan")
    half[-1, 0], half[0, 1] = float("nan"), float("nan")
    operands = (x, centroids, half, columns)
    wanted = by_the_ir("nearest_encode", *operands, starts=tuple(starts))
    assert torch.equal(nearest_encode(*operands, starts), wanted)
    assert torch.equal(nearest_encode(x.t().contiguous().t(), *operands[1:], starts), wanted)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_sums_are_the_same_bits(case, dtype):
    codes, (*_, lut, _, _) = codes_for(case), operands(case, torch.float32, lut=dtype)
    if dtype is torch.int8:
        lut = lut.mul(40).to(dtype)
    wanted = by_the_ir("lut_accumulate", codes, lut)
    assert torch.equal(lut_accumulate(codes, lut), wanted)
    assert torch.equal(lut_accumulate(codes.t().contiguous().t(), lut), wanted)


@pytest.mark.parametrize("every", [2, 4, 16, 32])
@pytest.mark.parametrize("case", [(1, 1, 1, 1, 1), (11, 1, 37, 4, 20), (5, 1, 16, 2, 3)])
def test_averages_round_as_the_ir_says(case, every):
    codes, (*_, lut, _, _) = codes_for(case), operands(case, torch.float32)
    attrs = {"accumulate": "mean", "upcast_every": every}
    wanted = by_the_ir("lut_accumulate", codes, lut, **attrs)
    assert torch.equal(lut_accumulate(codes, lut, "mean", every), wanted)


def test_codes_outside_their_table_are_not_followed():
    codes = torch.tensor([[1, 9], [0, 3]], dtype=torch.uint8)
    lut = torch.arange(2 * 4 * 3).reshape(2, 4, 3)
    sums = lut_accumulate(codes, lut.to(torch.uint8))
    assert torch.equal(sums, torch.stack([lut[0, 1], lut[0, 0] + lut[1, 3]]).int())
    assert lut_accumulate(codes, lut.float()).isnan().tolist() == [[True] * 3, [False] * 3]


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (300, 9)])
def test_values_are_rounded_once(shape, activation):
    generator = torch.Generator().manual_seed(0)
    acc = torch.randint(-(2**20), 2**31 - 1, shape, generator=generator, dtype=torch.int32)
    scale, offset = (torch.randn(shape[1], generator=generator) for _ in range(2))
    offset *= -(2.0**20)  # sums that cancel: where two roundings are not one
    acc[::2] = (-offset / scale).to(torch.int32) if shape[0] > 1 else acc[::2]
    wanted = by_the_ir("lut_dequantize", acc, scale, offset, activation=activation)
    assert torch.equal(lut_dequantize(acc, scale, offset, activation), wanted)
    assert torch.equal(lut_dequantize(acc.t().contiguous().t(), scale, offset, activation), wanted)


@pytest.mark.parametrize(
    ("dtype", "lut"), [(torch.float64, torch.float64), (torch.float32, torch.uint8)]
)
@pytest.mark.parametrize("case", CASES)
def test_gradients(case, dtype, lut):
    *given, grad = operands(case, dtype, lut=lut)
    wanted, codes = soft_gradients(*given, grad)
    x, *rest = given
    if lut is torch.uint8:  # columns side by side
        grad, x, codes = (t.t().contiguous().t() for t in (grad, x, codes))
    found = soft_tree_backward(grad, x, codes, *rest)
    for one, other in zip(found, wanted, strict=True):
        assert (one.shape, one.dtype) == (other.shape, dtype)
        assert relative_error(one, other) <= TOLERANCES[dtype]


@pytest.mark.thorough
def test_gradients_of_many_rows_come_in_parts():
    *given, grad = operands((1100, 4, 2, 2, 3), torch.float32)
    wanted, codes = soft_gradients(*given, grad)
    found = soft_tree_backward(grad, given[0], codes, *given[1:])
    assert max(relative_error(*pair) for pair in zip(found, wanted, strict=True)) <= 3e-6
    again = soft_tree_backward(grad, given[0], codes, *given[1:])
    assert all(torch.equal(*pair) for pair in zip(found, again, strict=True))


def test_gradients_with_products_in_bfloat16():
    """Table entries are exact in it; the gradient that comes in is rounded, and nothing else."""
    *given, grad = operands((40, 11, 5, 4, 20), torch.float32)
    x, *rest = given
    rest[-1] = torch.ones_like(rest[-1])
    rounded = grad.to(torch.bfloat16).float()
    wanted, codes = soft_gradients(x, *rest, rounded)
    found = soft_tree_backward(grad, x, codes, *rest, bfloat16=True)
    assert max(relative_error(*pair) for pair in zip(found, wanted, strict=True)) <= 3e-6


def test_no_rows_and_no_gradient_far_from_thresholds():
    *given, grad = operands((10, 4, 2, 3, 6), torch.float32)
    x, dims, vals, warmth, tables, unit = given
    codes = tree_encode(x, dims, vals)
    empty = soft_tree_backward(grad[:0], x[:0], codes[:0], *given[1:])
    assert [g.shape for g in empty] == [(0, 4), vals.shape, warmth.shape, tables.shape]
    assert not any(g.any() for g in empty)
    assert tree_encode(x[:0], dims, vals).shape == (0, 2)
    assert lut_accumulate(codes[:0], tables).shape == (0, 6)
    assert lut_dequantize(torch.zeros(0, 6, dtype=torch.int32), unit, unit).shape == (0, 6)
    vals[:, 2:], warmth[:] = 3e37, -8.0
    found = soft_tree_backward(grad, x, codes, dims, vals, warmth, tables, unit)
    assert all(g.isfinite().all() for g in found)
    assert not found[1][:, 2:].any()


NAMES = ("tree_encode", "nearest_encode", "lut_accumulate", "lut_dequantize", "soft_tree_backward")


@pytest.fixture
def _launchers():
    library = torch.library.Library("lutcc", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an implementation is replaced, as it should be
        for name in NAMES:
            launcher = getattr(cuda, name).__wrapped__  # without choosing a GPU
            library.impl(name, launcher, "CPU", allow_override=True)
    yield
    library._destroy()


@pytest.mark.parametrize("accumulate", ["exact", "mean"])
def test_a_layer_is_trained_by_kernels(accumulate, request):
    """As on a GPU: values to the bit, gradients of all that is trained."""
    torch.manual_seed(0)
    layer = MaddnessLinear(20, 7, 5, accumulate=accumulate, activation="relu", upcast_every=4)
    layer.splitdims.copy_(torch.randint(0, 20, layer.splitdims.shape))
    layer.splitvals.copy_(torch.randn(layer.splitvals.shape))
    layer.lut.copy_(torch.randint(0, 256, layer.lut.shape))
    layer.scale.copy_(torch.rand(7) / 100)
    layer.offset.copy_(-layer.scale * 127 * 5 / (4 if accumulate == "mean" else 1))
    latent, rows, grad = LatentLookup(layer), torch.randn(50, 20), torch.randn(50, 7)
    trained = [latent.compared, latent.log_temperature, latent.tables, latent.shift]
    results = []
    for function in (latent.look_up, lambda x: latent_kernels.look_up(latent, x)):
        x = rows.clone().requires_grad_()
        y = function(x)
        results.append([y.detach(), *torch.autograd.grad(y, [x, *trained], grad)])
        if len(results) == 1:
            request.getfixturevalue("_launchers")
    assert torch.equal(results[0][0], results[1][0])
    for one, other in zip(results[1][1:], results[0][1:], strict=True):
        assert relative_error(one, other) <= 1e-5


def test_operators_for_a_gpu_are_there_and_take_float32():
    for name in NAMES:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lutcc::{name}", "CUDA")
    *given, grad = operands((6, 5, 3, 2, 4), torch.float64)
    codes = tree_encode(*given[:3])
    with pytest.raises(InputError, match=r"takes float32, not torch\.float64"):
        soft_trees._cuda(grad, given[0], codes, *given[1:])
