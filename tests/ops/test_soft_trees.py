"""Gradients of look-ups by trees, and the look-ups that are trained by kernels, on the CPU."""

from __future__ import annotations

import pytest
import torch

import lutcc.ops.soft_trees
from lutcc.errors import InputError
from lutcc.nn import MaddnessLinear, latent_kernels
from lutcc.nn.latent_lookup import LatentLookup
from tests.triton.references import relative_error
from tests.triton.tree_references import CASES, operands, soft_gradients

TOLERANCES = {torch.float64: 1e-12, torch.float32: 3e-6}


@pytest.mark.parametrize("lut", [torch.uint8, torch.float32])
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_formula(case, dtype, lut):
    *given, grad = operands(case, dtype, lut=lut)
    x, dims, vals, warmth, tables, unit = given
    wanted, codes = soft_gradients(*given, grad)
    assert torch.equal(torch.ops.lutcc.tree_encode(x.float(), dims, vals.float()), codes)
    found = torch.ops.lutcc.soft_tree_backward(grad, x, codes, dims, vals, warmth, tables, unit)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype is dtype
        assert relative_error(one, other) <= TOLERANCES[dtype]


def test_products_in_bfloat16_are_near():
    *given, grad = operands((300, 30, 5, 4, 40), torch.float32)
    wanted, codes = soft_gradients(*given, grad)
    x, dims, vals, warmth, tables, unit = given
    call = (grad, x, codes, dims, vals, warmth, tables, unit)
    found = torch.ops.lutcc.soft_tree_backward(*call, True)
    errors = [relative_error(one, other) for one, other in zip(found, wanted, strict=True)]
    assert 1e-4 < max(errors) < 1e-2


def test_far_from_a_threshold_nothing_is_lost():
    """Thresholds that nothing exceeds give no gradient, and no NaN."""
    *given, grad = operands((10, 4, 2, 3, 6), torch.float32)
    x, dims, vals, warmth, tables, unit = given
    vals[:, 2:] = 3e37
    warmth[:] = -8.0
    codes = torch.ops.lutcc.tree_encode(x, dims, vals)
    found = torch.ops.lutcc.soft_tree_backward(grad, x, codes, dims, vals, warmth, tables, unit)
    assert all(g.isfinite().all() for g in found)
    assert torch.equal(found[1][:, 2:], torch.zeros(2, 6))


def test_torch_accepts_the_operator():
    *given, grad = operands((6, 5, 3, 2, 4), torch.float32)
    x, dims, vals, warmth, tables, unit = given
    codes = torch.ops.lutcc.tree_encode(x, dims, vals)
    call = (grad, x, codes, dims, vals, warmth, tables, unit)
    torch.library.opcheck(torch.ops.lutcc.soft_tree_backward.default, call)
    for none in torch.ops.lutcc.soft_tree_backward(grad[:0], x[:0], codes[:0], *call[3:]):
        assert not none.any()


def test_docstrings():
    import doctest

    tried = doctest.testmod(lutcc.ops.soft_trees)
    assert (tried.failed, tried.attempted > 0) == (0, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": torch.zeros(6, 2, dtype=torch.uint8)}, r"codes must be \(6, 3\)"),
        ({"splitvals": torch.zeros(3, 8)}, r"splitvals must be \(3, 4\)"),
        ({"lut": torch.zeros(3, 4, 5)}, r"lut must be \(3, 4, 4\)"),
        ({"unit": torch.zeros(4).double()}, r"unit must be torch\.float32"),
        ({"grad": torch.zeros(6)}, "grad must have 2 dimensions"),
        ({"splitdims": torch.zeros(3, 8, dtype=torch.int32)}, "L = 8 levels"),
    ],
)
def test_errors_say_what_is_wrong(change, message):
    x, dims, vals, warmth, tables, unit, grad = operands((6, 5, 3, 2, 4), torch.float32)
    given = {
        "grad": grad, "x": x, "codes": torch.ops.lutcc.tree_encode(x, dims, vals),
        "splitdims": dims, "splitvals": vals, "log_temperature": warmth, "lut": tables,
        "unit": unit,
    }  # fmt: skip
    with pytest.raises(InputError, match=message):
        lutcc.ops.soft_trees.soft_tree_backward(**{**given, **change})


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize(
    ("lut_dtype", "accumulate"), [("uint8", "exact"), ("uint8", "mean"), ("float32", "exact")]
)
def test_layers_trained_by_kernels_are_those_trained_without(lut_dtype, accumulate, activation):
    """The same bits forward, the same gradients; what GPUs do, on the CPU's operators."""
    torch.manual_seed(0)
    layer = MaddnessLinear(
        20, 7, 5, lut_dtype=lut_dtype, accumulate=accumulate, activation=activation, upcast_every=4
    )
    layer.splitdims.copy_(torch.randint(0, 20, layer.splitdims.shape))
    layer.splitvals.copy_(torch.randn(layer.splitvals.shape))
    if lut_dtype == "uint8":
        layer.lut.copy_(torch.randint(0, 256, layer.lut.shape))
        layer.scale.copy_(torch.rand(7) / 100)
        layer.offset.copy_(-layer.scale * 127 * 5 / (4 if accumulate == "mean" else 1))
    else:
        layer.lut.copy_(torch.randn(layer.lut.shape))
    latent = LatentLookup(layer)
    rows, grad = torch.randn(50, 20), torch.randn(50, 7)
    trained = [latent.compared, latent.log_temperature, latent.tables, latent.shift]
    results = []
    for function in (latent.look_up, lambda x: latent_kernels.look_up(latent, x)):
        x = rows.clone().requires_grad_()
        y = function(x)
        results.append((y.detach(), torch.autograd.grad(y, [x, *trained], grad)))
    (plain, gradients), (kernel, others) = results
    if lut_dtype == "uint8":
        assert torch.equal(plain, kernel)
    else:
        torch.testing.assert_close(plain, kernel)
    for one, other in zip(others, gradients, strict=True):
        assert one.shape == other.shape
        assert relative_error(one, other) <= 1e-5
    assert all(g.any() for g in gradients)
