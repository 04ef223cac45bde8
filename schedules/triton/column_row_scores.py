"""``column_row_scores``: norms of columns and rows, and their products.

Bound by memory: each element is read once. Rows are split among programs so that a GPU is filled by
narrow matrices too; the sums of the splits are added in a fixed order by the second kernel. Sums
are in float64, in which squares of float32 neither overflow nor vanish, as on the CPU, so that the
same pairs are taken there. That is as fast as memory: two operations per element, at 4096^2 33
MFLOP beside 32 MiB, about 10 us of an H100's memory and, estimated, 5 of its conversions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lutcc.schedules.triton.jit import jit
from lutcc.schedules.triton.rows import sum_dtype
from lutcc.schedules.triton.target import current_target

#: Rows and columns of a tile, and programs that a launch should have at least.
ROWS, COLUMNS, PROGRAMS = 64, 64, 512
#: Pairs per program of the second kernel.
PAIRS = 128


@jit
def column_squares_kernel(
    x,
    parts,
    rows,
    columns,
    row_stride,
    column_stride,
    tiles,
    splits,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the columns' sums of squares over every ``splits``-th tile of rows."""
    tile = tl.program_id(0) % tiles
    split = tl.program_id(0) // tiles
    c = tile * COLUMNS + tl.arange(0, COLUMNS)
    inside = c < columns
    where = c.to(tl.int64) * column_stride
    squares = tl.zeros((ROWS, COLUMNS), tl.float64)
    for start in range(split * ROWS, rows, splits * ROWS):
        r = start + tl.arange(0, ROWS)
        offset = r.to(tl.int64)[:, None] * row_stride + where[None, :]
        v = tl.load(x + offset, mask=(r < rows)[:, None] & inside[None, :], other=0.0)
        v = v.to(tl.float64)
        squares += v * v
    tl.store(parts + split.to(tl.int64) * columns + c, tl.sum(squares, 0), mask=inside)


@jit
def pair_scores_kernel(
    columns_a,
    columns_b,
    scores,
    columns,
    pairs,
    splits_a,
    splits_b,
    GROUP: tl.constexpr,
    WEIGHTS_ONLY: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """Add the splits, multiply the roots, and add the columns of each pair."""
    p = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    score = tl.zeros((PAIRS,), tl.float64)
    for i in range(GROUP):
        c = p * GROUP + i
        inside = (p < pairs) & (c < columns)
        b = tl.zeros((PAIRS,), tl.float64)
        for split in range(splits_b):
            b += tl.load(columns_b + split * columns + c, mask=inside, other=0.0)
        norm = tl.sqrt(b)
        if not WEIGHTS_ONLY:
            a = tl.zeros((PAIRS,), tl.float64)
            for split in range(splits_a):
                a += tl.load(columns_a + split * columns + c, mask=inside, other=0.0)
            norm = norm * tl.sqrt(a)
        if GROUP == 1:
            score = norm
        else:
            score += norm * norm
    if GROUP > 1:
        score = tl.sqrt(score)
    tl.store(scores + p, score.to(scores.dtype.element_ty), mask=p < pairs)


def column_row_scores(
    a: torch.Tensor, b: torch.Tensor, group_size: int = 1, weights_only: bool = False
) -> torch.Tensor:
    """Return the score of each column-row pair.

    Parameters
    ----------
    a, b
        (N, K) and (K, M) float16, bfloat16, float32 or float64 of any strides.
    group_size
        Columns per pair.
    weights_only
        Score by b alone.

    Returns
    -------
    torch.Tensor
        (ceil(K / group_size),) float32, float64 for float64.

    Notes
    -----
    Source: Adelman et al., equation 4.

    Examples
    --------
    >>> a, b = torch.ones(4, 32).cuda(), torch.ones(32, 9).cuda()  # doctest: +SKIP
    >>> column_row_scores(a, b)[:2].tolist()  # doctest: +SKIP
    [6.0, 6.0]
    """
    columns = b.shape[0]
    pairs = triton.cdiv(columns, group_size)
    scores = b.new_empty((pairs,), dtype=sum_dtype(b.dtype))
    of_b = _column_squares(b.t())
    of_a = of_b if weights_only else _column_squares(a)
    pair_scores_kernel[(triton.cdiv(pairs, PAIRS),)](
        of_a,
        of_b,
        scores,
        columns,
        pairs,
        of_a.shape[0],
        of_b.shape[0],
        GROUP=group_size,
        WEIGHTS_ONLY=weights_only,
        PAIRS=PAIRS,
    )
    return scores


def _column_squares(x: torch.Tensor) -> torch.Tensor:
    """Return float64 (splits, columns): sums of squares whose sum is each column's."""
    rows, columns = x.shape
    if not rows:
        return x.new_zeros((1, columns), dtype=torch.float64)
    height, width = (16, 32) if current_target().backend == "interpreter" else (ROWS, COLUMNS)
    tiles = triton.cdiv(columns, width)
    splits = max(1, min(triton.cdiv(PROGRAMS, tiles), triton.cdiv(rows, 4 * height)))
    parts = x.new_empty((splits, columns), dtype=torch.float64)
    column_squares_kernel[(tiles * splits,)](
        x,
        parts,
        rows,
        columns,
        x.stride(0),
        x.stride(1),
        tiles,
        splits,
        ROWS=height,
        COLUMNS=width,
        num_warps=8,
    )
    return parts
