"""``codebook_dequantize``: rows of a matrix that is written with codebooks, and the whole of it.

Counts of a matrix of 4096^2 with 4-bit indices, as estimates (nothing here was timed on a GPU): 8.4
MB of indices are read and 33.6 MB in bfloat16 written, 21 us at an A100's 2.0 TB/s and 13 us at an
H100's 3.35 TB/s; 16.8 million look-ups take 3.7 us and 2.4 us, if an SM does 32 a cycle. So an
expansion is bound by what it writes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lutcc.schedules.triton.codebook_tables import Weights, weights_tile
from lutcc.schedules.triton.jit import jit
from lutcc.schedules.triton.rows import sum_dtype
from lutcc.schedules.triton.target import current_target


@jit
def codebook_expand_kernel(
    packed,
    codebooks,
    scales,
    rows,
    columns,
    stride,
    books,
    factors,
    segments,
    segment_size,
    chosen,
    order,
    out,
    count,
    column_tiles,
    BITS: tl.constexpr,
    WORDS: tl.constexpr,
    BOOK_SEGMENTS: tl.constexpr,
    SCALE_SEGMENTS: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    HAS_CHOSEN: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write a tile of the rows chosen, or of all in their order; NaN for a row that is none."""
    first = tl.program_id(0) % column_tiles * COLUMNS
    i = (tl.program_id(0) // column_tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    wanted = i < count
    m = i
    here = wanted
    target = i
    if HAS_CHOSEN:
        m = tl.load(chosen + i, mask=wanted, other=0).to(tl.int64)
        here = wanted & (m >= 0) & (m < rows)
        m = tl.where(here, m, 0)
    if HAS_ORDER:
        target = tl.load(order + i, mask=wanted, other=0).to(tl.int64)
        wanted = wanted & (target >= 0) & (target < count)
    value = weights_tile(
        packed,
        codebooks,
        scales,
        m,
        here,
        first,
        rows,
        columns,
        stride,
        books,
        factors,
        segments,
        segment_size,
        BITS,
        WORDS,
        BOOK_SEGMENTS,
        SCALE_SEGMENTS,
        HAS_SCALES,
        COLUMNS,
        WIDE,
    )
    if HAS_CHOSEN:
        value = tl.where(here[:, None], value, float("nan"))
    k = first + tl.arange(0, COLUMNS)
    where = out + target[:, None] * columns + k[None, :]
    tl.store(where, value.to(out.dtype.element_ty), mask=wanted[:, None] & (k < columns)[None, :])


def expand(
    weights: Weights,
    dtype: torch.dtype,
    *,
    chosen: torch.Tensor | None = None,
    order: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return rows of a matrix in ``dtype``.

    Parameters
    ----------
    weights
        (M, K); with int8 tables ``dtype`` must be int8.
    dtype
        float16, bfloat16, float32, float64 or int8; weights are rounded to float32 first.
    chosen
        (n,) int32 or int64: which rows; all if None. One that does not exist is NaN.
    order
        (M,) int32: where each row is written, if all are.

    Returns
    -------
    torch.Tensor
        (n, K), or (M, K).
    """
    count = weights.rows if chosen is None else chosen.shape[0]
    out = weights.codebooks.new_empty((count, weights.columns), dtype=dtype)
    if not count:
        return out
    small = current_target().backend == "interpreter"
    height, width = (16, 32) if small else (32, min(weights.run, 128))
    column_tiles = triton.cdiv(weights.columns, width)
    codebook_expand_kernel[(column_tiles * triton.cdiv(count, height),)](
        *weights.arguments(),
        out if chosen is None else chosen.contiguous(),
        out if order is None else order.contiguous(),
        out,
        count,
        column_tiles,
        **weights.constants(),
        HAS_CHOSEN=chosen is not None,
        HAS_ORDER=order is not None,
        WIDE=tl.float64 if dtype is torch.float64 else tl.float32,
        ROWS=height,
        COLUMNS=width,
        num_warps=4,
    )
    return out


def codebook_dequantize(
    rows: torch.Tensor,
    indices: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    bits: int,
    columns: int,
    segment_size: int = 0,
) -> torch.Tensor:
    """Look up rows of a matrix (M, ``columns``) that is written with codebooks.

    Parameters
    ----------
    rows
        Any shape, int32 or int64.
    indices
        (M, B) uint8, packed.
    codebooks, scales
        (G, 2**bits) and (T,), float16, bfloat16, float32 or float64.
    bits, segment_size
        As of :func:`lutcc.ops.codebook_matmul`.

    Returns
    -------
    torch.Tensor
        (..., columns) float32 (float64 where codebooks are); NaN for a row that does not exist.

    Notes
    -----
    Source: Yvinec et al., JLCM, equations 1, 2 and 4.

    Examples
    --------
    >>> rows, indices = torch.tensor([1]).cuda(), torch.zeros(2, 1).byte().cuda()  # doctest: +SKIP
    >>> books, scales = torch.ones(1, 4).cuda(), torch.ones(1).cuda()  # doctest: +SKIP
    >>> codebook_dequantize(rows, indices, books, scales, 2, 3)  # doctest: +SKIP
    tensor([[1., 1., 1.]], device='cuda:0')
    """
    weights = Weights.of(indices, codebooks, scales, bits, columns, segment_size)
    y = expand(weights, sum_dtype(codebooks.dtype), chosen=rows.flatten())
    return y.reshape(*rows.shape, columns)
