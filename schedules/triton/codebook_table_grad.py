"""Gradients of codebooks and scales, as both operators of codebooks share them.

Each row's gradient is added up into as many sums as its tables have entries, in registers, in a
fixed order; what codebooks and scales share of those is added by a second, small reduction. No
atomics: the same bits every time. The 16 comparisons and additions that each weight of 4 bits takes
are 0.54 G operations for 4096^2 of them, as an estimate 78 us of an A100 and 36 us of an H100 at 64
and 128 a cycle of an SM: with 4 bits the sums are bound by those, with 2 bits by reading.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lutcc.schedules.triton.codebook_tables import Weights, unpacked
from lutcc.schedules.triton.jit import jit
from lutcc.schedules.triton.rows import as_rows, sum_dtype, sum_type
from lutcc.schedules.triton.target import current_target, product_precision
from lutcc.schedules.triton.weighted_gather_backward import choose_config as table_config
from lutcc.schedules.triton.weighted_gather_backward import table_grad


@jit
def codebook_entry_sums_kernel(
    packed,
    values,
    x,
    chosen,
    order,
    sums,
    places,
    rows,
    columns,
    count,
    stride,
    segments,
    segment_size,
    values_row,
    x_row,
    BITS: tl.constexpr,
    WORDS: tl.constexpr,
    HAS_CHOSEN: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    FUSED: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    STEP: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write ``sums`` (places, segments, 2**BITS): a row's gradient, by the entries of its tables.

    Place p has row ``chosen[p]`` of indices, and the gradient ``values[order[p]]``; both p without.
    With FUSED that is the product of column ``order[p]`` of ``values`` (count, rows) with x.
    """
    ENTRIES: tl.constexpr = 1 << BITS
    segment = tl.program_id(0) % segments
    p = (tl.program_id(0) // segments).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    wanted = p < places
    here = wanted
    taken = wanted
    m = p
    source = p
    if HAS_CHOSEN:
        m = tl.load(chosen + p, mask=wanted, other=0).to(tl.int64)
        here = wanted & (m >= 0) & (m < rows)
    if HAS_ORDER:
        source = tl.load(order + p, mask=wanted, other=0).to(tl.int64)
        taken = wanted & (source >= 0) & (source < rows)
    entry = tl.arange(0, ENTRIES)
    total = tl.zeros((ROWS, ENTRIES), SUM)
    low = segment * segment_size
    high = tl.minimum(low + segment_size, columns)
    for first in range(low, high, DEPTH):
        index = unpacked(packed, m, here, first, stride, BITS, WORDS, DEPTH)
        k = first + tl.arange(0, DEPTH)
        inside = k < high
        if FUSED:
            v = tl.zeros((ROWS, DEPTH), SUM)
            for start in range(0, count, STEP):
                n = start + tl.arange(0, STEP)
                line = n.to(tl.int64)
                g = tl.load(
                    values + line[None, :] * values_row + source[:, None],
                    mask=taken[:, None] & (n < count)[None, :],
                    other=0.0,
                )
                u = tl.load(
                    x + line[:, None] * x_row + k[None, :],
                    mask=(n < count)[:, None] & inside[None, :],
                    other=0.0,
                )
                v = tl.dot(g, u, v, input_precision=PRECISION, out_dtype=SUM)
        else:
            v = tl.load(
                values + source[:, None] * values_row + k[None, :],
                mask=taken[:, None] & inside[None, :],
                other=0.0,
            ).to(SUM)
        for e in tl.static_range(ENTRIES):
            part = tl.sum(tl.where(index == e, v, 0.0), 1)
            total += tl.where(entry == e, 1.0, 0.0).to(SUM)[None, :] * part[:, None]
    out = sums + (p * segments + segment)[:, None] * ENTRIES + entry[None, :]
    tl.store(out, total, mask=wanted[:, None])


def entry_sums(
    weights: Weights,
    values: torch.Tensor,
    *,
    x: torch.Tensor | None = None,
    chosen: torch.Tensor | None = None,
    order: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return (P, S, 2**bits): the gradient of each row, added up by the entries of its tables.

    Parameters
    ----------
    weights
        (M, K).
    values
        The gradient of rows, (P, K); with ``x`` (N, K) that of the result, (N, M).
    chosen
        (P,) the row that each belongs to; all rows if None.
    order
        (M,) the line of ``values``, or column, of each row.
    """
    places = weights.rows if chosen is None else chosen.shape[0]
    sums = sum_dtype(values.dtype)
    out = values.new_empty((places, weights.segments, 1 << weights.bits), dtype=sums)
    if not places:
        return out
    target = current_target()
    small = target.backend == "interpreter"
    depth = 32 if small else min(weights.run, 128)
    codebook_entry_sums_kernel[(triton.cdiv(places, 16) * weights.segments,)](
        weights.packed,
        values,
        values if x is None else x,
        values if chosen is None else chosen.contiguous(),
        values if order is None else order.contiguous(),
        out,
        places,
        weights.rows,
        weights.columns,
        values.shape[0],
        weights.packed.stride(0),
        weights.segments,
        weights.segment_size,
        values.stride(0),
        values.stride(0) if x is None else x.stride(0),
        BITS=weights.bits,
        WORDS=weights.packed.dtype is torch.int32,
        HAS_CHOSEN=chosen is not None,
        HAS_ORDER=order is not None,
        FUSED=x is not None,
        ROWS=16,
        DEPTH=depth,
        STEP=16,
        SUM=sum_type(values.dtype),
        PRECISION=product_precision(values.dtype, target),
        num_warps=4,
    )
    return out


def table_gradients(
    sums: torch.Tensor, weights: Weights, codebooks: torch.Tensor, scales: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of codebooks and scales from :func:`entry_sums` (M, S, L) of all."""
    book = codebooks.to(sums.dtype)[_regions(len(codebooks), weights, sums.device)]
    scale = scales.to(sums.dtype)[_regions(len(scales), weights, sums.device)]
    dcodebooks = _sum_regions(sums * scale[..., None], len(codebooks))
    dscales = _sum_regions((sums * book).sum(2, keepdim=True), len(scales))
    return dcodebooks.to(codebooks.dtype), dscales.flatten().to(scales.dtype)


def _regions(regions: int, weights: Weights, device: torch.device) -> torch.Tensor:
    """Return (M, S), or (M, 1): the region of each segment of each row."""
    rows = torch.arange(weights.rows, device=device)[:, None]
    if regions <= weights.rows:
        return rows * regions // weights.rows
    return rows * weights.segments + torch.arange(weights.segments, device=device)


def _sum_regions(values: torch.Tensor, regions: int) -> torch.Tensor:
    """Return (regions, L): sums of ``values`` (M, S, L) over each region, in a fixed order."""
    rows = values.shape[0]
    if regions > rows:
        return values.flatten(0, 1)
    values = values.sum(1)
    # region r has the rows from ceil(r * M / R) on; they are as many as others', or one less
    bounds = -(-torch.arange(regions + 1, device=values.device) * rows // regions)
    place = bounds[:-1, None] + torch.arange(-(-rows // regions), device=values.device)
    inside = place < bounds[1:, None]
    taken = values[place.clamp_(max=rows - 1)]
    return torch.where(inside[..., None], taken, 0.0).sum(1)


def codebook_dequantize_backward(
    grad: torch.Tensor,
    rows: torch.Tensor,
    indices: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    bits: int,
    columns: int,
    segment_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of codebooks and scales of rows that were looked up.

    Parameters
    ----------
    grad
        (..., columns) float32 or float64, the gradient of the result.
    rows, indices, codebooks, scales, bits, columns, segment_size
        As they were given to ``codebook_dequantize``. A row that does not exist adds nothing.

    Examples
    --------
    >>> rows, indices = torch.tensor([1]).cuda(), torch.zeros(2, 1).byte().cuda()  # doctest: +SKIP
    >>> books, scales = torch.ones(1, 4).cuda(), torch.ones(1).cuda()  # doctest: +SKIP
    >>> args = (torch.ones(1, 3).cuda(), rows, indices, books, scales)  # doctest: +SKIP
    >>> codebook_dequantize_backward(*args, 2, 3, 0)[1]  # doctest: +SKIP
    tensor([3.], device='cuda:0')
    """
    flat, grads = rows.flatten(), as_rows(grad)
    weights = Weights.of(indices, codebooks, scales, bits, columns, segment_size)
    if not flat.shape[0]:
        return torch.zeros_like(codebooks), torch.zeros_like(scales)
    places = entry_sums(weights, grads, chosen=flat).flatten(1)
    # each row's share of the places is sorted and added up, as that of a table's entry
    codes, ones = flat.to(torch.int32)[:, None], places.new_ones((len(flat), 1))
    shape = places.new_empty((1, weights.rows, places.shape[1]))
    config = table_config(
        places.shape[1], len(flat) // weights.rows, places.element_size(), current_target()
    )
    sums = table_grad(places, codes, ones, shape, config)
    sums = sums.view(weights.rows, weights.segments, -1)
    return table_gradients(sums, weights, codebooks, scales)
