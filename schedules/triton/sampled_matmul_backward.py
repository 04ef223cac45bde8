"""Gradients of ``sampled_matmul``: dense products whose result is gathered columns.

The pairs' rows of b, or columns of a, are gathered by the loads, as in the forward product, and
the same counts hold (see there). What was not taken is zero: that is written once before, 32 MiB of
a 4096^2 gradient in bfloat16, about 10 us.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lutcc.schedules.triton.jit import jit
from lutcc.schedules.triton.rows import sum_dtype
from lutcc.schedules.triton.sampled_columns import (
    aligned_run,
    choose_config,
    columns_taken,
    count_taken,
    product_options,
    tile_of,
)
from lutcc.schedules.triton.target import current_target

#: Programs that a gradient should have at least, and steps that each of them should take.
PROGRAMS, STEPS = 132, 16
#: Rows and columns of a tile of such sums.
SUM_SIDE = 32


@jit
def scattered_product_kernel(
    left,
    right,
    out,
    parts,
    indices,
    scales,
    live,
    rows,
    columns,
    depth,
    left_row,
    left_column,
    right_row,
    right_column,
    out_row,
    out_column,
    row_tiles,
    column_tiles,
    splits,
    SPLIT: tl.constexpr,
    GROUP: tl.constexpr,
    RUN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    TURN: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write left @ right, times the scale, into the columns taken; others stay as they are.

    Or, with SPLIT, the products of every ``splits``-th step of the depth into ``parts``.
    """
    tiles = row_tiles * column_tiles
    split = tl.program_id(0) // tiles
    row_tile, column_tile = tile_of(tl.program_id(0) % tiles, row_tiles, column_tiles, TURN)
    count = tl.load(live)
    if column_tile * COLUMNS < count * GROUP:
        r = row_tile * ROWS + tl.arange(0, ROWS)
        q = column_tile * COLUMNS + tl.arange(0, COLUMNS)
        column, there, scale = columns_taken(indices, scales, q, count, columns, GROUP, RUN)
        column = column.to(tl.int64)
        left_rows = left + r.to(tl.int64)[:, None] * left_row
        right_columns = right + column[None, :] * right_column
        total = tl.zeros((ROWS, COLUMNS), SUM)
        for step in range(split * DEPTH, depth, splits * DEPTH):
            t = step + tl.arange(0, DEPTH)
            v = tl.load(
                left_rows + t.to(tl.int64)[None, :] * left_column,
                mask=(r < rows)[:, None] & (t < depth)[None, :],
                other=0.0,
            )
            w = tl.load(
                right_columns + t.to(tl.int64)[:, None] * right_row,
                mask=(t < depth)[:, None] & there[None, :],
                other=0.0,
            )
            total = tl.dot(v, w, total, input_precision=PRECISION, out_dtype=SUM)
        inside = (r < rows)[:, None] & there[None, :]
        if SPLIT:
            line = (split.to(tl.int64) * rows + r) * (column_tiles * COLUMNS)
            tl.store(parts + line[:, None] + q[None, :], total, mask=inside)
        else:
            total = total * scale[None, :].to(SUM)
            where = out + r.to(tl.int64)[:, None] * out_row + column[None, :] * out_column
            tl.store(where, total.to(out.dtype.element_ty), mask=inside)


@jit
def scattered_sum_kernel(
    parts,
    out,
    indices,
    scales,
    live,
    rows,
    columns,
    width,
    out_row,
    out_column,
    row_tiles,
    splits,
    GROUP: tl.constexpr,
    RUN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SUM: tl.constexpr,
):
    """Add the parts of a product in their order, and write them as the product kernel would."""
    row_tile = tl.program_id(0) % row_tiles
    column_tile = tl.program_id(0) // row_tiles
    count = tl.load(live)
    if column_tile * COLUMNS < count * GROUP:
        r = row_tile * ROWS + tl.arange(0, ROWS)
        q = column_tile * COLUMNS + tl.arange(0, COLUMNS)
        column, there, scale = columns_taken(indices, scales, q, count, columns, GROUP, RUN)
        inside = (r < rows)[:, None] & there[None, :]
        total = tl.zeros((ROWS, COLUMNS), SUM)
        for split in range(splits):
            line = (r.to(tl.int64) + split * rows) * width
            total += tl.load(parts + line[:, None] + q[None, :], mask=inside, other=0.0)
        total = total * scale[None, :].to(SUM)
        where = out + r.to(tl.int64)[:, None] * out_row + column.to(tl.int64)[None, :] * out_column
        tl.store(where, total.to(out.dtype.element_ty), mask=inside)


def sampled_matmul_input_grad(
    grad: torch.Tensor,
    b: torch.Tensor,
    indices: torch.Tensor,
    scales: torch.Tensor,
    group_size: int = 1,
) -> torch.Tensor:
    """Return the gradient of a: (N, K), zero in the columns that were not taken.

    Parameters
    ----------
    grad
        (N, M), the gradient of :func:`sampled_matmul`'s result.
    b, indices, scales, group_size
        As they were given to it.

    Notes
    -----
    Source: Adelman et al., equation 10.

    Examples
    --------
    >>> grad, b = torch.ones(4, 9).cuda(), torch.ones(32, 9).cuda()  # doctest: +SKIP
    >>> pairs = torch.tensor([3, 8], dtype=torch.int32).cuda()  # doctest: +SKIP
    >>> sampled_matmul_input_grad(grad, b, pairs, torch.ones(2).cuda())[0, 3]  # doctest: +SKIP
    9.0
    """
    out = grad.new_zeros((grad.shape[0], b.shape[0]))
    return _scatter(grad, b.t(), out, indices, scales, group_size)


def sampled_matmul_weight_grad(
    a: torch.Tensor,
    grad: torch.Tensor,
    indices: torch.Tensor,
    scales: torch.Tensor,
    group_size: int = 1,
) -> torch.Tensor:
    """Return the gradient of b: (K, M), zero in the rows that were not taken.

    Each element is one sum in a fixed order.

    Parameters
    ----------
    a, indices, scales, group_size
        As they were given to :func:`sampled_matmul`.
    grad
        (N, M), the gradient of its result.

    Notes
    -----
    Source: Adelman et al., equation 10.

    Examples
    --------
    >>> a, grad = torch.ones(4, 32).cuda(), torch.ones(4, 9).cuda()  # doctest: +SKIP
    >>> pairs = torch.tensor([3, 8], dtype=torch.int32).cuda()  # doctest: +SKIP
    >>> sampled_matmul_weight_grad(a, grad, pairs, torch.ones(2).cuda())[3, 0]  # doctest: +SKIP
    4.0
    """
    out = a.new_zeros((a.shape[1], grad.shape[1]))
    _scatter(grad.t(), a, out.t(), indices, scales, group_size)
    return out


def _scatter(
    left: torch.Tensor,
    right: torch.Tensor,
    out: torch.Tensor,
    indices: torch.Tensor,
    scales: torch.Tensor,
    group_size: int,
) -> torch.Tensor:
    """Write ``left @ right`` into the columns of ``out`` that are taken.

    Where tiles are too few for a GPU, their sums are split, and added in a fixed order.
    """
    (rows, depth), columns = left.shape, right.shape[1]
    if not rows or not columns:
        return out
    indices, scales = indices.contiguous(), scales.contiguous()
    live = count_taken(scales)
    target = current_target()
    config = choose_config(left.dtype, target, aligned_run(group_size))
    row_tiles = triton.cdiv(rows, config.rows)
    taken = min(indices.shape[0] * group_size, columns + group_size)
    column_tiles = max(1, triton.cdiv(taken, config.columns))
    tiles = row_tiles * column_tiles
    splits = max(1, min(PROGRAMS // tiles, depth // (STEPS * config.depth)))
    options = product_options(left.dtype, group_size, target)
    parts, width = out, column_tiles * config.columns
    if splits > 1:
        parts = left.new_empty((splits, rows, width), dtype=sum_dtype(left.dtype))
    scattered_product_kernel[(tiles * splits,)](
        left,
        right,
        out,
        parts,
        indices,
        scales,
        live,
        rows,
        columns,
        depth,
        *left.stride(),
        *right.stride(),
        *out.stride(),
        row_tiles,
        column_tiles,
        splits,
        SPLIT=splits > 1,
        ROWS=config.rows,
        COLUMNS=config.columns,
        DEPTH=config.depth,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **options,
    )
    if splits > 1:
        side = min(SUM_SIDE, config.columns)
        row_tiles = triton.cdiv(rows, side)
        scattered_sum_kernel[(row_tiles * (width // side),)](
            parts,
            out,
            indices,
            scales,
            live,
            rows,
            columns,
            width,
            *out.stride(),
            row_tiles,
            splits,
            GROUP=group_size,
            RUN=options["RUN"],
            ROWS=side,
            COLUMNS=side,
            SUM=options["SUM"],
        )
    return out
