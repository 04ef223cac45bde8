"""Scores of a convolution's input channels, and what its operators check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lutcc.ir.ops.im2col import output_size
from lutcc.ops.arithmetic import floats, row_chunks, wide
from lutcc.ops.checks import require
from lutcc.ops.library import define
from lutcc.ops.sampled_scores import roots, scaled_norms, squared


def check_convolution(
    op: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> None:
    """Raise InputError unless weight (O, C/G, kh, kw) convolves x (N, C, H, W)."""
    floats(op, "x", x)
    floats(op, "weight", weight)
    require(
        x.dtype is weight.dtype,
        op,
        f"x is {x.dtype}, but weight is {weight.dtype}",
        f"weight.to({x.dtype})",
    )
    check_windows(op, x, weight, stride, padding, dilation, groups)


def check_windows(
    op: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> None:
    """Raise InputError unless weight of these sizes convolves x, whatever their dtypes are."""
    require(
        x.ndim == 4 and weight.ndim == 4,
        op,
        f"x {tuple(x.shape)} and weight {tuple(weight.shape)} must have 4 dimensions",
        "pass a batch of images: x[None]",
    )
    require(
        groups >= 1
        and x.shape[1] >= 1
        and x.shape[1] == weight.shape[1] * groups
        and weight.shape[0] >= 1
        and weight.shape[0] % groups == 0,
        op,
        f"x {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit groups={groups}: the "
        "weight must be (O, C / groups, kh, kw) with O a multiple of groups",
        "pass the layer's own weight and groups",
    )
    for name, pair in (("stride", stride), ("padding", padding), ("dilation", dilation)):
        low = 0 if name == "padding" else 1
        require(
            len(pair) == 2 and all(value >= low for value in pair),
            op,
            f"{name} must be two numbers of at least {low}, got {list(pair)}",
            f"pass {name} as (height, width)",
        )
    sizes = output_sizes(x, weight.shape[2:], stride, padding, dilation)
    require(
        all(size >= 1 for size in sizes),
        op,
        f"a kernel of {tuple(weight.shape[2:])} with dilation {list(dilation)} does not fit images "
        f"of {tuple(x.shape[2:])} with padding {list(padding)}",
        "pass larger images, or more padding",
    )


def output_sizes(
    x: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Any, Any]:
    """Return the height and the width of a convolution's result."""
    sizes = [
        output_size(x.shape[2 + i], kernel[i], stride[i], padding[i], dilation[i]) for i in (0, 1)
    ]
    return sizes[0], sizes[1]


def window_counts(
    size: int, kernel: int, stride: int, padding: int, dilation: int, like: torch.Tensor
) -> torch.Tensor:
    """Return how many windows see each position along one axis, in the dtype of ``like``.

    Examples
    --------
    >>> window_counts(4, 3, 1, 1, 1, torch.zeros(())).tolist()
    [2.0, 3.0, 3.0, 2.0]
    """
    counts = like.new_zeros((size,))
    positions = output_size(size, kernel, stride, padding, dilation)
    for tap in range(kernel):
        # tap is over position stride * o + tap * dilation - padding, which must be an image's
        start = tap * dilation - padding
        first = max(0, -(start // stride))
        last = min(positions - 1, (size - 1 - start) // stride)
        if first <= last:
            counts[start + first * stride : start + last * stride + 1 : stride] += 1
    return counts


def window_weights(
    x: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> torch.Tensor:
    """Return (H, W): how often each pixel stands in the im2col matrix, in float32 at least."""
    like = x.new_zeros((), dtype=wide(x.dtype))
    rows, columns = (
        window_counts(int(x.shape[2 + i]), int(kernel[i]), stride[i], padding[i], dilation[i], like)
        for i in (0, 1)
    )
    return rows[:, None] * columns


def channel_scores(
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    weights_only: bool = False,
) -> torch.Tensor:
    """Return a score for each input channel of a convolution.

    Parameters
    ----------
    x
        (N, C, H, W) of a floating-point dtype.
    weight
        (O, C / groups, kh, kw), dtype of x.
    stride, padding, dilation, groups
        As for :func:`torch.nn.functional.conv2d`, padding as numbers.
    weights_only
        Take the norms of the weights alone.

    Returns
    -------
    torch.Tensor
        (C,) float32, float64 for float64. Not differentiable.

    Raises
    ------
    InputError
        When shapes, dtypes or options do not fit.

    Notes
    -----
    With A_c the columns of the im2col matrix that belong to channel c, and W_c its weights, the
    convolution is the sum of the products A_c W_c. Sampling k of them with probabilities p has the
    mean squared error 1/k (sum of ||A_c W_c||^2 / p_c - ||y||^2), at most that with
    ||A_c||^2 ||W_c||^2 in place of ||A_c W_c||^2, which p_c in proportion to ||A_c|| ||W_c||
    minimises (Cauchy-Schwarz). That is the score; for a 1x1 kernel it is equation 4 of Adelman et
    al. In ||A_c|| a pixel counts as often as a window covers it.

    Examples
    --------
    >>> x, weight = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[2.0]]]])
    >>> channel_scores(x, weight).tolist()
    [10.0]
    """
    return torch.ops.lutcc.channel_scores(
        x, weight, pair(stride), pair(padding), pair(dilation), groups, weights_only
    )


def pair(value: int | Sequence[int]) -> list[int]:
    """Return (height, width) of one number for both, or two."""
    return [value, value] if isinstance(value, int) else list(value)


def _check(
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    weights_only: bool = False,
) -> None:
    check_convolution("channel_scores", x, weight, stride, padding, dilation, groups)


def _fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    weights_only: bool = False,
) -> torch.Tensor:
    return x.new_empty((x.shape[1],), dtype=wide(x.dtype))


def _run(
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    weights_only: bool = False,
) -> torch.Tensor:
    dtype = wide(x.dtype)
    norms = _weight_norms(weight, groups)
    if weights_only:
        return norms
    counts = window_weights(x, weight.shape[2:], stride, padding, dilation)
    return (norms.double() * _image_norms(x, counts)).to(dtype)


def _weight_norms(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """Return the norm of each input channel's weights, (C,) in float32 at least."""
    dtype, inputs = wide(weight.dtype), weight.shape[1]

    def values(index: torch.Tensor | None = None) -> torch.Tensor:
        blocks = weight.reshape(groups, -1, inputs, weight[0, 0].numel()).transpose(1, 2)
        rows = blocks.reshape(groups * inputs, -1)
        return (rows if index is None else rows.index_select(0, index)).to(dtype)

    if not weight.is_cpu:
        return scaled_norms(values())
    # over outputs first, along the rows of memory
    squares = squared(weight.reshape(groups, weight.shape[0] // groups, -1)).sum(1)
    return roots(squares.view(groups * inputs, -1).sum(1), values)


def _image_norms(x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return each channel's norm, with pixel (i, j) counted ``counts[i, j]`` times."""
    dtype = counts.dtype

    def weighed(squares: torch.Tensor) -> torch.Tensor:
        # what no window sees counts nothing, whatever it is
        return torch.where(counts > 0, squares * counts, 0.0).sum((1, 2))

    if not x.is_cpu:  # to ask whether squares overflowed would be to wait for the GPU
        wide_x = x.to(dtype)
        largest = wide_x.abs().amax((0, 2, 3)) if x.shape[0] else wide_x.sum((0, 2, 3))
        unit = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
        scaled = wide_x / unit[:, None, None]
        return weighed((scaled * scaled).sum(0)).sqrt() * unit

    squares = x.new_zeros(x.shape[1:], dtype=dtype)
    for piece in row_chunks(x.shape[0], max(squares.numel(), 1)):
        squares += squared(x[piece]).sum(0)

    def values(index: torch.Tensor) -> torch.Tensor:
        chosen = x.index_select(1, index).to(dtype).transpose(0, 1)
        return torch.where(counts > 0, chosen * counts.sqrt(), 0.0).reshape(len(index), -1)

    return roots(weighed(squares), values)


define(
    "channel_scores(Tensor x, Tensor weight, int[] stride, int[] padding, int[] dilation, "
    "int groups=1, bool weights_only=False) -> Tensor",
    check=_check,
    cpu=_run,
    fake=_fake,
    cuda=_run,
)
