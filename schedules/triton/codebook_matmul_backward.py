"""Gradients of ``codebook_matmul``.

Of the input: for at most 256 rows weights are looked up on their way into the product, as in the
forward kernel; above the matrix is written once and cuBLAS multiplies. The same counts hold.

Of codebooks and scales, for 4096^2 weights, as estimates (nothing here was timed on a GPU): the
gradient of the matrix itself is one dense product in the dtype of x, 34 MB in bfloat16 written and
read, 34 us at an A100's 2.0 TB/s and 20 us at an H100's 3.35 TB/s. For at most 64 rows that product
is made tile by tile where it is added up, and never written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lutcc.schedules.triton.codebook_dequantize import expand
from lutcc.schedules.triton.codebook_matmul import FUSED_ROWS, choose_config
from lutcc.schedules.triton.codebook_sums import Ending, add_parts, finish, splits_of
from lutcc.schedules.triton.codebook_table_grad import entry_sums, table_gradients
from lutcc.schedules.triton.codebook_tables import Weights, weights_tile
from lutcc.schedules.triton.jit import jit
from lutcc.schedules.triton.rows import as_rows, element_type, sum_dtype, sum_type
from lutcc.schedules.triton.target import current_target, product_precision

#: Rows of x from which on the gradient of the matrix is written out.
FUSED_GRADIENT_ROWS = 64


@jit
def codebook_input_grad_kernel(
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
    grad,
    order,
    out,
    count,
    grad_row,
    row_tiles,
    splits,
    BITS: tl.constexpr,
    WORDS: tl.constexpr,
    BOOK_SEGMENTS: tl.constexpr,
    SCALE_SEGMENTS: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    DEPTH: tl.constexpr,
    OPERAND: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write a tile of columns of some rows, or of the parts (splits, count, columns) of it."""
    n = tl.program_id(0) % row_tiles * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(0) // row_tiles % splits
    first = tl.program_id(0) // row_tiles // splits * DEPTH
    k = first + tl.arange(0, DEPTH)
    grad_rows = grad + n.to(tl.int64)[None, :] * grad_row
    total = tl.zeros((DEPTH, ROWS), SUM)
    for start in range(split * OUTPUTS, rows, splits * OUTPUTS):
        m = start + tl.arange(0, OUTPUTS)
        here = m < rows
        source = m
        taken = here
        if HAS_ORDER:
            source = tl.load(order + m, mask=here, other=0)
            taken = here & (source >= 0) & (source < rows)
        g = tl.load(
            grad_rows + source[:, None], mask=taken[:, None] & (n < count)[None, :], other=0.0
        )
        w = weights_tile(
            packed,
            codebooks,
            scales,
            m.to(tl.int64),
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
            SUM,
        )
        w = tl.trans(w.to(OPERAND))
        total = tl.dot(w, g, total, input_precision=PRECISION, out_dtype=SUM)
    if SPLIT:
        line = (split.to(tl.int64) * count + n) * columns
        inside = (k < columns)[:, None] & (n < count)[None, :]
        tl.store(out + line[None, :] + k[:, None], total, mask=inside)
    else:
        finish(total, n, k, out, out, out, out, out, count, columns, False, False, False)


def codebook_matmul_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    indices: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    order: torch.Tensor | None,
    bits: int,
    segment_size: int,
    for_x: bool,
    for_tables: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of x, codebooks and scales; empty ones of what is not asked for.

    Parameters
    ----------
    grad
        (..., M), dtype of x: the gradient of the result.
    x, indices, codebooks, scales, order, bits, segment_size
        As they were given to :func:`lutcc.schedules.triton.codebook_matmul.codebook_matmul`.
    for_x, for_tables
        Whether the gradient of x, and those of codebooks and scales, are computed.

    Notes
    -----
    Sums are in float32 (float64), but the gradient of the matrix that codebooks and scales get
    theirs from is rounded to the dtype of x where there are many rows, as that of any dense layer.

    Source: Yvinec et al., JLCM, equations 5 and 6, differentiated.

    Examples
    --------
    >>> x, indices = torch.ones(4, 3).cuda(), torch.zeros(2, 1).byte().cuda()  # doctest: +SKIP
    >>> books, one = torch.ones(1, 4).cuda(), torch.ones(1).cuda()  # doctest: +SKIP
    >>> grad, rest = torch.ones(4, 2).cuda(), (None, 2, 0, True, True)  # doctest: +SKIP
    >>> codebook_matmul_backward(grad, x, indices, books, one, *rest)[1]  # doctest: +SKIP
    tensor([[24., 0., 0., 0.]], device='cuda:0')
    """
    flat, grads = as_rows(x), as_rows(grad)
    count, columns = flat.shape
    weights = Weights.of(indices, codebooks, scales, bits, columns, segment_size)
    dx, dcodebooks, dscales = (t.new_empty((0,)) for t in (x, codebooks, scales))
    if for_x:
        dx = _input_grad(grads, weights, order).reshape(x.shape)
    if for_tables and count == 0:
        dcodebooks, dscales = torch.zeros_like(codebooks), torch.zeros_like(scales)
    elif for_tables:
        if count <= FUSED_GRADIENT_ROWS:
            sums = entry_sums(weights, grads, x=flat, order=order)
        else:
            sums = entry_sums(weights, grads.t() @ flat, order=order)
        dcodebooks, dscales = table_gradients(sums, weights, codebooks, scales)
    return dx, dcodebooks, dscales


def _input_grad(grad: torch.Tensor, weights: Weights, order: torch.Tensor | None) -> torch.Tensor:
    count, columns, rows = grad.shape[0], weights.columns, weights.rows
    if count > FUSED_ROWS:
        return grad @ expand(weights, grad.dtype, order=order)
    out = grad.new_empty((count, columns))
    if not count:
        return out
    target = current_target()
    config = choose_config(grad.element_size(), count, weights.run, target)
    row_tiles, column_tiles = triton.cdiv(count, config.rows), triton.cdiv(columns, config.depth)
    splits = splits_of(row_tiles * column_tiles, rows, config.outputs)
    sums = sum_dtype(grad.dtype)
    parts = out if splits == 1 else out.new_empty((splits, count, columns), dtype=sums)
    codebook_input_grad_kernel[(row_tiles * column_tiles * splits,)](
        *weights.arguments(),
        grad,
        grad if order is None else order.contiguous(),
        parts,
        count,
        grad.stride(0),
        row_tiles,
        splits,
        **weights.constants(),
        HAS_ORDER=order is not None,
        SPLIT=splits > 1,
        ROWS=config.rows,
        OUTPUTS=config.outputs,
        DEPTH=config.depth,
        OPERAND=element_type(grad.dtype),
        SUM=sum_type(grad.dtype),
        PRECISION=product_precision(grad.dtype, target),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    if splits > 1:
        add_parts(parts, out, Ending())
    return out
