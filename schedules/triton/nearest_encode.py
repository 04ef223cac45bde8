"""``nearest_encode``: the nearest centroid of each codebook.

A program has a tile of rows and one codebook, and all of its centroids side by side.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from lutcc.schedules.triton.jit import jit
from lutcc.schedules.triton.rows import next_power_of_two
from lutcc.schedules.triton.target import current_target


@jit
def nearest_encode_kernel(
    x,
    centroids,
    half_norms,
    columns,
    starts,
    codes,
    rows,
    codebooks,
    entries,
    width,
    compared,
    x_row,
    x_column,
    ROWS: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """Write the codes of a tile: the first smallest score, each a chain of fused multiply-adds."""
    c = tl.program_id(0) % codebooks
    r = (tl.program_id(0) // codebooks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = r < rows
    k = tl.arange(0, ENTRIES)
    there = k < entries
    first = tl.load(half_norms + c * entries + k, mask=there, other=float("inf"))
    score = tl.broadcast_to(first[None, :], (ROWS, ENTRIES))
    for j in range(tl.load(starts + c), tl.load(starts + c + 1)):
        d = tl.load(columns + j)
        known = inside & (d >= 0) & (d < width)
        v = tl.load(x + r * x_row + d.to(tl.int64) * x_column, mask=known, other=0.0)
        t = tl.load(centroids + k * compared + j, mask=there, other=0.0)
        score = tl.fma(
            tl.broadcast_to(-v[:, None], (ROWS, ENTRIES)),
            tl.broadcast_to(t[None, :], (ROWS, ENTRIES)),
            score,
        )
    # NaN never wins over what is before it, and nothing wins over a NaN that is first
    number = score == score
    lost = tl.max(tl.where(number | (k > 0)[None, :], 0, 1), 1) > 0
    score = tl.where(number & there[None, :], score, float("inf"))
    best = tl.min(score, 1)
    code = tl.min(tl.where(score == best[:, None], k[None, :], ENTRIES), 1)
    code = tl.where(lost, 0, code)
    tl.store(codes + r * codebooks + c, code.to(tl.uint8), mask=inside)


def nearest_encode(
    x: torch.Tensor,
    centroids: torch.Tensor,
    half_norms: torch.Tensor,
    columns: torch.Tensor,
    starts: Sequence[int],
) -> torch.Tensor:
    """Return the nearest centroid of each codebook (product quantisation).

    Parameters
    ----------
    x
        (N, D) float32 of any strides.
    centroids
        (K, D2) float32, centroids of all codebooks side by side.
    half_norms
        (C, K) float32, half the squared norm of each centroid.
    columns
        (D2,) int32, column of x of each column of the centroids; one that x lacks counts as 0.
    starts
        C + 1 positions: codebook c owns the columns starts[c]..starts[c+1]-1.

    Returns
    -------
    torch.Tensor
        Codes (N, C) uint8: those of every other backend.

    Notes
    -----
    Source: Jegou et al., Product quantization for nearest neighbor search, equation 9.

    Examples
    --------
    >>> x, half = torch.tensor([[0.9]]).cuda(), torch.tensor([[0.0, 0.5]]).cuda()  # doctest: +SKIP
    >>> centroids, columns = torch.eye(2, 1).flip(0).cuda(), half[0, :1].int()  # doctest: +SKIP
    >>> nearest_encode(x, centroids, half, columns, [0, 1]).tolist()  # doctest: +SKIP
    [[1]]
    """
    (rows, width), (codebooks, entries) = x.shape, half_norms.shape
    codes = x.new_empty((rows, codebooks), dtype=torch.uint8)
    if codes.numel():
        padded = next_power_of_two(entries)
        small = current_target().backend == "interpreter"
        height = 16 if small else max(16, min(128, 4096 // padded))
        nearest_encode_kernel[(triton.cdiv(rows, height) * codebooks,)](
            x,
            centroids.contiguous(),
            half_norms.contiguous(),
            columns.contiguous(),
            _on(tuple(starts), x.device),
            codes,
            rows,
            codebooks,
            entries,
            width,
            centroids.shape[1],
            *x.stride(),
            ROWS=height,
            ENTRIES=padded,
            num_warps=4,
        )
    return codes


@functools.lru_cache(maxsize=256)
def _on(starts: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return starts where kernels read them: copied once, as a copy waits for the GPU."""
    return torch.tensor(starts, dtype=torch.int32, device=device)
