"""Exact convolutions in float32, bfloat16 or int8, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lutcc.ops.arithmetic import FLOATS, floats, quantize_rows, wide
from lutcc.ops.checks import dtype as check_dtype
from lutcc.ops.dense import LIMIT, check_weights, defaults
from lutcc.ops.kernels import run
from lutcc.ops.library import cast_to, define, is_recorded
from lutcc.ops.sampled_channels import check_windows, output_sizes
from lutcc.ops.sampled_conv_parts import gradients

_OP = "conv2d"


def conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    units: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    compute: str = "float32",
) -> torch.Tensor:
    """Apply a convolution in one of three arithmetics.

    Parameters
    ----------
    x
        (N, C, H, W) float32, float64, float16 or bfloat16.
    weight
        (O, C / groups, kh, kw), any of these dtypes (float64 only beside a float64 x); or int8 in
        -127 .. 127, for compute="int8".
    units
        (O,) float32, float16 or bfloat16: what the sums of each output are multiplied with; None
        for ones. Integers need them.
    bias
        (O,), dtype of x (or float32, where x is of half precision); None for zeros.
    stride, padding, dilation
        Pairs (height, width).
    groups
        Parts of the channels that are convolved each for itself.
    compute
        "float32"; "bfloat16": x and the weights are rounded to it; "int8": images of x, and the
        weights of each output, if floats, are rounded to integers (symmetric, one scale an image,
        and one an output), whose sums are exact, the same bits on every backend.

    Returns
    -------
    torch.Tensor
        (N, O, OH, OW), dtype of x. Differentiable in x, floating-point weights, units and bias:
        straight through the rounding, as if the convolution were one of floats.

    Raises
    ------
    InputError
        When shapes, dtypes or devices do not fit.

    Examples
    --------
    >>> x, weight = torch.tensor([[[[1.0, -2.0, 4.0]]]]), torch.tensor([[[[3.0, 1.0]]]])
    >>> conv2d(x, weight).tolist()
    [[[[1.0, -2.0]]]]
    """
    pairs = [list(p) for p in (stride, padding, dilation)]
    return torch.ops.lutcc.conv2d(x, weight, units, bias, *pairs, groups, compute)


def _check(
    x: torch.Tensor,
    weight: torch.Tensor,
    units: torch.Tensor | None,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    compute: str = "float32",
) -> None:
    floats(_OP, "x", x)
    check_dtype(_OP, "weight", weight, (*FLOATS, torch.int8))
    check_windows(_OP, x, weight, stride, padding, dilation, groups)
    check_weights(_OP, x, weight, units, bias, compute)


def _fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    units: torch.Tensor | None,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    compute: str = "float32",
) -> torch.Tensor:
    sizes = output_sizes(x, weight.shape[2:], stride, padding, dilation)
    return x.new_empty((x.shape[0], weight.shape[0], *sizes))


def _cpu(
    x: torch.Tensor,
    weight: torch.Tensor,
    units: torch.Tensor | None,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    compute: str = "float32",
) -> torch.Tensor:
    geometry = (stride, padding, dilation, groups)
    rounded_here = compute == "int8" and weight.dtype is not torch.int8
    if is_recorded() or rounded_here or x.dtype is torch.float64:
        return _torch(x, weight, units, bias, *geometry, compute)
    sizes = output_sizes(x, weight.shape[2:], stride, padding, dilation)
    outputs = weight.shape[0]

    def torch_way() -> torch.Tensor:
        y = _torch(x.float(), weight, units, bias, *geometry, compute)
        return y.permute(0, 2, 3, 1).reshape(-1, outputs)

    ones, zeros = defaults(outputs)
    kept: dict[int, str] = {1: "float32", 2: "float32"}
    if weight.dtype is torch.float16:
        kept[0] = "float32"
    attrs = {
        "stride": tuple(stride),
        "padding": tuple(padding),
        "dilation": tuple(dilation),
        "groups": groups,
        "compute": compute,
    }
    rows = run(
        _OP,
        x.permute(0, 2, 3, 1).to(torch.float32).contiguous(),
        (weight, ones if units is None else units, zeros if bias is None else bias),
        attrs,
        torch_way=torch_way,
        kept_as=kept,
    )
    images = rows.reshape(x.shape[0], *sizes, outputs).permute(0, 3, 1, 2)
    return images.to(x.dtype).contiguous()


def _torch(
    x: torch.Tensor,
    weight: torch.Tensor,
    units: torch.Tensor | None,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    compute: str = "float32",
) -> torch.Tensor:
    """Compute by torch's own convolutions, on any device."""
    dtype = wide(x.dtype)
    images, factor = x.to(dtype), None if units is None else units.to(dtype)
    geometry = (stride, padding, dilation, groups)
    if compute == "int8":
        q, unit = quantize_rows(images.float().flatten(1), LIMIT)
        integers = weight.double()
        if weight.dtype is not torch.int8:
            rounded, own = quantize_rows(weight.float().flatten(1), LIMIT)
            integers = rounded.double().reshape(weight.shape)
            factor = own[:, 0] if factor is None else own[:, 0] * factor.float()
        assert factor is not None
        # float64 holds the sums exactly
        sums = _convolve(q.double().reshape(x.shape), integers, *geometry).float()
        y = sums * (unit * factor.float())[:, :, None, None]
    else:
        w = weight.to(dtype)
        if compute == "bfloat16":
            images, w = (t.to(torch.bfloat16).to(dtype) for t in (images, w))
        y = _convolve(images, w, *geometry)
        y = y if factor is None else y * factor[:, None, None]
    if bias is not None:
        y = y + bias.to(y.dtype)[:, None, None]
    return y.to(x.dtype).contiguous()


def _convolve(x: torch.Tensor, weight: torch.Tensor, *geometry: Any) -> torch.Tensor:
    return torch.nn.functional.conv2d(x, weight, None, *geometry)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, units, bias, *ctx.geometry, _ = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, weight, units)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, weight, units = ctx.saved_tensors
    for_x, for_weight, for_units, for_bias = ctx.needs_input_grad[:4]
    dtype = wide(grad.dtype)
    images, grads, w = x.to(dtype), grad.to(dtype), weight.to(dtype)
    scaled = grads if units is None else grads * units.to(dtype)[:, None, None]
    dx, dweight = gradients(scaled, images, w, tuple(ctx.geometry), (for_x, for_weight))
    dunits = dbias = None
    if for_units:
        assert units is not None
        dunits = (grads * _convolve(images, w, *ctx.geometry)).sum((0, 2, 3)).to(units.dtype)
    if for_bias:
        dbias = grads.sum((0, 2, 3)).to(ctx.bias_dtype)
    found = (dx.to(x.dtype) if for_x else None, dweight.to(weight.dtype) if for_weight else None)
    return (*found, dunits, dbias, *[None] * 5)


def _autocast(dtype: torch.dtype, args: Any) -> Any:
    # the stored form stays what it is
    x, *rest = args
    return cast_to(dtype, x), *rest


define(
    "conv2d(Tensor x, Tensor weight, Tensor? units, Tensor? bias, int[] stride, int[] padding, "
    'int[] dilation, int groups=1, str compute="float32") -> Tensor',
    check=_check,
    cpu=_cpu,
    fake=_fake,
    backward=_backward,
    setup=_setup,
    cuda=_torch,
    autocast=_autocast,
)
