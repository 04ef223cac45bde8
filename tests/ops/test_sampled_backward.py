"""Exact layers with sampled gradients: exact forward, the formulas of the samples, no bias."""

from __future__ import annotations

import pytest
import torch

from lutcc import ops
from lutcc.errors import InputError
from lutcc.ir import sampling
from lutcc.ops.sampled_backward_conv import image_scores, output_channel_scores
from lutcc.sampling_options import SamplingOptions

_op = torch.ops.lutcc
MODES = ("crs", "bernoulli", "topk", "wta_crs")
UNBIASED = ("crs", "bernoulli", "wta_crs")


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def scales_of(scores: torch.Tensor, k: int, mode: str, seed: int, group: int, columns: int):
    """Return one scale per column, from the definition of the sample."""
    sample = sampling.select(scores.numpy(), k, mode, "optimal", seed)
    out = torch.zeros(columns, dtype=torch.float64)
    for index, scale in zip(sample.indices, sample.scales, strict=True):
        if scale:
            out[index * group : (index + 1) * group] = float(scale)
    return out


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("group", [1, 4])
def test_linear(mode: str, group: int) -> None:
    leaves = [randn(*s, seed=i).requires_grad_() for i, s in enumerate([(13, 6), (10, 6), (10,)])]
    x, weight, bias = leaves
    options = SamplingOptions(mode=mode, where="backward", sample_ratio=0.5, group_size=group)
    y = ops.sampled_linear(x, weight, bias, options, seed=11)
    assert torch.equal(y, torch.nn.functional.linear(x, weight, bias))
    grad = randn(13, 10, seed=5)
    dx, dweight, dbias = torch.autograd.grad(y, leaves, grad)
    x, weight = x.detach(), weight.detach()
    k_input, k_weight = (options.count(-(-size // group)) for size in (10, 13))
    over_outputs = scales_of(
        ops.column_row_scores(grad, weight, group), k_input, mode, 11, group, 10
    )
    over_rows = scales_of(ops.column_row_scores(grad.t(), x, group), k_weight, mode, 12, group, 13)
    torch.testing.assert_close(dx, (grad * over_outputs) @ weight)
    torch.testing.assert_close(dweight, (grad * over_rows[:, None]).t() @ x)
    torch.testing.assert_close(dbias, grad.sum(0))


@pytest.mark.parametrize("mode", MODES)
def test_only_the_weights_gradient(mode: str) -> None:
    x, weight = randn(13, 6).requires_grad_(), randn(10, 6, seed=1).requires_grad_()
    options = SamplingOptions(mode=mode, where="weight_gradient", sample_ratio=0.5)
    y = ops.sampled_linear(x, weight, None, options, seed=3)
    dx, dweight = torch.autograd.grad(y.sum(), (x, weight))
    assert torch.equal(dx, torch.ones(13, 10, dtype=dx.dtype) @ weight)
    assert dweight.shape == weight.shape
    images, kernels = randn(4, 4, 5, 5).requires_grad_(), randn(6, 2, 3, 3).requires_grad_()
    y = ops.sampled_conv2d(images, kernels, None, 1, 1, 1, 2, options, seed=3)
    exact = torch.nn.functional.conv2d(images, kernels, None, 1, 1, 1, 2)
    assert torch.equal(y, exact)
    found, wanted = (torch.autograd.grad(r.sum(), (images, kernels)) for r in (y, exact))
    torch.testing.assert_close(found[0], wanted[0])
    assert not torch.allclose(found[1], wanted[1])


GEOMETRY = ([2, 1], [1, 2], [1, 2], 2)


def conv_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        randn(5, 4, 7, 6),
        randn(6, 2, 3, 2, seed=1),
        randn(6, seed=2),
        randn(5, 6, 4, 8, seed=3),
    )


@pytest.mark.parametrize("mode", MODES)
def test_convolution(mode: str) -> None:
    x, weight, bias, grad = conv_case()
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    options = SamplingOptions(mode=mode, where="backward", sample_ratio=0.5, minimal_k=2)
    stride, padding, dilation, groups = GEOMETRY
    y = ops.sampled_conv2d(
        leaves[0], leaves[1], leaves[2], stride, padding, dilation, groups, options, seed=11
    )
    exact = torch.nn.functional.conv2d(
        leaves[0], leaves[1], leaves[2], stride, padding, dilation, groups
    )
    assert torch.equal(y, exact)
    dx, dweight, dbias = torch.autograd.grad(y, leaves, grad)
    # output channels: each of the two groups takes its own
    scores = output_channel_scores(grad, weight, 2)
    parts = weight.reshape(6, -1).pow(2).sum(1).sqrt() * grad.pow(2).sum((0, 2, 3)).sqrt()
    torch.testing.assert_close(scores, parts)
    indices, scales = ops.column_row_sample(scores, 2, mode, seed=11, groups=2)
    factors = torch.zeros(6, dtype=torch.float64)
    factors[indices[scales > 0].long()] = scales[scales > 0].double()
    (want,) = torch.autograd.grad(exact, leaves[0], grad * factors[:, None, None], True)
    torch.testing.assert_close(dx, want)
    # images
    scores = image_scores(grad, x, (3, 2), GEOMETRY)
    columns = torch.nn.functional.unfold(x, (3, 2), (1, 2), (1, 2), (2, 1))
    left = grad.reshape(5, 2, -1).pow(2).sum(2)
    right = columns.reshape(5, 2, -1).pow(2).sum(2)
    torch.testing.assert_close(scores, (left * right).sum(1).sqrt())
    over_images = scales_of(scores, 2, mode, 12, 1, 5)
    (want,) = torch.autograd.grad(exact, leaves[1], grad * over_images[:, None, None, None], True)
    torch.testing.assert_close(dweight, want)
    torch.testing.assert_close(dbias, grad.sum((0, 2, 3)))


def check_mean(estimates: torch.Tensor, want: torch.Tensor) -> None:
    """Fixed projections of the mean are within 4 standard errors of the exact gradient's."""
    projections = randn(want.numel(), 5, seed=9)
    found = estimates.reshape(len(estimates), -1).double() @ projections
    error = found.std(0) / len(estimates) ** 0.5
    off = (found.mean(0) - want.reshape(-1).double() @ projections).abs()
    assert bool((off <= 4 * error).all()), (off / error).tolist()
    assert bool((error > 0).all())


@pytest.mark.parametrize("mode", UNBIASED)
@pytest.mark.parametrize("where", ["backward", "forward_backward"])
@pytest.mark.parametrize("probabilities", ["optimal", "uniform"])
def test_gradients_of_linear_layers_are_unbiased(mode, where, probabilities) -> None:
    """Of a loss that is linear in the output: its gradient does not depend on the sample."""
    if probabilities == "uniform" and mode == "wta_crs":
        return
    x, weight = randn(12, 7).requires_grad_(), randn(8, 7, seed=1).requires_grad_()
    grad = randn(12, 8, seed=5)
    options = SamplingOptions(mode=mode, where=where, sample_ratio=0.4, probabilities=probabilities)
    exact = torch.autograd.grad(x @ weight.t(), (x, weight), grad)
    runs = [
        torch.autograd.grad(
            ops.sampled_linear(x, weight, None, options, 2 * seed), (x, weight), grad
        )
        for seed in range(120)
    ]
    for found, want in zip(zip(*runs, strict=True), exact, strict=True):
        check_mean(torch.stack(found), want)


@pytest.mark.parametrize("mode", UNBIASED)
@pytest.mark.parametrize("where", ["backward", "forward_backward"])
def test_gradients_of_convolutions_are_unbiased(mode, where) -> None:
    x, weight, _, grad = conv_case()
    if where == "forward_backward":
        x, weight = randn(5, 8, 7, 6), randn(6, 4, 3, 2, seed=1)
    x.requires_grad_()
    weight.requires_grad_()
    options = SamplingOptions(mode=mode, where=where, sample_ratio=0.5, minimal_k=2)
    exact = torch.nn.functional.conv2d(x, weight, None, *GEOMETRY)
    wanted = torch.autograd.grad(exact, (x, weight), grad)
    runs = [
        torch.autograd.grad(
            ops.sampled_conv2d(x, weight, None, *GEOMETRY, options, 2 * seed), (x, weight), grad
        )
        for seed in range(80)
    ]
    for found, want in zip(zip(*runs, strict=True), wanted, strict=True):
        check_mean(torch.stack(found), want)


def test_unscaled_estimates_count_every_pair_once() -> None:
    x, weight, grad = randn(12, 7), randn(8, 7, seed=1), randn(12, 8, seed=5)
    leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    options = SamplingOptions(mode="crs", where="backward", sample_ratio=0.5, scaling="none")
    y = ops.sampled_linear(leaves[0], leaves[1], None, options, 4)
    dx, _ = torch.autograd.grad(y, leaves, grad)
    scales = scales_of(ops.column_row_scores(grad, weight), 4, "crs", 4, 1, 8)
    torch.testing.assert_close(dx, (grad * (scales > 0)) @ weight)


def _linear(**changes):
    call = {
        "x": randn(4, 5),
        "weight": randn(3, 5),
        "bias": None,
        "seed": torch.tensor(0),
        "mode": "topk",
        "k_input": 2,
        "k_weight": 2,
        "probabilities": "optimal",
        "scaling": "both",
        "group_size": 1,
    }
    return _op.sampled_backward_linear(*{**call, **changes}.values())


ERRORS = [
    (lambda: _linear(k_input=4), r"k_input=4 is not in 0\.\.3"),
    (lambda: _linear(k_weight=5), r"k_weight=5 is not in 0\.\.4"),
    (lambda: _linear(k_weight=-1), "k_weight=-1"),
    (lambda: _linear(mode="topk_weights"), "mode='topk_weights' is unknown"),
    (lambda: _linear(scaling="forward"), "scaling='forward'"),
    (lambda: _linear(probabilities="even"), "probabilities='even'"),
    (lambda: _linear(seed=torch.tensor([0])), "seed must be"),
    (lambda: _linear(weight=randn(3, 4)), r"a \(4, 5\) and b \(4, 3\)"),
    (lambda: _linear(bias=randn(4)), r"bias must be \(3,\)"),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_what_does_not_fit_says_so(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_images_and_channels_that_are_not_taken_do_not_leak() -> None:
    x, weight, _, grad = conv_case()
    x[[0, 3]], grad[0, 2], weight[[0, 4]] = float("nan"), float("inf"), float("nan")
    scales = torch.tensor([2.0, 0.5, 0.0])
    taken = torch.tensor([1, 4, 0], dtype=torch.int32), scales
    dweight = _op.sampled_conv2d_weight_grad(grad, x, weight, *taken, *GEOMETRY)
    assert dweight.isfinite().all()
    grad[:, [0, 4]], grad[0, 2] = float("nan"), 0.0
    taken = torch.tensor([1, 0, 3, 5], dtype=torch.int32), torch.tensor([1.0, 0.0, 2.0, 3.0])
    dx = _op.sampled_conv2d_input_grad(grad, x, weight, *taken, *GEOMETRY)
    assert dx.isfinite().all()


def test_opcheck() -> None:
    x, weight, bias, _ = (t.float().requires_grad_() for t in conv_case())
    seed = torch.tensor(3)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    for mode in ("topk", "bernoulli"):
        args = (x, weight, bias, seed, *GEOMETRY, mode, 2, 3, "optimal", "both")
        torch.library.opcheck(_op.sampled_backward_conv2d.default, args, test_utils=tests)
    rows, matrix = randn(6, 4).requires_grad_(), randn(5, 4).requires_grad_()
    args = (rows, matrix, None, seed, "bernoulli", 2, 3, "optimal", "both", 2)
    torch.library.opcheck(_op.sampled_backward_linear.default, args)
