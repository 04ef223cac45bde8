"""``sparse_add``: the product with a sparse matrix, compressed by rows, added to what is there.

A program has a tile of outputs and of rows, and gathers the column of x that each output's next
value takes. More than 16 rows are transposed first, so that what is gathered lies side by side in
memory. Nothing is added by atomics: each output's values are taken in their order, and so are each
column's in the gradient, after a stable sort.

Counts for 4096 outputs of 41 values (1 %) in bfloat16, as estimates (nothing here was timed on a
GPU): 16 rows of x gather 2.7 million times 32 bytes from L2, 86 MB, some 30 us of an A100 and 20 us
of an H100; 4096 rows, transposed, 1.4 GB, some 0.3 ms of either. A dense layer of 4096 rows takes
137 GFLOP, 0.45 ms and 0.2 ms: outliers of many rows are as dear as a dense layer on an H100, whose
weights could hold them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lutcc.schedules.triton.jit import jit
from lutcc.schedules.triton.rows import as_rows, next_power_of_two, sum_type
from lutcc.schedules.triton.target import current_target

#: Rows from which on x is transposed.
TRANSPOSED_ROWS = 16


@jit
def sparse_add_kernel(
    base,
    x,
    starts,
    columns,
    values,
    y,
    count,
    outputs,
    width,
    stored,
    base_row,
    x_row,
    x_column,
    output_tiles,
    HAS_BASE: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    SUM: tl.constexpr,
):
    """Write a tile of y = base + x @ sparse.T; an output with a column that is none is NaN."""
    m = tl.program_id(0) % output_tiles * OUTPUTS + tl.arange(0, OUTPUTS)
    n = (tl.program_id(0) // output_tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = m < outputs
    low = tl.maximum(tl.load(starts + m, mask=here, other=0), 0)
    high = tl.minimum(tl.load(starts + m + 1, mask=here, other=0), stored)
    x_rows = x + n[None, :] * x_row
    total = tl.zeros((OUTPUTS, ROWS), SUM)
    for i in range(tl.max(high - low, 0)):
        z = low + i
        there = z < high
        column = tl.load(columns + z, mask=there, other=0)
        value = tl.load(values + z, mask=there, other=0.0).to(SUM)
        valid = (column >= 0) & (column < width)
        v = tl.load(
            x_rows + column.to(tl.int64)[:, None] * x_column,
            mask=(there & valid)[:, None] & (n < count)[None, :],
            other=0.0,
        )
        value = tl.where(valid, value, float("nan"))
        total += tl.where(there[:, None], value[:, None] * v.to(SUM), 0.0)
    inside = here[:, None] & (n < count)[None, :]
    if HAS_BASE:
        total += tl.load(base + n[None, :] * base_row + m[:, None], mask=inside, other=0.0).to(SUM)
    tl.store(y + n[None, :] * outputs + m[:, None], total.to(y.dtype.element_ty), mask=inside)


@jit
def sparse_value_grad_kernel(
    grad,
    x,
    outputs_of,
    columns,
    out,
    stored,
    count,
    outputs,
    width,
    grad_row,
    grad_column,
    x_row,
    x_column,
    VALUES: tl.constexpr,
    STEP: tl.constexpr,
    SUM: tl.constexpr,
):
    """Write, for some values, the sum over rows of the gradient of its output times its column."""
    z = tl.program_id(0) * VALUES + tl.arange(0, VALUES)
    here = z < stored
    output = tl.load(outputs_of + z, mask=here, other=0).to(tl.int64)
    column = tl.load(columns + z, mask=here, other=0).to(tl.int64)
    valid = here & (output >= 0) & (output < outputs) & (column >= 0) & (column < width)
    total = tl.zeros((VALUES, STEP), SUM)
    for start in range(0, count, STEP):
        n = start + tl.arange(0, STEP).to(tl.int64)
        mask = valid[:, None] & (n < count)[None, :]
        g = tl.load(
            grad + n[None, :] * grad_row + output[:, None] * grad_column, mask=mask, other=0.0
        )
        v = tl.load(x + n[None, :] * x_row + column[:, None] * x_column, mask=mask, other=0.0)
        total += g.to(SUM) * v.to(SUM)
    tl.store(out + z, tl.sum(total, 1).to(out.dtype.element_ty), mask=here)


def sparse_add(
    base: torch.Tensor,
    x: torch.Tensor,
    starts: torch.Tensor,
    columns: torch.Tensor,
    values: torch.Tensor,
) -> torch.Tensor:
    """Add the product with a sparse matrix.

    Parameters
    ----------
    base, x
        (..., M) and (..., K) float16, bfloat16, float32 or float64.
    starts, columns, values
        (M + 1,) int32, (Z,) int32 and (Z,) of any of these dtypes: compressed by rows.

    Returns
    -------
    torch.Tensor
        (..., M), dtype of base, summed in float32 (float64); NaN for an output with a column that
        x does not have.

    Notes
    -----
    Source: Yvinec et al., REx, as in JLCM, section 4.3.

    Examples
    --------
    >>> base, x = torch.ones(1, 2).cuda(), torch.full((1, 1), 7.0).cuda()  # doctest: +SKIP
    >>> starts, columns = (torch.tensor(t).int().cuda() for t in ([0, 0, 1], [0]))  # doctest: +SKIP
    >>> sparse_add(base, x, starts, columns, torch.full((1,), 2.0).cuda())  # doctest: +SKIP
    tensor([[ 1., 15.]], device='cuda:0')
    """
    y = add_product(as_rows(base), as_rows(x), starts, columns, values, base.shape[-1])
    return y.reshape(base.shape)


def add_product(
    base: torch.Tensor | None,
    x: torch.Tensor,
    starts: torch.Tensor,
    columns: torch.Tensor,
    values: torch.Tensor,
    outputs: int,
) -> torch.Tensor:
    """Return (N, ``outputs``): base, if there is one, and the product of x (N, K)."""
    count, width = x.shape
    y = x.new_empty((count, outputs))
    if not y.numel():
        return y
    x = _side_by_side(x)
    small = current_target().backend == "interpreter"
    rows = 16 if small else min(64, next_power_of_two(count))
    height = 16 if small else max(16, min(64, 1024 // rows))
    output_tiles = triton.cdiv(outputs, height)
    sparse_add_kernel[(output_tiles * triton.cdiv(count, rows),)](
        x if base is None else base,
        x,
        starts.contiguous(),
        columns.contiguous(),
        values.contiguous(),
        y,
        count,
        outputs,
        width,
        columns.shape[0],
        0 if base is None else base.stride(0),
        *x.stride(),
        output_tiles,
        HAS_BASE=base is not None,
        ROWS=rows,
        OUTPUTS=height,
        SUM=sum_type(x.dtype),
        num_warps=4,
    )
    return y


def _side_by_side(x: torch.Tensor) -> torch.Tensor:
    """Return x (N, K) with the rows of a column side by side, where there are many."""
    return x.t().contiguous().t() if x.shape[0] > TRANSPOSED_ROWS else x


def sparse_add_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    starts: torch.Tensor,
    columns: torch.Tensor,
    values: torch.Tensor,
    for_x: bool,
    for_values: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of x and of the values; empty ones of what is not asked for.

    Parameters
    ----------
    grad
        (..., M), dtype of x: the gradient of the result, which is also that of base.
    x, starts, columns, values
        As they were given to :func:`sparse_add`.
    for_x, for_values
        Which are computed.

    Examples
    --------
    >>> grad, x = torch.ones(1, 1).cuda(), torch.full((1, 1), 7.0).cuda()  # doctest: +SKIP
    >>> starts, columns = (torch.tensor(t).int().cuda() for t in ([0, 1], [0]))  # doctest: +SKIP
    >>> rest = (starts, columns, torch.ones(1).cuda(), True, True)  # doctest: +SKIP
    >>> sparse_add_backward(grad, x, *rest)[1]  # doctest: +SKIP
    tensor([7.], device='cuda:0')
    """
    flat, grads = as_rows(x), as_rows(grad)
    width, stored = flat.shape[1], columns.shape[0]
    dx, dvalues = x.new_empty((0,)), values.new_empty((0,))
    places = torch.arange(stored, dtype=torch.int32, device=x.device)
    outputs_of = torch.searchsorted(starts, places, right=True, out_int32=True) - 1
    if for_x:
        # the matrix compressed by columns; a column that is none comes before or after all
        keys, order = torch.sort(columns, stable=True)
        bounds = torch.arange(width + 1, dtype=torch.int32, device=x.device)
        begins = torch.searchsorted(keys, bounds, out_int32=True)
        dx = add_product(None, grads, begins, outputs_of[order], values[order], width).reshape(
            x.shape
        )
    if for_values:
        dvalues = torch.empty_like(values)
        if stored:
            grads, flat = _side_by_side(grads), _side_by_side(flat)
            small = current_target().backend == "interpreter"
            height, step = (16, 16) if small else (16, 64)
            sparse_value_grad_kernel[(triton.cdiv(stored, height),)](
                grads,
                flat,
                outputs_of,
                columns.contiguous(),
                dvalues,
                stored,
                flat.shape[0],
                grads.shape[1],
                width,
                *grads.stride(),
                *flat.stride(),
                VALUES=height,
                STEP=step,
                SUM=sum_type(x.dtype),
                num_warps=4,
            )
    return dx, dvalues
