"""``sampled_matmul``: the pairs that are taken are gathered by the loads of the product itself.

Counts for 4096^3 in bfloat16 at half the pairs, as estimates (nothing here was timed on a GPU): 69
GFLOP instead of 137, so on tensor cores that do 500 to 800 TFLOP/s 90 to 140 us instead of 170 to
270; a quarter of the pairs halves that again. The operands are 32 MiB each, and of those the half
that is taken is read from memory once (about 15 us together) and from L2 once per tile of the
other operand. Selecting first, as ``index_select`` does, writes and reads them once more, about 30
us, and takes launches of its own.

A row of ``b`` is gathered whole, whatever is taken. Of a row-major ``a`` single columns are
gathered: 2 bytes here and there of sectors of 32. Indices ascend, so at half the pairs every
sector of a row is used about half, by the same tile, and traffic is that of the dense product, not
16 times as much; but loads of 2 bytes can be neither wide nor asynchronous, which is what groups
of 16 adjacent columns are for: those are loads of 16 bytes, of whole sectors. Below a quarter of
the pairs, single columns leave most of each sector unused, and groups win by that too.

The number of pairs that are taken is read on the GPU: places that take nothing cost nothing, and
nothing waits for the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from lutcc.schedules.triton.jit import jit
from lutcc.schedules.triton.rows import element_type, sum_type
from lutcc.schedules.triton.target import Target, current_target, product_precision

#: Tiles of rows that take turns with the tiles of columns, so that both stay in L2.
TURN = 8
#: Adjacent columns that a wide load may take.
WIDEST = 16


@dataclass(frozen=True, slots=True)
class ProductConfig:
    """Tiles of a product: rows, columns, and what one step sums over."""

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int


def choose_config(dtype: torch.dtype, target: Target, run: int) -> ProductConfig:
    """Return the tiles for operands of ``dtype`` whose columns lie ``run`` side by side.

    Single columns pass through registers on their way, so that a step takes fewer of them.

    Examples
    --------
    >>> choose_config(torch.bfloat16, Target("sm_90", "cuda"), 16)
    ProductConfig(rows=128, columns=128, depth=64, num_warps=8, num_stages=3)
    """
    if target.backend == "interpreter":
        return ProductConfig(16, 16, 16, 4, 1)  # tests are of small matrices
    if dtype.itemsize <= 2:
        deep = target.backend == "cuda" and run >= 8
        return ProductConfig(128, 128, 64, 8, 3) if deep else ProductConfig(128, 128, 32, 8, 2)
    if dtype is torch.float32:
        return ProductConfig(128, 64, 32, 8, 2)
    return ProductConfig(32, 32, 16, 4, 1)


def aligned_run(group_size: int) -> int:
    """Return how many columns of a group lie side by side from a multiple of their number on.

    Examples
    --------
    >>> [aligned_run(g) for g in (1, 12, 16, 64)]
    [1, 4, 16, 16]
    """
    return min(WIDEST, group_size & -group_size)


@jit
def count_kernel(scales, live, places, STEP: tl.constexpr):
    """Count the places that take something; they come first."""
    total = tl.zeros((), tl.int32)
    for start in range(0, places, STEP):
        i = start + tl.arange(0, STEP)
        scale = tl.load(scales + i, mask=i < places, other=0.0)
        total += tl.sum((scale != 0.0).to(tl.int32), 0)
    tl.store(live, total)


@jit
def columns_taken(indices, scales, q, live, columns, GROUP: tl.constexpr, RUN: tl.constexpr):
    """Return the q-th columns taken, whether they exist, and the scale of each."""
    slot = q // GROUP
    taken = q < live * GROUP
    index = tl.load(indices + slot, mask=taken, other=0)
    scale = tl.load(scales + slot, mask=taken, other=0.0)
    column = index * GROUP + q % GROUP
    if RUN > 1:
        column = tl.max_contiguous(tl.multiple_of(column, RUN), RUN)
    return column, taken & (column < columns), scale


@jit
def tile_of(number, row_tiles, column_tiles, TURN: tl.constexpr):
    """Return the tile of rows and of columns of a program: TURN tiles of rows take turns."""
    per_turn = TURN * column_tiles
    first = number // per_turn * TURN
    height = tl.minimum(row_tiles - first, TURN)
    return first + number % per_turn % height, number % per_turn // height


@jit
def gathered_product_kernel(
    a,
    b,
    bias,
    y,
    indices,
    scales,
    live,
    rows,
    columns,
    outputs,
    a_row,
    a_column,
    b_row,
    b_column,
    row_tiles,
    output_tiles,
    GROUP: tl.constexpr,
    RUN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    DEPTH: tl.constexpr,
    TURN: tl.constexpr,
    OPERAND: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write a tile of y = bias + sum over the columns taken of a's column times b's scaled row."""
    row_tile, output_tile = tile_of(tl.program_id(0), row_tiles, output_tiles, TURN)
    n = row_tile * ROWS + tl.arange(0, ROWS)
    m = output_tile * OUTPUTS + tl.arange(0, OUTPUTS)
    count = tl.load(live)
    a_rows = a + n.to(tl.int64)[:, None] * a_row
    b_columns = b + m.to(tl.int64)[None, :] * b_column
    total = tl.zeros((ROWS, OUTPUTS), SUM)
    if HAS_BIAS:
        total += tl.load(bias + m, mask=m < outputs, other=0.0).to(SUM)[None, :]
    for step in range(0, count * GROUP, DEPTH):
        q = step + tl.arange(0, DEPTH)
        column, there, scale = columns_taken(indices, scales, q, count, columns, GROUP, RUN)
        column = column.to(tl.int64)
        v = tl.load(
            a_rows + column[None, :] * a_column,
            mask=(n < rows)[:, None] & there[None, :],
            other=0.0,
        )
        w = tl.load(
            b_columns + column[:, None] * b_row,
            mask=there[:, None] & (m < outputs)[None, :],
            other=0.0,
        )
        w = (w.to(SUM) * scale[:, None].to(SUM)).to(OPERAND)
        total = tl.dot(v, w, total, input_precision=PRECISION, out_dtype=SUM)
    out = y + n.to(tl.int64)[:, None] * outputs + m[None, :]
    inside = (n < rows)[:, None] & (m < outputs)[None, :]
    tl.store(out, total.to(y.dtype.element_ty), mask=inside)


@jit
def scattered_product_kernel(
    left,
    right,
    out,
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
    GROUP: tl.constexpr,
    RUN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    TURN: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write left @ right, times the scale, into the columns taken; others stay as they are."""
    row_tile, column_tile = tile_of(tl.program_id(0), row_tiles, column_tiles, TURN)
    count = tl.load(live)
    if column_tile * COLUMNS < count * GROUP:
        r = row_tile * ROWS + tl.arange(0, ROWS)
        q = column_tile * COLUMNS + tl.arange(0, COLUMNS)
        column, there, scale = columns_taken(indices, scales, q, count, columns, GROUP, RUN)
        column = column.to(tl.int64)
        left_rows = left + r.to(tl.int64)[:, None] * left_row
        right_columns = right + column[None, :] * right_column
        total = tl.zeros((ROWS, COLUMNS), SUM)
        for step in range(0, depth, DEPTH):
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
        total = total * scale[None, :].to(SUM)
        where = out + r.to(tl.int64)[:, None] * out_row + column[None, :] * out_column
        inside = (r < rows)[:, None] & there[None, :]
        tl.store(where, total.to(out.dtype.element_ty), mask=inside)


def _live(scales: torch.Tensor) -> torch.Tensor:
    live = scales.new_empty((1,), dtype=torch.int32)
    count_kernel[(1,)](scales, live, scales.shape[0], STEP=1024)
    return live


def _options(dtype: torch.dtype, group_size: int, target: Target) -> dict[str, Any]:
    return {
        "GROUP": group_size,
        "RUN": aligned_run(group_size),
        "TURN": TURN,
        "SUM": sum_type(dtype),
        "PRECISION": product_precision(dtype, target),
    }


def sampled_matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    indices: torch.Tensor,
    scales: torch.Tensor,
    group_size: int = 1,
) -> torch.Tensor:
    """Multiply the pairs that are taken.

    Parameters
    ----------
    a, b
        (N, K) and (K, M) float16, bfloat16, float32 or float64 of any strides.
    bias
        (M,) float32 or the dtype of a, or None.
    indices, scales
        (S,) int32 and float32, of :func:`lutcc.ops.column_row_sample`: what is taken comes first.
    group_size
        Columns per pair; multiples of 16 load fastest.

    Returns
    -------
    torch.Tensor
        (N, M), dtype of a: scaled rows of b are rounded to it, sums are in float32 (float64 for
        float64).

    Notes
    -----
    Source: Adelman et al., equations 1 and 15.

    Examples
    --------
    >>> a, b = torch.ones(4, 32).cuda(), torch.ones(32, 9).cuda()  # doctest: +SKIP
    >>> pairs = torch.tensor([3, 8], dtype=torch.int32).cuda()  # doctest: +SKIP
    >>> sampled_matmul(a, b, None, pairs, torch.ones(2).cuda())[0, 0].item()  # doctest: +SKIP
    2.0
    """
    (rows, columns), outputs = a.shape, b.shape[1]
    y = a.new_empty((rows, outputs))
    if not y.numel():
        return y
    target = current_target()
    config = choose_config(a.dtype, target, aligned_run(group_size))
    row_tiles, output_tiles = triton.cdiv(rows, config.rows), triton.cdiv(outputs, config.columns)
    gathered_product_kernel[(row_tiles * output_tiles,)](
        a,
        b,
        a if bias is None else bias.contiguous(),
        y,
        indices,
        scales,
        _live(scales),
        rows,
        columns,
        outputs,
        *a.stride(),
        *b.stride(),
        row_tiles,
        output_tiles,
        HAS_BIAS=bias is not None,
        ROWS=config.rows,
        OUTPUTS=config.columns,
        DEPTH=config.depth,
        OPERAND=element_type(a.dtype),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **_options(a.dtype, group_size, target),
    )
    return y


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
    (rows, depth), columns = left.shape, right.shape[1]
    if not rows or not columns:
        return out
    target = current_target()
    config = choose_config(left.dtype, target, aligned_run(group_size))
    row_tiles = triton.cdiv(rows, config.rows)
    taken = min(indices.shape[0] * group_size, columns + group_size)
    column_tiles = max(1, triton.cdiv(taken, config.columns))
    scattered_product_kernel[(row_tiles * column_tiles,)](
        left,
        right,
        out,
        indices,
        scales,
        _live(scales),
        rows,
        columns,
        depth,
        *left.stride(),
        *right.stride(),
        *out.stride(),
        row_tiles,
        column_tiles,
        ROWS=config.rows,
        COLUMNS=config.columns,
        DEPTH=config.depth,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **_options(left.dtype, group_size, target),
    )
    return out
