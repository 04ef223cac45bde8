"""Gradients of ``weighted_gather``: of the scores, and of the tables in two ways.

Deterministic: the codes are sorted, so that each table row has its share of the batch side by side,
and one program sums it in that order. Otherwise atomic additions, in whatever order they arrive.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from lutcc.schedules.triton.jit import jit
from lutcc.schedules.triton.rows import as_rows, next_power_of_two, sum_dtype, sum_type
from lutcc.schedules.triton.target import Target, current_target


@dataclass(frozen=True, slots=True)
class GradConfig:
    """Tiles of the gradients.

    Attributes
    ----------
    rows, columns
        Of the gradient of the scores: rows per program, and columns whose products are summed
        together.
    share
        Of the gradient of the tables: rows of the batch per step.
    width
        Of the gradient of the tables: columns per program.
    unroll
        Codes whose loads are in flight together.
    num_warps
        Warps per program.
    """

    rows: int
    columns: int
    share: int
    width: int
    unroll: int = 2
    num_warps: int = 4


def choose_config(outputs: int, per_entry: int, itemsize: int, target: Target) -> GradConfig:
    """Return the config for tables of ``outputs`` columns, each row taken ``per_entry`` times.

    Examples
    --------
    >>> choose_config(512, 128, 2, Target("sm_90", "cuda"))
    GradConfig(rows=16, columns=512, share=16, width=128, unroll=2, num_warps=4)
    >>> choose_config(1024, 4, 2, Target("sm_90", "cuda"))
    GradConfig(rows=8, columns=1024, share=2, width=512, unroll=2, num_warps=4)
    """
    whole = next_power_of_two(outputs)
    columns = min(1024, whole)
    rows = max(4, min(64, (8192 if itemsize <= 4 else 4096) // columns))
    share = min(16, next_power_of_two(max(1, per_entry // 2)))
    # At least a cache line or two of each row, and 16 bytes for each of 128 threads.
    width = min(whole, max(256, 2048 // share) // itemsize)
    if target.backend == "interpreter":
        columns, rows, share = min(columns, 64), 8, min(share, 8)
    return GradConfig(rows, columns, share, width)


@jit
def score_grad_kernel(
    grad,
    codes,
    tables,
    out,
    rows,
    count,
    entries,
    outputs,
    grad_stride,
    codes_stride,
    NEIGHBORS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
    UNROLL: tl.constexpr,
    SUM: tl.constexpr,
):
    """Write the products of each row's gradient with its table rows; WHOLE: one tile of columns."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = r < rows
    r = r.to(tl.int64)
    m = tl.arange(0, COLUMNS)[None, :]
    g = tl.zeros((ROWS, COLUMNS), SUM)
    if WHOLE:
        mask = inside[:, None] & (m < outputs)
        g = tl.load(grad + r[:, None] * grad_stride + m, mask=mask, other=0.0).to(SUM)
    for start in range(0, count, UNROLL):
        for u in tl.static_range(UNROLL):
            e = start + u
            here = inside & (e < count)
            code = tl.load(codes + r * codes_stride + e, mask=here, other=0)
            valid = (code >= 0) & (code < entries)
            table = e // NEIGHBORS
            row = table.to(tl.int64) * entries + tl.where(valid, code, 0)
            row = row[:, None] * outputs
            ok = (here & valid)[:, None]
            if WHOLE:
                v = tl.load(tables + row + m, mask=ok & (m < outputs), other=0.0)
                product = g * v.to(SUM)
            else:
                product = tl.zeros((ROWS, COLUMNS), SUM)
                for first in range(0, outputs, COLUMNS):
                    c = first + m
                    mask = ok & (c < outputs)
                    part = tl.load(grad + r[:, None] * grad_stride + c, mask=mask, other=0.0)
                    v = tl.load(tables + row + c, mask=mask, other=0.0)
                    product += part.to(SUM) * v.to(SUM)
            total = tl.where(valid, tl.sum(product, 1), float("nan"))
            tl.store(out + r * count + e, total.to(out.dtype.element_ty), mask=here)


@jit
def table_grad_kernel(
    order,
    starts,
    grad,
    scores,
    out,
    count,
    outputs,
    grad_stride,
    scores_stride,
    buckets,
    SHARE: tl.constexpr,
    WIDTH: tl.constexpr,
    INDEX: tl.constexpr,
    SUM: tl.constexpr,
):
    """Sum one table row's share of the batch: from starts[b] up to starts[b + 1] in ``order``."""
    # One stretch of columns after the other: that of the gradient fits into L2.
    bucket = tl.program_id(0) % buckets
    m = (tl.program_id(0) // buckets) * WIDTH + tl.arange(0, WIDTH)
    wanted = (m < outputs)[None, :]
    low = tl.load(starts + bucket)
    high = tl.load(starts + bucket + 1)
    total = tl.zeros((SHARE, WIDTH), SUM)
    for first in range(low, high, SHARE):
        position = first + tl.arange(0, SHARE)
        inside = position < high
        flat = tl.load(order + position, mask=inside, other=0).to(INDEX)
        r = (flat // count).to(tl.int64)
        e = flat % count
        score = tl.load(scores + r * scores_stride + e, mask=inside, other=0.0).to(SUM)
        g = tl.load(
            grad + r[:, None] * grad_stride + m[None, :],
            mask=inside[:, None] & wanted,
            other=0.0,
        )
        total += score[:, None] * g.to(SUM)
    target = out + bucket.to(tl.int64) * outputs + m
    tl.store(target, tl.sum(total, 0).to(out.dtype.element_ty), mask=m < outputs)


@jit
def table_grad_atomic_kernel(
    codes,
    scores,
    grad,
    out,
    rows,
    count,
    entries,
    outputs,
    codes_stride,
    scores_stride,
    grad_stride,
    tiles,
    NEIGHBORS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    SUM: tl.constexpr,
):
    """Add a tile of the batch to the table rows it took, code after code."""
    m = (tl.program_id(0) % tiles) * WIDTH + tl.arange(0, WIDTH)
    r = (tl.program_id(0) // tiles) * ROWS + tl.arange(0, ROWS)
    inside = r < rows
    wanted = inside[:, None] & (m < outputs)[None, :]
    r = r.to(tl.int64)
    g = tl.load(grad + r[:, None] * grad_stride + m[None, :], mask=wanted, other=0.0).to(SUM)
    for e in range(count):
        code = tl.load(codes + r * codes_stride + e, mask=inside, other=0)
        score = tl.load(scores + r * scores_stride + e, mask=inside, other=0.0).to(SUM)
        valid = (code >= 0) & (code < entries)
        table = e // NEIGHBORS
        row = table.to(tl.int64) * entries + tl.where(valid, code, 0)
        tl.atomic_add(
            out + row[:, None] * outputs + m[None, :],
            score[:, None] * g,
            mask=wanted & valid[:, None],
            sem="relaxed",
        )


def weighted_gather_backward(
    grad: torch.Tensor,
    codes: torch.Tensor,
    scores: torch.Tensor,
    tables: torch.Tensor,
    deterministic: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of the scores and of the tables.

    Parameters
    ----------
    grad
        (..., M), dtype of the scores.
    codes, scores, tables
        As they were given to :func:`lutcc.schedules.triton.weighted_gather.weighted_gather`.
    deterministic
        Whether the tables' gradient is summed in a fixed order.

    Returns
    -------
    tuple of torch.Tensor
        (..., H*J) in the dtype of the scores, and (H, K, M) in that of the tables; for int8 tables,
        which are not trained, an empty one. Sums are in float32 (float64). A code outside its table
        makes its score's gradient NaN and adds nothing to the tables'.

    Examples
    --------
    >>> codes, scores = torch.zeros(2, 1).int().cuda(), torch.ones(2, 1).cuda()  # doctest: +SKIP
    >>> grad, tables = torch.ones(2, 9).cuda(), torch.ones(1, 2, 9).cuda()  # doctest: +SKIP
    >>> [g.shape for g in weighted_gather_backward(grad, codes, scores, tables)]  # doctest: +SKIP
    [torch.Size([2, 1]), torch.Size([1, 2, 9])]
    """
    number, entries, outputs = tables.shape
    flat, weights, rows_grad = as_rows(codes), as_rows(scores), as_rows(grad)
    rows, count = flat.shape
    per_entry = rows * (count // number) // entries
    config = choose_config(outputs, per_entry, grad.element_size(), current_target())
    dscores = scores.new_empty(scores.shape)
    if rows:
        score_grad_kernel[(triton.cdiv(rows, config.rows),)](
            rows_grad,
            flat,
            tables.contiguous(),
            dscores,
            rows,
            count,
            entries,
            outputs,
            rows_grad.stride(0),
            flat.stride(0),
            NEIGHBORS=count // number,
            ROWS=config.rows,
            COLUMNS=config.columns,
            WHOLE=outputs <= config.columns,
            UNROLL=config.unroll,
            SUM=sum_type(scores.dtype),
            num_warps=config.num_warps,
        )
    if not tables.is_floating_point():
        return dscores, grad.new_empty((0,))
    if not rows:
        return dscores, tables.new_zeros(tables.shape)
    way = table_grad if deterministic else _table_grad_atomic
    return dscores, way(rows_grad, flat, weights, tables, config)


def table_grad(
    grad: torch.Tensor,
    codes: torch.Tensor,
    scores: torch.Tensor,
    tables: torch.Tensor,
    config: GradConfig,
) -> torch.Tensor:
    """Return the gradient of the tables, each row's share of the batch summed in its order."""
    number, entries, outputs = tables.shape
    count = codes.shape[1]
    buckets = number * entries
    first = torch.arange(count, dtype=torch.int32, device=codes.device)
    first = first.div(count // number, rounding_mode="floor") * entries
    keys = torch.where((codes >= 0) & (codes < entries), codes + first, buckets).flatten()
    if buckets < 2**16:  # 16 bits sort in half the passes
        keys, order = torch.sort((keys - 2**15).to(torch.int16), stable=True)
        keys = keys.to(torch.int32) + 2**15
    else:
        keys, order = torch.sort(keys, stable=True)
    bounds = torch.arange(buckets + 1, dtype=torch.int32, device=codes.device)
    starts = torch.searchsorted(keys, bounds, out_int32=order.numel() < 2**31)
    out = tables.new_empty(tables.shape)
    tiles = triton.cdiv(outputs, config.width)
    table_grad_kernel[(buckets * tiles,)](
        order,
        starts,
        grad,
        scores,
        out,
        count,
        outputs,
        grad.stride(0),
        scores.stride(0),
        buckets,
        SHARE=config.share,
        WIDTH=config.width,
        INDEX=tl.int32 if order.numel() < 2**31 else tl.int64,
        SUM=sum_type(grad.dtype),
        num_warps=config.num_warps,
    )
    return out


def _table_grad_atomic(
    grad: torch.Tensor,
    codes: torch.Tensor,
    scores: torch.Tensor,
    tables: torch.Tensor,
    config: GradConfig,
) -> torch.Tensor:
    number, entries, outputs = tables.shape
    rows, count = codes.shape
    out = torch.zeros(tables.shape, dtype=sum_dtype(grad.dtype), device=tables.device)
    tiles = triton.cdiv(outputs, config.width)
    step = config.rows
    table_grad_atomic_kernel[(triton.cdiv(rows, step) * tiles,)](
        codes,
        scores,
        grad,
        out,
        rows,
        count,
        entries,
        outputs,
        codes.stride(0),
        scores.stride(0),
        grad.stride(0),
        tiles,
        NEIGHBORS=count // number,
        ROWS=step,
        WIDTH=config.width,
        SUM=sum_type(grad.dtype),
        num_warps=config.num_warps,
    )
    return out.to(tables.dtype)
