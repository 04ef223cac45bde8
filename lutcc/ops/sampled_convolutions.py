"""Convolutions of the channels that are taken, and their gradients.

Each group takes channels of its own, the same number of slots each. What is taken makes a smaller
convolution with as many groups, which torch computes, on a GPU as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lutcc.ops.checks import check_bias, require
from lutcc.ops.kernels import Plan, input_plan
from lutcc.ops.library import cast_to, define, once, saves_nothing
from lutcc.ops.sampled_channels import check_convolution, output_sizes
from lutcc.ops.sampled_choice import Product, choose
from lutcc.ops.sampled_conv_parts import Channels, check_channels, convolve, gradients
from lutcc.ops.sampled_pairs import check_sample
from lutcc.ops.sampled_products import bias_grad, check_backward

_OP = "sampled_conv2d"


def _check(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    indices: torch.Tensor,
    scales: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    backward: str = "sampled",
) -> None:
    _check_all(_OP, x, weight, indices, scales, stride, padding, dilation, groups)
    check_bias(_OP, bias, weight.shape[0], x.dtype)
    check_backward(_OP, backward)


def _check_all(
    op: str,
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
    check_sample(op, indices, scales)
    require(
        indices.shape[0] >= 1 and indices.shape[0] % groups == 0,
        op,
        f"indices {tuple(indices.shape)} are not the same number for each of {groups} groups",
        "pass the sample of channel_scores with the same groups",
    )


def _fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    indices: torch.Tensor,
    scales: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    backward: str = "sampled",
) -> torch.Tensor:
    sizes = output_sizes(x, weight.shape[2:], stride, padding, dilation)
    return x.new_empty((x.shape[0], weight.shape[0], *sizes))


def _run(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    indices: torch.Tensor,
    scales: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    backward: str = "sampled",
) -> torch.Tensor:
    operands = (x, weight, bias, indices, scales, stride, padding, dilation, groups)
    if not x.is_cpu:
        return _by_index_select(*operands)
    check_channels(_OP, indices, scales, x.shape[1], groups)
    return choose(Product(_OP, operands, _by_index_select, _cpu_plan(*operands), _cpu_operands))


def _by_index_select(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    indices: torch.Tensor,
    scales: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> torch.Tensor:
    chosen = Channels(indices, scales, x.shape[1], groups)
    images, kernels = chosen.of_images(x), chosen.of_weight(weight, 1)
    return convolve(images, kernels, bias, stride, padding, dilation, groups).contiguous()


def _cpu_plan(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    indices: torch.Tensor,
    scales: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Plan | None:
    """Return the plan of the kernel, whatever the images and k are; None for other dtypes."""
    if x.dtype is not torch.float32:
        return None
    channels = x.shape[1]
    inputs = (
        ("float32", (None, *x.shape[1:])),
        ("float32", tuple(weight.shape)),
        ("int32", (channels,)),
        ("float32", (channels,)),
        ("float32", (weight.shape[0],)),
    )
    attrs = (
        ("stride", tuple(stride)),
        ("padding", tuple(padding)),
        ("dilation", tuple(dilation)),
        ("groups", groups),
    )
    return input_plan(_OP, attrs, inputs)


def _cpu_operands(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    indices: torch.Tensor,
    scales: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[torch.Tensor, ...]:
    """Return what the kernel takes: places for all channels, so that one kernel serves every k."""
    missing = (x.shape[1] - indices.shape[0]) // groups
    indices, scales = (
        torch.nn.functional.pad(t.view(groups, -1), (0, missing)).flatten()
        for t in (indices, scales)
    )
    bias = scales.new_zeros((weight.shape[0],)) if bias is None else bias.to(torch.float32)
    return x.contiguous(), weight.contiguous(), indices, scales, bias


def _setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, bias, indices, scales, *ctx.geometry, ctx.how = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, weight, indices, scales)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, weight, indices, scales = ctx.saved_tensors
    which = ctx.needs_input_grad[:2]
    if ctx.how == "exact":
        dx, dweight = torch.ops.lutcc.dense_conv2d_backward(grad, x, weight, *ctx.geometry, *which)
    else:
        if ctx.how == "unscaled":
            scales = (scales != 0).to(scales.dtype)
        dx, dweight = torch.ops.lutcc.sampled_conv2d_backward(
            grad, x, weight, indices, scales, *ctx.geometry, *which
        )
    dbias = bias_grad(grad, ctx.bias_dtype) if ctx.needs_input_grad[2] else None
    found = (dx if which[0] else None, dweight if which[1] else None, dbias)
    return (*found, *[None] * 7)


def _autocast(dtype: torch.dtype, args: Any) -> Any:
    x, weight, bias, *rest = args
    return cast_to(dtype, x), cast_to(dtype, weight), cast_to(dtype, bias), *rest


_GEOMETRY = "int[] stride, int[] padding, int[] dilation, int groups"

define(
    "sampled_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor indices, Tensor scales, "
    f'{_GEOMETRY}=1, str backward="sampled") -> Tensor',
    check=_check,
    cpu=_run,
    fake=_fake,
    backward=_backward,
    setup=_setup,
    cuda=_run,
    autocast=_autocast,
)


def _backward_check(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    indices: torch.Tensor,
    scales: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    for_input: bool,
    for_weight: bool,
) -> None:
    op = "sampled_conv2d_backward"
    _check_all(op, x, weight, indices, scales, stride, padding, dilation, groups)
    check_grad(op, grad, x, weight, stride, padding, dilation)


def check_grad(
    op: str,
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> None:
    """Raise InputError unless this can be the gradient of the convolution's result."""
    sizes = output_sizes(x, weight.shape[2:], stride, padding, dilation)
    shape = (x.shape[0], weight.shape[0], *sizes)
    require(
        grad.dtype is x.dtype and tuple(grad.shape) == shape,
        op,
        f"grad must be {x.dtype} of shape {shape}, got {grad.dtype} of shape {tuple(grad.shape)}",
        "pass the gradient of the convolution's result",
    )


def _backward_fake(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    indices: torch.Tensor,
    scales: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    for_input: bool,
    for_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        x.new_empty(x.shape if for_input else (0,)),
        weight.new_empty(weight.shape if for_weight else (0,)),
    )


def _backward_run(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    indices: torch.Tensor,
    scales: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    for_input: bool,
    for_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    check_channels("sampled_conv2d_backward", indices, scales, x.shape[1], groups)
    chosen = Channels(indices, scales, x.shape[1], groups)
    images, kernels = chosen.of_images(x), chosen.of_weight(weight, 1)
    geometry = (stride, padding, dilation, groups)
    dx, dweight = gradients(grad, images, kernels, geometry, (for_input, for_weight))
    return (
        chosen.spread_images(dx) if for_input else dx,
        chosen.spread_weight(dweight, 1) if for_weight else dweight,
    )


define(
    "sampled_conv2d_backward(Tensor grad, Tensor x, Tensor weight, Tensor indices, Tensor scales, "
    f"{_GEOMETRY}, bool for_input, bool for_weight) -> (Tensor, Tensor)",
    check=_backward_check,
    cpu=_backward_run,
    fake=_backward_fake,
    backward=once,
    setup=saves_nothing,
    cuda=_backward_run,
)


def _dense_check(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    for_input: bool,
    for_weight: bool,
) -> None:
    op = "dense_conv2d_backward"
    check_convolution(op, x, weight, stride, padding, dilation, groups)
    check_grad(op, grad, x, weight, stride, padding, dilation)


def _dense_fake(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    for_input: bool,
    for_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        x.new_empty(x.shape if for_input else (0,)),
        weight.new_empty(weight.shape if for_weight else (0,)),
    )


def _dense_run(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    for_input: bool,
    for_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return gradients(grad, x, weight, (stride, padding, dilation, groups), (for_input, for_weight))


define(
    f"dense_conv2d_backward(Tensor grad, Tensor x, Tensor weight, {_GEOMETRY}, "
    "bool for_input, bool for_weight) -> (Tensor, Tensor)",
    check=_dense_check,
    cpu=_dense_run,
    fake=_dense_fake,
    backward=once,
    setup=saves_nothing,
    cuda=_dense_run,
)
