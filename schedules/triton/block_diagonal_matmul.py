"""``block_diagonal_matmul``: each group of columns is multiplied by a block of its own.

A program computes a tile of columns: a part of one wide group, or several narrow groups at once. In
the latter case the weights of a tile are a small block-diagonal matrix, whose zeros are multiplied
too: tensor cores have time for that, but not for loads of less than 16 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from lutcc.schedules.triton.jit import jit
from lutcc.schedules.triton.rows import (
    as_rows,
    element_type,
    next_power_of_two,
    sum_dtype,
    sum_type,
)
from lutcc.schedules.triton.target import Target, current_target, product_precision

#: Narrow groups share a tile up to this many columns; the least that a product takes.
TILE, LEAST = 64, 16

#: Programs that the gradient of the blocks should have at least, where there are rows enough.
PROGRAMS = 512


@dataclass(frozen=True, slots=True)
class BlockConfig:
    """Tiles of a product with blocks (G, P, Q).

    Attributes
    ----------
    groups
        Groups per tile of columns.
    height, width
        Columns of x and of y in a tile, powers of two: what one product sums over, and gives.
    height_tiles, width_tiles
        Tiles per group (1 where a tile has several groups).
    rows
        Rows per program; of the gradient of the blocks: per step.
    num_warps
        Warps per program.
    """

    groups: int
    height: int
    width: int
    height_tiles: int
    width_tiles: int
    rows: int
    num_warps: int = 4


def choose_config(
    shape: tuple[int, int, int], dtype: torch.dtype, target: Target, *, gradient: bool = False
) -> BlockConfig:
    """Return the config of a product with blocks of ``shape``, or of their gradient.

    Examples
    --------
    >>> choose_config((32, 16, 16), torch.bfloat16, Target("sm_90", "cuda"))
    BlockConfig(groups=4, height=64, width=64, height_tiles=1, width_tiles=1, rows=128, num_warps=4)
    """
    count, p, q = shape
    narrow = dtype.itemsize <= 2
    widest = 128 if narrow and not gradient else TILE
    deepest = TILE if narrow or gradient else TILE // 2
    groups = min(count, max(1, deepest // max(p, q)))
    height = min(deepest, max(LEAST, next_power_of_two(groups * p)))
    width = min(widest, max(LEAST, next_power_of_two(groups * q)))
    rows = (64 if narrow else 32) if gradient else (128 if narrow and width <= TILE else 64)
    if target.backend == "interpreter":
        rows = LEAST  # tests are of few rows
    return BlockConfig(
        groups, height, width, triton.cdiv(groups * p, height), triton.cdiv(groups * q, width), rows
    )


@jit
def block_diagonal_matmul_kernel(
    x,
    blocks,
    y,
    rows,
    columns_in,
    columns,
    x_stride,
    group_stride,
    p_stride,
    q_stride,
    tiles,
    P: tl.constexpr,
    Q: tl.constexpr,
    GROUPS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    HEIGHT_TILES: tl.constexpr,
    WIDTH_TILES: tl.constexpr,
    ROWS: tl.constexpr,
    OPERAND: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write one tile of columns of ROWS rows; tiles of the same rows are neighbours in time."""
    tile = tl.program_id(0) % tiles
    r = (tl.program_id(0) // tiles) * ROWS + tl.arange(0, ROWS)
    inside = (r < rows)[:, None]
    r = r.to(tl.int64)[:, None]
    first = (tile // WIDTH_TILES) * GROUPS
    q = (tile % WIDTH_TILES) * WIDTH + tl.arange(0, WIDTH)
    q_group = q // Q
    c = first * Q + q
    wanted = (q < GROUPS * Q) & (c < columns)
    q_offset = q_group.to(tl.int64) * group_stride + (q % Q) * q_stride
    total = tl.zeros((ROWS, WIDTH), SUM)
    for step in range(HEIGHT_TILES):
        p = step * HEIGHT + tl.arange(0, HEIGHT)
        d = first * P + p
        there = (p < GROUPS * P) & (d < columns_in)
        v = tl.load(x + r * x_stride + d[None, :], mask=inside & there[None, :], other=0.0)
        same = there[:, None] & wanted[None, :]
        if GROUPS > 1:
            same = same & ((p // P)[:, None] == q_group[None, :])
        w = tl.load(
            blocks
            + first.to(tl.int64) * group_stride
            + (p % P)[:, None] * p_stride
            + q_offset[None, :],
            mask=same,
            other=0.0,
        )
        total = tl.dot(
            v.to(OPERAND), w.to(OPERAND), total, input_precision=PRECISION, out_dtype=SUM
        )
    out = y + r * columns + c[None, :]
    tl.store(out, total.to(y.dtype.element_ty), mask=inside & wanted[None, :])


@jit
def weight_grad_kernel(
    x,
    grad,
    parts,
    rows,
    columns_in,
    columns,
    x_stride,
    grad_stride,
    tiles,
    size,
    splits,
    P: tl.constexpr,
    Q: tl.constexpr,
    GROUPS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    HEIGHT_TILES: tl.constexpr,
    WIDTH_TILES: tl.constexpr,
    ROWS: tl.constexpr,
    OPERAND: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write the products of x and grad over every ``splits``-th step of rows: one of ``parts``."""
    tile = tl.program_id(0) % tiles
    split = tl.program_id(0) // tiles
    first = (tile // (HEIGHT_TILES * WIDTH_TILES)) * GROUPS
    p = (tile // WIDTH_TILES % HEIGHT_TILES) * HEIGHT + tl.arange(0, HEIGHT)
    q = (tile % WIDTH_TILES) * WIDTH + tl.arange(0, WIDTH)
    d = first * P + p
    c = first * Q + q
    p_there = (p < GROUPS * P) & (d < columns_in)
    q_there = (q < GROUPS * Q) & (c < columns)
    total = tl.zeros((HEIGHT, WIDTH), SUM)
    for start in range(split * ROWS, rows, splits * ROWS):
        r = start + tl.arange(0, ROWS)
        inside = (r < rows)[:, None]
        r = r.to(tl.int64)[:, None]
        v = tl.load(x + r * x_stride + d[None, :], mask=inside & p_there[None, :], other=0.0)
        g = tl.load(grad + r * grad_stride + c[None, :], mask=inside & q_there[None, :], other=0.0)
        total = tl.dot(
            tl.trans(v.to(OPERAND)), g.to(OPERAND), total, input_precision=PRECISION, out_dtype=SUM
        )
    # A column that was not kept has no gradient, but its weights do: zero.
    same = p_there[:, None] & (q < GROUPS * Q)[None, :]
    if GROUPS > 1:
        same = same & ((p // P)[:, None] == (q // Q)[None, :])
    out = parts + split.to(tl.int64) * size + (d * Q)[:, None] + (q % Q)[None, :]
    tl.store(out, total, mask=same)


def block_diagonal_matmul(
    x: torch.Tensor, blocks: torch.Tensor, columns: int | None = None
) -> torch.Tensor:
    """Multiply each group of columns by a block of its own.

    Parameters
    ----------
    x
        (..., G*P) float16, bfloat16, float32 or float64 of any strides.
    blocks
        (G, P, Q) of any strides, so that a gradient may pass ``blocks.transpose(1, 2)``; dtype of
        x, or bfloat16 beside a float32 x, which is rounded to bfloat16.
    columns
        How many columns are computed, from the first on; G*Q if None.

    Returns
    -------
    torch.Tensor
        (..., columns), dtype of x, summed in float32 (float64 for float64).

    Notes
    -----
    Source: Zeng et al., LookupFFN, equation 11.

    Examples
    --------
    >>> x, blocks = torch.ones(5, 128).cuda(), torch.ones(2, 64, 64).cuda()  # doctest: +SKIP
    >>> block_diagonal_matmul(x, blocks, columns=100).shape  # doctest: +SKIP
    torch.Size([5, 100])
    """
    count, p, q = blocks.shape
    columns = count * q if columns is None else columns
    flat = as_rows(x)
    rows = flat.shape[0]
    y = x.new_empty((rows, columns))
    if rows:
        target = current_target()
        config = choose_config((count, p, q), blocks.dtype, target)
        tiles = triton.cdiv(triton.cdiv(columns, q), config.groups) * config.width_tiles
        block_diagonal_matmul_kernel[(triton.cdiv(rows, config.rows) * tiles,)](
            flat,
            blocks,
            y,
            rows,
            count * p,
            columns,
            flat.stride(0),
            blocks.stride(0),
            blocks.stride(1),
            blocks.stride(2),
            tiles,
            P=p,
            Q=q,
            GROUPS=config.groups,
            HEIGHT=config.height,
            WIDTH=config.width,
            HEIGHT_TILES=config.height_tiles,
            WIDTH_TILES=config.width_tiles,
            ROWS=config.rows,
            OPERAND=element_type(blocks.dtype),
            SUM=sum_type(blocks.dtype),
            PRECISION=product_precision(blocks.dtype, target),
            num_warps=config.num_warps,
        )
    return y.reshape(*x.shape[:-1], columns)


def block_diagonal_matmul_weight_grad(
    x: torch.Tensor, grad: torch.Tensor, groups: int, q: int, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Return the gradient of the blocks, summed in a fixed order.

    Parameters
    ----------
    x
        (..., G*P), as it was given to :func:`block_diagonal_matmul`.
    grad
        (..., columns), dtype of x; columns beyond it count as zero.
    groups, q
        G and Q of the blocks.
    dtype
        Of the result: that of x if None.

    Returns
    -------
    torch.Tensor
        (G, P, Q).

    Examples
    --------
    >>> x, grad = torch.ones(5, 128).cuda(), torch.ones(5, 100).cuda()  # doctest: +SKIP
    >>> block_diagonal_matmul_weight_grad(x, grad, 2, 64).shape  # doctest: +SKIP
    torch.Size([2, 64, 64])
    """
    left, right = as_rows(x), as_rows(grad)
    rows = left.shape[0]
    shape = (groups, left.shape[1] // groups, q)
    dtype = x.dtype if dtype is None else dtype
    if not rows:
        return x.new_zeros(shape, dtype=dtype)
    target = current_target()
    config = choose_config(shape, x.dtype, target, gradient=True)
    tiles = triton.cdiv(groups, config.groups) * config.height_tiles * config.width_tiles
    splits = max(1, min(triton.cdiv(PROGRAMS, tiles), triton.cdiv(rows, 4 * config.rows)))
    parts = x.new_empty((splits, *shape), dtype=sum_dtype(x.dtype))
    weight_grad_kernel[(tiles * splits,)](
        left,
        right,
        parts,
        rows,
        left.shape[1],
        right.shape[1],
        left.stride(0),
        right.stride(0),
        tiles,
        parts[0].numel(),
        splits,
        P=shape[1],
        Q=q,
        GROUPS=config.groups,
        HEIGHT=config.height,
        WIDTH=config.width,
        HEIGHT_TILES=config.height_tiles,
        WIDTH_TILES=config.width_tiles,
        ROWS=config.rows,
        OPERAND=element_type(x.dtype),
        SUM=sum_type(x.dtype),
        PRECISION=product_precision(x.dtype, target),
        num_warps=config.num_warps,
    )
    return (parts[0] if splits == 1 else parts.sum(0)).to(dtype)
