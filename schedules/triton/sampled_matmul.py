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
of 16 adjacent columns are for: those are loads of 16 bytes, of whole sectors. At a quarter of the
pairs and below, single columns leave most of each sector unused, and groups win by that too.

A step of 32 single columns loads 128 x 32 numbers one by one, 128 loads of a warp (and as many
stores to shared memory), while an H100's tensor cores are busy for about 256 cycles. That is close:
single columns may lose to selecting first there, which ``lutcc.ops.set_sampled_backend("auto")``
finds out by timing both. Expected of groups at best, of dense: 1.6 to 1.9 times at half the pairs,
2.5 to 3.5 at a quarter, where reading all that is not computed weighs more.

The number of pairs that are taken is read on the GPU: places that take nothing cost nothing, and
nothing waits for the GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lutcc.schedules.triton.jit import jit
from lutcc.schedules.triton.rows import element_type
from lutcc.schedules.triton.sampled_columns import (
    aligned_run,
    choose_config,
    columns_taken,
    count_taken,
    product_options,
    tile_of,
)
from lutcc.schedules.triton.target import current_target


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
    indices, scales = indices.contiguous(), scales.contiguous()
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
        count_taken(scales),
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
        **product_options(a.dtype, group_size, target),
    )
    return y
