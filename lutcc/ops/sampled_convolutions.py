"""Convolutions of the channels that are taken, and their gradients.

Each group takes channels of its own, the same number of slots each. What is taken makes a smaller
convolution with as many groups, which torch computes, on a GPU as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lutcc.errors import InputError
from lutcc.ops.checks import require
from lutcc.ops.library import cast_to, define, once, saves_nothing
from lutcc.ops.sampled_channels import check_convolution, output_sizes
from lutcc.ops.sampled_pairs import check_sample, computes_wide, is_captured
from lutcc.ops.sampled_products import bias_grad, check_backward, check_bias

_OP = "sampled_conv2d"


class Channels:
    """Channels that are taken: the same number in every group, with padding where there are fewer.

    Parameters
    ----------
    op
        Whose error it is if an index is out of its group's range.
    indices, scales
        (G*S,), of column_row_sample.
    channels
        Of all groups.
    groups
        G.
    """

    def __init__(
        self, op: str, indices: torch.Tensor, scales: torch.Tensor, channels: int, groups: int
    ) -> None:
        each = channels // groups
        local, scales = indices.view(groups, -1), scales.view(groups, -1)
        first = torch.arange(groups, dtype=torch.int32, device=indices.device)[:, None] * each
        kept = scales != 0
        local = torch.where(kept, local - first, 0)
        if indices.is_cpu and local.numel():
            _check_range(op, local, first, each)
        if scales.is_cpu or (local.shape[1] >= each and not is_captured(scales)):
            # on a GPU only for bernoulli, whose slots are all channels: this waits for the GPU
            most = max(int(kept.sum(1).max()), 1)
            order = kept.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
            local, scales, kept = (t.gather(1, order) for t in (local, scales, kept))
        complete = scales.is_cpu and bool(kept.all())
        self.local, self.scales, self.groups, self.each = local, scales, groups, each
        self.padded = None if complete else ~kept
        self.columns = (local + first).flatten()

    def of_images(self, x: torch.Tensor) -> torch.Tensor:
        """Return these channels of images (N, C, H, W); zeros where nothing is taken."""
        return self._blank(x.index_select(1, self.columns), 1)

    def of_weight(self, weight: torch.Tensor, dim: int, scaled: bool = True) -> torch.Tensor:
        """Return these channels of (O, C/G, kh, kw), times their scales; ``dim`` 0: these O."""
        if dim == 0:
            chosen = weight.index_select(0, self.columns)
            scales = self.scales.reshape(-1, 1, 1, 1)
        elif self.groups == 1:
            chosen = weight.index_select(1, self.columns)
            scales = self.scales.reshape(1, -1, 1, 1)
        else:
            chosen = torch.cat(
                [
                    part.index_select(1, index)
                    for part, index in zip(weight.chunk(self.groups), self.local, strict=True)
                ]
            )
            outputs = weight.shape[0] // self.groups
            scales = self.scales.repeat_interleave(outputs, 0)[:, :, None, None]
        if self.padded is not None:
            chosen = chosen.masked_fill(scales == 0, 0.0)
        return (chosen * scales).to(weight.dtype) if scaled else chosen

    def spread_images(self, parts: torch.Tensor) -> torch.Tensor:
        """Return images of all channels, zeros where none was taken."""
        shape = (parts.shape[0], self.groups * self.each, *parts.shape[2:])
        return parts.new_zeros(shape).index_add_(1, self.columns, self._blank(parts, 1))

    def spread_weight(self, parts: torch.Tensor, dim: int) -> torch.Tensor:
        """Return weights (O, C/G, kh, kw) from those of these channels, times their scales."""
        if dim == 0:
            scaled = parts * self.scales.reshape(-1, 1, 1, 1)
            scaled = self._blank(scaled.to(parts.dtype), 0)
            out = parts.new_zeros((self.groups * self.each, *parts.shape[1:]))
            return out.index_add_(0, self.columns, scaled)
        outputs = parts.shape[0] // self.groups
        scales = self.scales.repeat_interleave(outputs, 0)[:, :, None, None]
        scaled = (parts * scales).to(parts.dtype)
        if self.padded is not None:
            scaled = scaled.masked_fill(scales == 0, 0.0)
        out = parts.new_zeros((parts.shape[0], self.each, *parts.shape[2:]))
        for group, index in enumerate(self.local):
            rows = slice(group * outputs, (group + 1) * outputs)
            out[rows].index_add_(1, index, scaled[rows])
        return out

    def _blank(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        if self.padded is None:
            return x
        shape = [1] * x.ndim
        shape[dim] = -1
        return x.masked_fill(self.padded.view(shape), 0.0)


def _check_range(op: str, local: torch.Tensor, first: torch.Tensor, each: int) -> None:
    wrong = (local < 0) | (local >= each)
    if bool(wrong.any()):
        group = int(wrong.any(1).nonzero()[0])
        raise InputError(
            f"indices holds {int((local + first)[wrong][0])} for group {group}, whose channels are "
            f"{group * each}..{(group + 1) * each - 1}",
            where=f"torch.ops.lutcc.{op}",
            fix="pass the sample of channel_scores with the same groups",
        )


def convolve(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> torch.Tensor:
    """Return torch's convolution, without its emulation of half precision on CPUs."""
    dtype = x.dtype
    if x.is_cpu and computes_wide(dtype):
        x, weight = x.to(torch.float32), weight.to(torch.float32)
    bias = None if bias is None else bias.to(x.dtype)
    y = torch.nn.functional.conv2d(x, weight, bias, stride, padding, dilation, groups)
    return y.to(dtype)


def gradients(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    geometry: tuple[Sequence[int], Sequence[int], Sequence[int], int],
    which: tuple[bool, bool],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a convolution's gradients, (0,) for what is not asked for."""
    stride, padding, dilation, groups = geometry
    dtype = grad.dtype
    if not any(which):
        return grad.new_empty((0,)), grad.new_empty((0,))
    if grad.is_cpu and computes_wide(dtype):
        grad, x, weight = (t.to(torch.float32) for t in (grad, x, weight))
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [*which, False]
    )
    empty = grad.new_empty((0,), dtype=dtype)
    return (
        dx.to(dtype).contiguous() if which[0] else empty,
        dweight.to(dtype).contiguous() if which[1] else empty,
    )


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
    chosen = Channels(_OP, indices, scales, x.shape[1], groups)
    images, kernels = chosen.of_images(x), chosen.of_weight(weight, 1)
    return convolve(images, kernels, bias, stride, padding, dilation, groups).contiguous()


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
    chosen = Channels("sampled_conv2d_backward", indices, scales, x.shape[1], groups)
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
