"""Images to rows and back: copies, which torch does as well as a kernel of ours would."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lutcc.ir.ops.im2col import output_size
from lutcc.ops.checks import dtype as check_dtype
from lutcc.ops.checks import matrix, require
from lutcc.ops.library import define


def im2col(
    x: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> torch.Tensor:
    """Return the patches of an image batch as rows, so that a convolution becomes a product.

    Parameters
    ----------
    x
        (N, C, H, W) float32.
    kernel, stride, padding, dilation
        Pairs (height, width).

    Returns
    -------
    torch.Tensor
        (N*OH*OW, C*kh*kw) float32, columns in the order channel, row, column. Differentiable.

    Raises
    ------
    InputError
        When x is no such batch, or the kernel does not fit it.

    Notes
    -----
    Source: ``torch.nn.functional.unfold`` with positions as rows.

    Examples
    --------
    >>> im2col(torch.arange(4.0).reshape(1, 1, 2, 2), (1, 2)).tolist()
    [[0.0, 1.0], [2.0, 3.0]]
    """
    pairs = [list(p) for p in (kernel, stride, padding, dilation)]
    return torch.ops.lutcc.im2col(x, *pairs)


def _im2col_size(
    x: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Any, Any]:
    op = "im2col"
    require(
        x.ndim == 4,
        op,
        f"x must be (N, C, H, W), got {tuple(x.shape)}",
        "pass a batch of images: x[None]",
    )
    check_dtype(op, "x", x, (torch.float32,))
    options = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    for name, pair in options.items():
        low = 0 if name == "padding" else 1
        require(
            len(pair) == 2 and all(value >= low for value in pair),
            op,
            f"{name} must be two numbers of at least {low}, got {list(pair)}",
            f"pass {name} as (height, width)",
        )
    oh, ow = (
        output_size(x.shape[2 + a], kernel[a], stride[a], padding[a], dilation[a]) for a in (0, 1)
    )
    require(
        oh >= 1 and ow >= 1,
        op,
        f"a kernel of {list(kernel)} with dilation {list(dilation)} does not fit images of "
        f"{tuple(x.shape[2:])} with padding {list(padding)}",
        "pass larger images, or more padding",
    )
    return oh, ow


def _im2col_fake(
    x: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> torch.Tensor:
    oh, ow = _im2col_size(x, kernel, stride, padding, dilation)
    return x.new_empty((x.shape[0] * oh * ow, x.shape[1] * kernel[0] * kernel[1]))


def _im2col_cpu(
    x: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> torch.Tensor:
    oh, ow = _im2col_size(x, kernel, stride, padding, dilation)
    n, channels = x.shape[:2]
    # A copy of elements: torch's strided copy is as good as a kernel of ours.
    padded = torch.nn.functional.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    step = padded.stride()
    windows = padded.as_strided(
        (n, oh, ow, channels, kernel[0], kernel[1]),
        (
            step[0],
            step[2] * stride[0],
            step[3] * stride[1],
            step[1],
            step[2] * dilation[0],
            step[3] * dilation[1],
        ),
        padded.storage_offset(),
    )
    out = x.new_empty((n * oh * ow, channels * kernel[0] * kernel[1]))
    out.view(windows.shape).copy_(windows)
    return out


def _im2col_setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, *ctx.options = inputs
    ctx.shape = x.shape


def _im2col_backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """Add up what each pixel gave to its patches."""
    kernel, stride, padding, dilation = ctx.options
    n, _, height, width = ctx.shape
    if n == 0:
        return grad.new_zeros(ctx.shape), None, None, None, None
    columns = grad.reshape(n, -1, grad.shape[1]).transpose(1, 2)
    x = torch.nn.functional.fold(columns, (height, width), kernel, dilation, padding, stride)
    return x, None, None, None, None


define(
    "im2col(Tensor x, int[] kernel, int[] stride, int[] padding, int[] dilation) -> Tensor",
    cpu=_im2col_cpu,
    cuda=_im2col_cpu,  # of torch's own operators
    fake=_im2col_fake,
    backward=_im2col_backward,
    setup=_im2col_setup,
)


def rows_to_nchw(rows: torch.Tensor, oh: int, ow: int) -> torch.Tensor:
    """Return rows of positions as an image batch.

    Parameters
    ----------
    rows
        (N*oh*ow, M) float32.
    oh, ow
        Height and width of the images.

    Returns
    -------
    torch.Tensor
        (N, M, oh, ow) float32, contiguous. Differentiable.

    Raises
    ------
    InputError
        When the number of rows is no multiple of oh*ow.

    Notes
    -----
    Source: the order of the rows of :func:`im2col`.

    Examples
    --------
    >>> rows_to_nchw(torch.tensor([[0.0, 5.0], [1.0, 6.0]]), 1, 2).tolist()
    [[[[0.0, 1.0]], [[5.0, 6.0]]]]
    """
    return torch.ops.lutcc.rows_to_nchw(rows, oh, ow)


def _rows_to_nchw_check(rows: torch.Tensor, oh: int, ow: int) -> None:
    op = "rows_to_nchw"
    matrix(op, "rows", rows, (torch.float32,))
    require(oh >= 1 and ow >= 1, op, f"an image of {oh} x {ow} is empty", "pass oh, ow >= 1")
    require(
        rows.shape[0] % (oh * ow) == 0,
        op,
        f"{rows.shape[0]} rows are no multiple of oh*ow = {oh}*{ow}",
        "pass the rows of whole images",
    )


def _rows_to_nchw_fake(rows: torch.Tensor, oh: int, ow: int) -> torch.Tensor:
    _rows_to_nchw_check(rows, oh, ow)
    return rows.new_empty((rows.shape[0] // (oh * ow), rows.shape[1], oh, ow))


def _rows_to_nchw_cpu(rows: torch.Tensor, oh: int, ow: int) -> torch.Tensor:
    _rows_to_nchw_check(rows, oh, ow)
    n, outputs = rows.shape[0] // (oh * ow), rows.shape[1]
    out = rows.new_empty((n, outputs, oh, ow))
    out.copy_(rows.reshape(n, oh, ow, outputs).permute(0, 3, 1, 2))
    return out


def _rows_to_nchw_setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    del inputs, output


def _rows_to_nchw_backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return grad.permute(0, 2, 3, 1).reshape(-1, grad.shape[1]), None, None


define(
    "rows_to_nchw(Tensor rows, SymInt oh, SymInt ow) -> Tensor",
    cpu=_rows_to_nchw_cpu,
    cuda=_rows_to_nchw_cpu,
    fake=_rows_to_nchw_fake,
    backward=_rows_to_nchw_backward,
    setup=_rows_to_nchw_setup,
)
