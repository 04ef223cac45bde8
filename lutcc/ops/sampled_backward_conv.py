"""Exact convolutions whose gradients are sampled: over output channels, and over images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lutcc.ops.arithmetic import floats
from lutcc.ops.checks import check_bias, require
from lutcc.ops.library import cast_to, define, once, saves_nothing
from lutcc.ops.sampled_backward import check_rule, sample
from lutcc.ops.sampled_channels import check_convolution, output_sizes, window_weights
from lutcc.ops.sampled_conv_parts import Channels, check_channels, convolve, gradients
from lutcc.ops.sampled_convolutions import check_grad
from lutcc.ops.sampled_pairs import check_range, check_sample, taken
from lutcc.ops.sampled_products import bias_grad

_OP = "sampled_backward_conv2d"
_GEOMETRY = "int[] stride, int[] padding, int[] dilation, int groups"


def _check(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    seed: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    mode: str,
    k_input: int,
    k_weight: int,
    probabilities: str,
    scaling: str,
) -> None:
    check_convolution(_OP, x, weight, stride, padding, dilation, groups)
    check_bias(_OP, bias, weight.shape[0], x.dtype)
    counts = (
        ("k_input", k_input, weight.shape[0] // groups),
        ("k_weight", k_weight, x.shape[0]),
    )
    check_rule(_OP, x, seed, mode, counts, probabilities, scaling)


def _fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    seed: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    mode: str,
    k_input: int,
    k_weight: int,
    probabilities: str,
    scaling: str,
) -> torch.Tensor:
    sizes = output_sizes(x, weight.shape[2:], stride, padding, dilation)
    return x.new_empty((x.shape[0], weight.shape[0], *sizes))


def _run(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    seed: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    mode: str,
    k_input: int,
    k_weight: int,
    probabilities: str,
    scaling: str,
) -> torch.Tensor:
    return convolve(x, weight, bias, stride, padding, dilation, groups).contiguous()


def _setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, bias, seed, *rest = inputs
    *ctx.geometry, mode, ctx.k_input, ctx.k_weight, probabilities, scaling = rest
    ctx.rule = (mode, probabilities, scaling)
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, weight, seed)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, weight, seed = ctx.saved_tensors
    groups = ctx.geometry[-1]
    exact = [
        needed and k == 0
        for needed, k in zip(ctx.needs_input_grad[:2], (ctx.k_input, ctx.k_weight), strict=True)
    ]
    dx = dweight = dbias = None
    if any(exact):
        dx, dweight = torch.ops.lutcc.dense_conv2d_backward(grad, x, weight, *ctx.geometry, *exact)
        dx, dweight = (
            d if wanted else None for d, wanted in zip((dx, dweight), exact, strict=True)
        )
    mode, probabilities, scaling = ctx.rule
    if ctx.needs_input_grad[0] and ctx.k_input:
        scores = output_channel_scores(grad, weight, groups, probabilities)
        chosen = sample(scores, seed, ctx.k_input, mode, probabilities, scaling, groups)
        dx = torch.ops.lutcc.sampled_conv2d_input_grad(grad, x, weight, *chosen, *ctx.geometry)
    if ctx.needs_input_grad[1] and ctx.k_weight:
        scores = image_scores(grad, x, weight.shape[2:], ctx.geometry, probabilities)
        chosen = sample(scores, seed + 1, ctx.k_weight, mode, probabilities, scaling)
        dweight = torch.ops.lutcc.sampled_conv2d_weight_grad(
            grad, x, weight, *chosen, *ctx.geometry
        )
    if ctx.needs_input_grad[2]:
        dbias = bias_grad(grad, ctx.bias_dtype)
    return (dx, dweight, dbias, *[None] * 10)


def output_channel_scores(
    grad: torch.Tensor, weight: torch.Tensor, groups: int, probabilities: str = "optimal"
) -> torch.Tensor:
    """Return a score per output channel: ||dy_o|| ||W_o||, equation 4 for W^T dy at each position.

    The input's gradient adds up what W^T dy holds (col2im), which no probability changes.
    """
    outputs = weight.shape[0]
    if probabilities == "uniform":
        return grad.new_ones((outputs,), dtype=torch.float32)
    # output channel o of its group is a channel of dy, and W_o its weights, as for a 1x1 kernel
    parts = weight.reshape(groups, outputs // groups, -1).transpose(1, 2)
    parts = parts.reshape(-1, outputs // groups, 1, 1)
    return torch.ops.lutcc.channel_scores(grad, parts, [1, 1], [0, 0], [1, 1], groups)


def image_scores(
    grad: torch.Tensor,
    x: torch.Tensor,
    kernel: Sequence[int],
    geometry: Sequence[Any],
    probabilities: str = "optimal",
) -> torch.Tensor:
    """Return a score per image: ||dy_n|| ||A_n|| with A_n its im2col, over groups in squares.

    The weights' gradient is the sum of dy_n^T A_n over images, whose norms these bound.
    """
    *windows, groups = geometry
    images = x.shape[0]
    if probabilities == "uniform":
        return grad.new_ones((images,), dtype=torch.float32)
    counts = window_weights(x, kernel, *windows)
    weighed = torch.where(counts > 0, x * counts.sqrt(), 0.0).to(x.dtype)
    # (images, groups) are pairs of adjacent columns: a group of them is an image
    a, b = (t.reshape(images * groups, -1) for t in (grad, weighed))
    return torch.ops.lutcc.column_row_scores(a.t(), b, groups)


def _autocast(dtype: torch.dtype, args: Any) -> Any:
    x, weight, bias, *rest = args
    return cast_to(dtype, x), cast_to(dtype, weight), cast_to(dtype, bias), *rest


define(
    "sampled_backward_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor seed, "
    f"{_GEOMETRY}, str mode, SymInt k_input, SymInt k_weight, str probabilities, str scaling) "
    "-> Tensor",
    check=_check,
    cpu=_run,
    fake=_fake,
    backward=_backward,
    setup=_setup,
    cuda=_run,
    autocast=_autocast,
)


def _grad_check(
    op: str,
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    indices: torch.Tensor,
    scales: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> None:
    check_convolution(op, x, weight, stride, padding, dilation, groups)
    check_grad(op, grad, x, weight, stride, padding, dilation)
    check_sample(op, indices, scales)


def _input_check(grad: torch.Tensor, *rest: Any) -> None:
    _grad_check("sampled_conv2d_input_grad", grad, *rest)
    indices, groups = rest[2], rest[-1]
    require(
        indices.shape[0] >= 1 and indices.shape[0] % groups == 0,
        "sampled_conv2d_input_grad",
        f"indices {tuple(indices.shape)} are not the same number for each of {groups} groups",
        "pass a sample with the same groups",
    )


def _input_fake(grad: torch.Tensor, x: torch.Tensor, *rest: Any) -> torch.Tensor:
    return x.new_empty(x.shape)


def _input_run(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    indices: torch.Tensor,
    scales: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> torch.Tensor:
    """Return the input's gradient from some output channels; of x only the shape is used."""
    check_channels("sampled_conv2d_input_grad", indices, scales, weight.shape[0], groups)
    chosen = Channels(indices, scales, weight.shape[0], groups)
    parts, kernels = chosen.of_images(grad), chosen.of_weight(weight, 0)
    geometry = (stride, padding, dilation, groups)
    return gradients(parts, x, kernels, geometry, (True, False))[0]


define(
    "sampled_conv2d_input_grad(Tensor grad, Tensor x, Tensor weight, Tensor indices, "
    f"Tensor scales, {_GEOMETRY}) -> Tensor",
    check=_input_check,
    cpu=_input_run,
    fake=_input_fake,
    backward=once,
    setup=saves_nothing,
    cuda=_input_run,
)


def _weight_check(grad: torch.Tensor, *rest: Any) -> None:
    _grad_check("sampled_conv2d_weight_grad", grad, *rest)


def _weight_fake(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *rest: Any
) -> torch.Tensor:
    return weight.new_empty(weight.shape)


def _weight_run(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    indices: torch.Tensor,
    scales: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> torch.Tensor:
    """Return the weights' gradient from some images; of the weights only the shape is used."""
    op = "sampled_conv2d_weight_grad"
    floats(op, "grad", grad)
    check_range(op, indices, scales, x.shape[0])
    chosen = taken(indices, scales, 1, x.shape[0])
    some = chosen.scaled(grad.flatten(1), 0).reshape(-1, *grad.shape[1:])
    images = chosen.select(x.flatten(1), 0).reshape(-1, *x.shape[1:])
    geometry = (stride, padding, dilation, groups)
    return gradients(some, images, weight, geometry, (False, True))[1]


define(
    "sampled_conv2d_weight_grad(Tensor grad, Tensor x, Tensor weight, Tensor indices, "
    f"Tensor scales, {_GEOMETRY}) -> Tensor",
    check=_weight_check,
    cpu=_weight_run,
    fake=_weight_fake,
    backward=once,
    setup=saves_nothing,
    cuda=_weight_run,
)
