"""``weighted_gather``: the weighted sum of one table row per code.

A program sums a tile of rows and columns over all codes. Each thread loads 16 bytes of a table row;
tiles are narrow (a cache line or two) and neighbours in time work on the same columns, so that the
part of a table that a program reads is still in L1 when its other rows need it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from lutcc.schedules.triton.jit import jit
from lutcc.schedules.triton.rows import as_rows, next_power_of_two, sum_type
from lutcc.schedules.triton.target import Target, current_target


@dataclass(frozen=True, slots=True)
class GatherConfig:
    """Tile of a gather.

    Attributes
    ----------
    rows, columns
        Outputs per program, powers of two.
    unroll
        Codes whose loads are in flight together.
    num_warps
        Warps per program.
    """

    rows: int
    columns: int
    unroll: int = 4
    num_warps: int = 4


def choose_config(outputs: int, itemsize: int, target: Target) -> GatherConfig:
    """Return the config for tables (H, K, ``outputs``) of ``itemsize`` bytes per number.

    Examples
    --------
    >>> choose_config(512, 2, Target("sm_90", "cuda"))
    GatherConfig(rows=32, columns=128, unroll=4, num_warps=4)
    """
    columns = min(256 // itemsize, next_power_of_two(outputs))
    rows = 8 if target.backend == "interpreter" else max(16, min(128, 4096 // columns))
    return GatherConfig(rows, columns)


@jit
def weighted_gather_kernel(
    codes,
    scores,
    tables,
    y,
    rows,
    count,
    entries,
    outputs,
    codes_stride,
    scores_stride,
    NEIGHBORS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNROLL: tl.constexpr,
    SUM: tl.constexpr,
    ROUND_SCORES: tl.constexpr,
):
    """Sum ``count`` rows of ``tables`` for a tile; a code that is no entry's makes the row NaN."""
    blocks = tl.cdiv(rows, ROWS)
    r = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    inside = r < rows
    r = r.to(tl.int64)
    m = (tl.program_id(0) // blocks) * COLUMNS + tl.arange(0, COLUMNS)
    wanted = (m < outputs)[None, :]
    total = tl.zeros((ROWS, COLUMNS), SUM)
    for start in range(0, count, UNROLL):
        for u in tl.static_range(UNROLL):
            e = start + u
            here = inside & (e < count)
            code = tl.load(codes + r * codes_stride + e, mask=here, other=0)
            score = tl.load(scores + r * scores_stride + e, mask=here, other=0.0)
            if ROUND_SCORES:
                score = score.to(tl.float32).to(tl.bfloat16)
            valid = (code >= 0) & (code < entries)
            table = e // NEIGHBORS
            row = table.to(tl.int64) * entries + tl.where(valid, code, 0)
            v = tl.load(
                tables + row[:, None] * outputs + m[None, :],
                mask=(here & valid)[:, None] & wanted,
                other=0.0,
            )
            score = tl.where(valid, score.to(SUM), float("nan"))
            total += score[:, None] * v.to(SUM)
    out = y + r[:, None] * outputs + m[None, :]
    tl.store(out, total.to(y.dtype.element_ty), mask=inside[:, None] & wanted)


@jit
def integer_gather_kernel(
    codes,
    weights,
    unit,
    tables,
    y,
    rows,
    count,
    entries,
    outputs,
    codes_stride,
    NEIGHBORS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sum rows of int8 tables in int32; the only rounding is of the sum, and of its product."""
    blocks = tl.cdiv(rows, ROWS)
    r = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    inside = r < rows
    r = r.to(tl.int64)
    m = (tl.program_id(0) // blocks) * COLUMNS + tl.arange(0, COLUMNS)
    wanted = (m < outputs)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.int32)
    for e in range(count):
        code = tl.load(codes + r * codes_stride + e, mask=inside, other=0)
        weight = tl.load(weights + r * count + e, mask=inside, other=0).to(tl.int32)
        valid = (code >= 0) & (code < entries)
        table = e // NEIGHBORS
        row = table.to(tl.int64) * entries + tl.where(valid, code, 0)
        v = tl.load(
            tables + row[:, None] * outputs + m[None, :],
            mask=(inside & valid)[:, None] & wanted,
            other=0,
        )
        total += weight[:, None] * v.to(tl.int32)
    scale = tl.load(unit + r, mask=inside, other=0.0)
    out = y + r[:, None] * outputs + m[None, :]
    value = total.to(tl.float32) * scale[:, None]
    tl.store(out, value.to(y.dtype.element_ty), mask=inside[:, None] & wanted)


def weighted_gather(
    codes: torch.Tensor, scores: torch.Tensor, tables: torch.Tensor, score_dtype: str = "float32"
) -> torch.Tensor:
    """Sum one table row per code, each times its score.

    Parameters
    ----------
    codes
        (..., H*J) int32, below K.
    scores
        (..., H*J) float16, bfloat16, float32 or float64.
    tables
        (H, K, M) float16, bfloat16, float32, float64 or int8.
    score_dtype
        "bfloat16" rounds the scores to bfloat16 first.

    Returns
    -------
    torch.Tensor
        (..., M), dtype of the scores, summed in float32 (float64); NaN for a row with a code
        outside its table. With int8 tables exact in integers: the bits of every other backend.

    Notes
    -----
    Source: Zeng et al., LookupFFN, equations 4 and 7.

    Examples
    --------
    >>> codes, scores = torch.zeros(2, 1).int().cuda(), torch.ones(2, 1).cuda()  # doctest: +SKIP
    >>> weighted_gather(codes, scores, torch.ones(1, 2, 9).cuda()).shape  # doctest: +SKIP
    torch.Size([2, 9])
    """
    count, (number, entries, outputs) = codes.shape[-1], tables.shape
    flat = as_rows(codes)
    rows = flat.shape[0]
    y = scores.new_empty((rows, outputs))
    if rows:
        tables = tables.contiguous()
        config = choose_config(outputs, tables.element_size(), current_target())
        grid = (triton.cdiv(rows, config.rows) * triton.cdiv(outputs, config.columns),)
        if tables.dtype is torch.int8:
            weights, unit = quantize_scores(as_rows(scores).float())
            invalid = ((flat < 0) | (flat >= entries)).any(1)
            integer_gather_kernel[grid](
                flat,
                weights,
                unit.masked_fill(invalid, float("nan")),
                tables,
                y,
                rows,
                count,
                entries,
                outputs,
                flat.stride(0),
                NEIGHBORS=count // number,
                ROWS=config.rows,
                COLUMNS=config.columns,
                num_warps=config.num_warps,
            )
        else:
            weights = as_rows(scores)
            weighted_gather_kernel[grid](
                flat,
                weights,
                tables,
                y,
                rows,
                count,
                entries,
                outputs,
                flat.stride(0),
                weights.stride(0),
                NEIGHBORS=count // number,
                ROWS=config.rows,
                COLUMNS=config.columns,
                UNROLL=config.unroll,
                SUM=sum_type(scores.dtype),
                ROUND_SCORES=score_dtype == "bfloat16",
                num_warps=config.num_warps,
            )
    return y.reshape(*codes.shape[:-1], outputs)


def quantize_scores(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row's scores as integers in -127..127 (N, E) int8, and its unit (N,) float32.

    Every step is one float32 operation, as :mod:`lutcc.ir.ops.weighted_gather` defines it; torch's
    are rounded as IEEE says on every device.

    Examples
    --------
    >>> q, unit = quantize_scores(torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]]))
    >>> q.tolist(), unit.tolist()
    ([[64, -127, 32], [0, 0, 0]], [0.015748031437397003, 0.0])
    """
    largest = scores.abs().amax(1)
    # A tensor, not a number: torch turns a division by a number into a product on a GPU.
    steps = largest.new_full((), 127.0)
    inverse = torch.div(steps, largest)
    usable = torch.isfinite(largest) & torch.isfinite(inverse)
    rounded = torch.round(scores * torch.where(usable, inverse, 0.0)[:, None])
    weights = torch.where(usable[:, None], rounded, 0.0).to(torch.int8)
    return weights, torch.div(largest, steps)
