"""``tree_encode``: each row's leaf in one balanced binary tree per codebook.

A program walks a tile of rows and codebooks, all trees side by side. What it reads of a row lies in
a few cache lines, which the next level and the next codebooks read again.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lutcc.schedules.triton.jit import jit
from lutcc.schedules.triton.rows import next_power_of_two
from lutcc.schedules.triton.target import Target, current_target


def choose_tile(codebooks: int, target: Target) -> tuple[int, int]:
    """Return rows and codebooks per program: 8 walks per thread, neighbours of the same row.

    Examples
    --------
    >>> choose_tile(64, Target("sm_90", "cuda"))
    (32, 32)
    """
    books = min(32, next_power_of_two(codebooks))
    return (128 if target.backend == "interpreter" else 1024) // books, books


@jit
def tree_encode_kernel(
    x,
    dims,
    vals,
    codes,
    rows,
    codebooks,
    width,
    x_row,
    x_column,
    LEVELS: tl.constexpr,
    ROWS: tl.constexpr,
    BOOKS: tl.constexpr,
):
    """Write the codes of a tile: node h goes to 2h, or to 2h + 1 where the value is greater."""
    groups = tl.cdiv(codebooks, BOOKS)
    r = (tl.program_id(0) // groups).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    c = (tl.program_id(0) % groups) * BOOKS + tl.arange(0, BOOKS)[None, :]
    inside = (r < rows) & (c < codebooks)
    node = tl.full((ROWS, BOOKS), 1, tl.int32)
    for level in tl.static_range(LEVELS):
        d = tl.load(dims + c * LEVELS + level, mask=c < codebooks, other=0)
        there = inside & (d >= 0) & (d < width)
        v = tl.load(x + r * x_row + d.to(tl.int64) * x_column, mask=there, other=0)
        split = tl.load(vals + (c << LEVELS) + node, mask=inside, other=0)
        node = 2 * node + (v > split).to(tl.int32)
    tl.store(codes + r * codebooks + c, (node - (1 << LEVELS)).to(tl.uint8), mask=inside)


def tree_encode(x: torch.Tensor, splitdims: torch.Tensor, splitvals: torch.Tensor) -> torch.Tensor:
    """Hash each row by one balanced binary regression tree per codebook.

    Parameters
    ----------
    x
        (N, D) float32, float64, uint8 or int32 of any strides.
    splitdims
        (C, L) int32, columns of x; a column that x lacks counts as 0. L in 1..7.
    splitvals
        (C, 2**L), dtype of x, in heap order (entry 0 unused).

    Returns
    -------
    torch.Tensor
        Codes (N, C) uint8: those of every other backend.

    Notes
    -----
    Source: Blalock and Guttag, Multiplying matrices without multiplying, algorithm 1.

    Examples
    --------
    >>> x, dims = torch.tensor([[3.0]]).cuda(), torch.zeros(1, 1).int().cuda()  # doctest: +SKIP
    >>> tree_encode(x, dims, torch.tensor([[0.0, 1.0]]).cuda()).tolist()        # doctest: +SKIP
    [[1]]
    """
    (rows, width), (codebooks, levels) = x.shape, splitdims.shape
    codes = x.new_empty((rows, codebooks), dtype=torch.uint8)
    if codes.numel():
        height, books = choose_tile(codebooks, current_target())
        tree_encode_kernel[(triton.cdiv(rows, height) * triton.cdiv(codebooks, books),)](
            x,
            splitdims.contiguous(),
            splitvals.contiguous(),
            codes,
            rows,
            codebooks,
            width,
            *x.stride(),
            LEVELS=levels,
            ROWS=height,
            BOOKS=books,
            num_warps=4,
        )
    return codes
