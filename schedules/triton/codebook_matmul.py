"""``codebook_matmul``: weights are looked up in registers, on their way into a product.

Counts for a matrix of 4096^2 with 4-bit indices, as estimates (nothing here was timed on a GPU):
8.4 MB of indices are read instead of 33.6 MB of bfloat16, 4.2 us instead of 17 us at an A100's 2.0
TB/s, and 2.5 us instead of 10 us at an H100's 3.35 TB/s. The 16.8 million look-ups take 3.7 us and
2.4 us if an SM does 32 a cycle, and unpacking some 10 integer operations a weight, 9 us and 6 us at
64 and 128 a cycle of an SM. The product itself, 0.5 GFLOP for 16 rows, is 2 us of tensor cores. So
few rows are bound by unpacking, at one third to two thirds of a dense layer's time; with 3 and 2
bits only the reads get less.

A tile of weights is unpacked once per tile of at most 128 rows of x. For more than 256 rows that is
more work than to write the matrix once (13 to 21 us) and to multiply as a dense layer does, 34
GFLOP and 45 us of an H100 at 1024 rows: that is what is done then, by cuBLAS where it has the
arithmetic. Weights are the first operand, which a Hopper's tensor cores take from registers.

Few tiles leave most of a GPU idle: then each has its sum over the columns split, and a second
kernel adds the parts in their order. No sum depends on which program ends first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from lutcc.schedules.triton.codebook_dequantize import expand
from lutcc.schedules.triton.codebook_sums import Ending, add_parts, finish, splits_of
from lutcc.schedules.triton.codebook_tables import Weights, quantize_rows, weights_tile
from lutcc.schedules.triton.jit import jit
from lutcc.schedules.triton.rows import as_rows, element_type, next_power_of_two, sum_dtype
from lutcc.schedules.triton.sampled_columns import TURN, tile_of
from lutcc.schedules.triton.target import Target, current_target, product_precision

#: Rows of x from which on the matrix is written out first.
FUSED_ROWS = 256


@dataclass(frozen=True, slots=True)
class CodebookConfig:
    """Tiles of a product: rows of x, outputs, and columns of a step."""

    rows: int
    outputs: int
    depth: int
    num_warps: int = 4
    num_stages: int = 3


def choose_config(itemsize: int, rows: int, run: int, target: Target) -> CodebookConfig:
    """Return the tiles for ``rows`` rows of operands of ``itemsize`` bytes.

    A step is inside of one segment: it takes no more than ``run`` columns.

    Examples
    --------
    >>> choose_config(2, 5, 32, Target("sm_90", "cuda"))
    CodebookConfig(rows=16, outputs=64, depth=32, num_warps=8, num_stages=3)
    """
    if target.backend == "interpreter":
        return CodebookConfig(16, 16, 32, num_stages=1)  # tests are of small matrices
    stages = 2 if target.backend == "hip" else 3
    height = min(128, max(16, next_power_of_two(rows)))
    if itemsize <= 2:
        return CodebookConfig(height, 64, min(64, run), 8, stages)
    if itemsize == 4:
        return CodebookConfig(min(64, height), 64, 32, 8, 2)
    return CodebookConfig(16, 32, 16, num_stages=1)


def dense_config(itemsize: int, target: Target) -> CodebookConfig:
    """Return the tiles for many rows, and weights that were written out.

    Examples
    --------
    >>> dense_config(1, Target("sm_90", "cuda"))
    CodebookConfig(rows=128, outputs=128, depth=128, num_warps=8, num_stages=3)
    """
    if target.backend == "interpreter":
        return CodebookConfig(16, 16, 32, num_stages=1)
    if target.backend == "hip":
        return CodebookConfig(128, 128, 64 // itemsize, 8, 2)
    return CodebookConfig(128, 128, 128 // itemsize, 8, 3)


@jit
def codebook_product_kernel(
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
    x,
    order,
    bias,
    row_units,
    units,
    y,
    count,
    x_row,
    row_tiles,
    output_tiles,
    splits,
    BITS: tl.constexpr,
    WORDS: tl.constexpr,
    BOOK_SEGMENTS: tl.constexpr,
    SCALE_SEGMENTS: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    INTEGER: tl.constexpr,
    EXPANDED: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    DEPTH: tl.constexpr,
    TURN: tl.constexpr,
    WIDE: tl.constexpr,
    OPERAND: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write a tile of outputs of some rows of x, or of the parts (splits, count, rows) of its sums.

    With EXPANDED, ``packed`` is the matrix itself.
    """
    tiles = row_tiles * output_tiles
    split = tl.program_id(0) // tiles
    output_tile, row_tile = tile_of(tl.program_id(0) % tiles, output_tiles, row_tiles, TURN)
    n = row_tile * ROWS + tl.arange(0, ROWS)
    m = output_tile * OUTPUTS + tl.arange(0, OUTPUTS)
    here = m < rows
    row = m.to(tl.int64)
    x_columns = x + n.to(tl.int64)[None, :] * x_row
    total = tl.zeros((OUTPUTS, ROWS), SUM)
    for first in range(split * DEPTH, columns, splits * DEPTH):
        k = first + tl.arange(0, DEPTH)
        v = tl.load(
            x_columns + k[:, None], mask=(k < columns)[:, None] & (n < count)[None, :], other=0
        )
        if EXPANDED:
            w = tl.load(
                packed + row[:, None] * columns + k[None, :],
                mask=here[:, None] & (k < columns)[None, :],
                other=0,
            )
        else:
            w = weights_tile(
                packed,
                codebooks,
                scales,
                row,
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
                DEPTH,
                WIDE,
            )
        total = tl.dot(
            w.to(OPERAND), v.to(OPERAND), total, input_precision=PRECISION, out_dtype=SUM
        )
    if SPLIT:
        line = (split.to(tl.int64) * count + n) * rows
        inside = here[:, None] & (n < count)[None, :]
        tl.store(y + line[None, :] + m[:, None], total, mask=inside)
    else:
        finish(
            total,
            n,
            m,
            order,
            bias,
            row_units,
            units,
            y,
            count,
            rows,
            HAS_ORDER,
            HAS_BIAS,
            INTEGER,
        )


def multiply(
    x: torch.Tensor,
    weights: Weights,
    y: torch.Tensor,
    ending: Ending,
    operand: torch.dtype,
    expanded: torch.Tensor | None = None,
) -> None:
    """Write ``y`` (N, M) = ``x`` (N, K) times the matrix, which may have been written out before.

    Both are rounded to ``operand``, or are int8.
    """
    (count, columns), rows = x.shape, weights.rows
    target = current_target()
    integer = operand is torch.int8
    sums = torch.int32 if integer else sum_dtype(x.dtype)
    if expanded is None:
        config = choose_config(operand.itemsize, count, weights.run, target)
    else:
        config = dense_config(operand.itemsize, target)
    row_tiles, output_tiles = triton.cdiv(count, config.rows), triton.cdiv(rows, config.outputs)
    splits = 1
    if expanded is None:
        splits = splits_of(row_tiles * output_tiles, columns, config.depth)
    out = y if splits == 1 else y.new_empty((splits, count, rows), dtype=sums)
    packed, *rest = weights.arguments()
    codebook_product_kernel[(row_tiles * output_tiles * splits,)](
        packed if expanded is None else expanded,
        *rest,
        x,
        *ending.arguments(y),
        out,
        count,
        x.stride(0),
        row_tiles,
        output_tiles,
        splits,
        **weights.constants(),
        **ending.constants(),
        EXPANDED=expanded is not None,
        SPLIT=splits > 1,
        ROWS=config.rows,
        OUTPUTS=config.outputs,
        DEPTH=config.depth,
        TURN=TURN,
        WIDE=tl.float64 if x.dtype is torch.float64 else tl.float32,
        OPERAND=tl.int8 if integer else element_type(operand),
        SUM=tl.int32 if integer else element_type(sums),
        PRECISION="ieee" if integer else product_precision(operand, target),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    if splits > 1:
        add_parts(out, y, ending)


def codebook_matmul(
    x: torch.Tensor,
    indices: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    order: torch.Tensor | None,
    bias: torch.Tensor | None,
    bits: int,
    segment_size: int = 0,
    compute: str = "float32",
) -> torch.Tensor:
    """Apply a linear layer whose weights are indices into codebooks.

    Parameters
    ----------
    x
        (..., K) float16, bfloat16, float32 or float64.
    indices, codebooks, scales, order, bias, bits, segment_size
        As of :func:`lutcc.ops.codebook_matmul`.
    compute
        "float32": weights are rounded to the dtype of x; "bfloat16": both are rounded to bfloat16;
        "int8": both to integers, whose sums are exact. Sums are in float32 (float64 for float64).

    Returns
    -------
    torch.Tensor
        (..., M), dtype of x. An order that is no permutation leaves outputs unwritten.

    Notes
    -----
    Source: Yvinec et al., JLCM, equations 1, 2 and 4.

    Examples
    --------
    >>> x, indices = torch.ones(4, 3).cuda(), torch.zeros(2, 1).byte().cuda()  # doctest: +SKIP
    >>> books, scales = torch.ones(1, 4).cuda(), torch.ones(1).cuda()  # doctest: +SKIP
    >>> codebook_matmul(x, indices, books, scales, None, None, 2)[0]  # doctest: +SKIP
    tensor([3., 3.], device='cuda:0')
    """
    flat = as_rows(x)
    count, columns = flat.shape
    weights = Weights.of(indices, codebooks, scales, bits, columns, segment_size)
    y = x.new_empty((count, weights.rows))
    many = count > FUSED_ROWS
    if not count:
        pass
    elif compute == "int8":
        q, row_units = quantize_rows(flat)
        integers, units = weights.as_integers()
        expanded = expand(integers, torch.int8) if many else None
        ending = Ending(order, bias, row_units, units)
        multiply(q, integers, y, ending, torch.int8, expanded)
    else:
        operand = torch.bfloat16 if compute == "bfloat16" else x.dtype
        if many and operand is x.dtype:
            y = _by_cublas(flat, weights, order, bias)
        else:
            expanded = expand(weights, operand) if many else None
            multiply(flat, weights, y, Ending(order, bias), operand, expanded)
    return y.reshape(*x.shape[:-1], weights.rows)


def _by_cublas(
    x: torch.Tensor, weights: Weights, order: torch.Tensor | None, bias: torch.Tensor | None
) -> torch.Tensor:
    matrix = expand(weights, x.dtype, order=order)
    if bias is not None:
        bias = bias.to(x.dtype)
        if order is not None:
            # outputs are all different: nothing is written twice
            bias = torch.empty_like(bias).scatter_(0, order.long(), bias)
    return torch.nn.functional.linear(x, matrix, bias)
