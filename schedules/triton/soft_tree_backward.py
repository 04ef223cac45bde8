"""Gradients of look-ups by trees, as if a row took every leaf with the probability of its path.

A program has a tile of rows and the codebooks of 16 leaves or more. It multiplies the gradient with
their tables, which gives what each leaf is worth to each row, and climbs the trees: a node is worth
the mean of its children by their probabilities, and its threshold shifts weight from one to the
other. What leaves are worth, (N, C, K) numbers, never gets to memory. Sums over rows are of tiles
first, then of these, in a fixed order: no atomics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from lutcc.schedules.triton.jit import jit
from lutcc.schedules.triton.rows import as_rows, next_power_of_two, sum_type
from lutcc.schedules.triton.sparse_add import add_product
from lutcc.schedules.triton.table_sums import table_sums
from lutcc.schedules.triton.target import Target, current_target, product_precision


@dataclass(frozen=True, slots=True)
class SoftTreeConfig:
    """Tiles of the gradients.

    Attributes
    ----------
    rows
        Of the batch per program.
    books
        Codebooks per program.
    step
        Outputs whose products are summed together.
    columns, leaves
        Of the tables' gradient: outputs and entries of tables per program.
    """

    rows: int
    books: int
    step: int
    columns: int
    leaves: int = 64


def choose_config(entries: int, outputs: int, target: Target) -> SoftTreeConfig:
    """Return the config for tables (C, ``entries``, ``outputs``): tiles of products are 16 or more.

    Examples
    --------
    >>> choose_config(16, 512, Target("sm_90", "cuda"))
    SoftTreeConfig(rows=64, books=2, step=32, columns=64, leaves=64)
    >>> choose_config(128, 10, Target("sm_90", "cuda"))
    SoftTreeConfig(rows=32, books=1, step=16, columns=16, leaves=64)
    """
    books = max(1, 32 // entries)
    wide = max(16, next_power_of_two(outputs))
    if target.backend == "interpreter":
        return SoftTreeConfig(16, max(1, 16 // entries), 16, 16, 16)
    rows = 64 if entries * books <= 32 else 32
    return SoftTreeConfig(rows, books, min(32, wide), min(64, wide))


@jit
def distances(
    x, dims, vals, warmth, r, c, inside, codebooks, width, x_row, x_column,
    LEVEL: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """Return (value - threshold) / temperature at the nodes of a level: (ROWS, BOOKS, 2**LEVEL)."""
    NODES: tl.constexpr = 1 << LEVEL
    d = tl.load(dims + c * LEVELS + LEVEL, mask=c < codebooks, other=0)
    there = inside & (d >= 0) & (d < width)
    v = tl.load(x + r * x_row + d.to(tl.int64) * x_column, mask=there, other=0.0)
    nodes = (c[:, :, None] << LEVELS) + NODES + tl.arange(0, NODES)[None, None, :]
    split = tl.load(vals + nodes, mask=(c < codebooks)[:, :, None], other=0.0)
    unit = tl.load(warmth + c, mask=c < codebooks, other=1.0)
    return (v[:, :, None] - split) / unit[:, :, None]


@jit
def turning(z):
    """Return the probability of going right, 1 / (1 + exp(-z)), and its derivative."""
    decay = tl.exp(-tl.abs(z))
    whole = 1.0 / (1.0 + decay)
    return tl.where(z < 0.0, decay * whole, whole), decay * whole * whole


@jit
def reached(
    x, dims, vals, warmth, r, c, inside, codebooks, width, x_row, x_column,
    LEVEL: tl.constexpr, LEVELS: tl.constexpr, ROWS: tl.constexpr, BOOKS: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    """Return the probabilities of getting to the nodes of a level."""
    p = tl.full((ROWS, BOOKS, 1), 1.0, SUM)
    for level in tl.static_range(LEVEL):
        right, _ = turning(
            distances(
                x, dims, vals, warmth, r, c, inside, codebooks, width, x_row, x_column, level,
                LEVELS,
            ).to(SUM)
        )  # fmt: skip
        p = tl.reshape(tl.join(p * (1.0 - right), p * right), (ROWS, BOOKS, 2 << level))
    return p


@jit
def climb(
    worth, x, dims, vals, warmth, dvalues, dvals, r, c, inside, block, codebooks, width, x_row,
    x_column, LEVEL: tl.constexpr, LEVELS: tl.constexpr, ROWS: tl.constexpr, BOOKS: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    """Return what the nodes of a level are worth, and the gradient of log temperatures by rows.

    Writes the gradient of the values compared, and of thresholds the sum over the tile's rows.
    """
    NODES: tl.constexpr = 1 << LEVEL
    z = distances(
        x, dims, vals, warmth, r, c, inside, codebooks, width, x_row, x_column, LEVEL, LEVELS
    ).to(SUM)
    right, slope = turning(z)
    low, high = tl.split(tl.reshape(worth, (ROWS, BOOKS, NODES, 2)))
    p = reached(
        x, dims, vals, warmth, r, c, inside, codebooks, width, x_row, x_column, LEVEL, LEVELS,
        ROWS, BOOKS, SUM,
    )  # fmt: skip
    dz = p * (high - low) * slope
    unit = tl.load(warmth + c, mask=c < codebooks, other=1.0).to(SUM)
    place = dvalues + (r * codebooks + c) * LEVELS + LEVEL
    tl.store(place, (tl.sum(dz, 2) / unit).to(dvalues.dtype.element_ty), mask=inside)
    nodes = (c[:, :, None] << LEVELS) + NODES + tl.arange(0, NODES)[None, None, :]
    total = -tl.sum(tl.where(inside[:, :, None], dz / unit[:, :, None], 0.0), 0)[None, :, :]
    place = dvals + ((block * codebooks) << LEVELS) + nodes
    tl.store(place, total.to(dvals.dtype.element_ty), mask=(c < codebooks)[:, :, None])
    # far from a threshold z may be infinite, where nothing depends on it
    warmer = tl.sum(tl.where(slope > 0.0, -z * dz, 0.0), 2)
    return low + right * (high - low), warmer


@jit
def soft_tree_kernel(
    grad,
    x,
    dims,
    vals,
    warmth,
    lut,
    unit,
    dvalues,
    dvals,
    dwarmth,
    rows,
    codebooks,
    outputs,
    width,
    grad_row,
    x_row,
    x_column,
    LEVELS: tl.constexpr,
    ROWS: tl.constexpr,
    BOOKS: tl.constexpr,
    STEP: tl.constexpr,
    SUM: tl.constexpr,
    PRODUCT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write the gradients of a tile: of values by rows, of thresholds and temperatures summed."""
    ENTRIES: tl.constexpr = 1 << LEVELS
    groups = tl.cdiv(codebooks, BOOKS)
    block = (tl.program_id(0) // groups).to(tl.int64)
    line = block * ROWS + tl.arange(0, ROWS)
    first_book = (tl.program_id(0) % groups) * BOOKS
    leaf = first_book * ENTRIES + tl.arange(0, BOOKS * ENTRIES)
    known = leaf < codebooks * ENTRIES
    worth = tl.zeros((ROWS, BOOKS * ENTRIES), SUM)
    for start in range(0, outputs, STEP):
        m = start + tl.arange(0, STEP)
        mask = (line < rows)[:, None] & (m < outputs)[None, :]
        g = tl.load(grad + line[:, None] * grad_row + m[None, :], mask=mask, other=0.0)
        scale = tl.load(unit + m, mask=m < outputs, other=0.0)
        t = tl.load(
            lut + leaf.to(tl.int64)[None, :] * outputs + m[:, None],
            mask=known[None, :] & (m < outputs)[:, None],
            other=0,
        )
        g = (g * scale[None, :]).to(PRODUCT)
        worth = tl.dot(g, t.to(PRODUCT), worth, input_precision=PRECISION, out_dtype=SUM)
    worth = tl.reshape(worth, (ROWS, BOOKS, ENTRIES))
    r = line[:, None]
    c = first_book + tl.arange(0, BOOKS)[None, :]
    inside = (r < rows) & (c < codebooks)
    warmer = tl.zeros((ROWS, BOOKS), SUM)
    for level in tl.static_range(LEVELS):
        worth, more = climb(
            worth, x, dims, vals, warmth, dvalues, dvals, r, c, inside, block, codebooks, width,
            x_row, x_column, LEVELS - 1 - level, LEVELS, ROWS, BOOKS, SUM,
        )  # fmt: skip
        warmer += more
    place = dwarmth + block * codebooks + c
    total = tl.sum(tl.where(inside, warmer, 0.0), 0)[None, :]
    tl.store(place, total.to(dwarmth.dtype.element_ty), mask=c < codebooks)
    place = dvals + ((block * codebooks + c) << LEVELS)
    tl.store(place, tl.zeros((1, BOOKS), dvals.dtype.element_ty), mask=c < codebooks)


def soft_tree_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    codes: torch.Tensor,
    splitdims: torch.Tensor,
    splitvals: torch.Tensor,
    log_temperature: torch.Tensor,
    lut: torch.Tensor,
    unit: torch.Tensor,
    bfloat16: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the straight-through gradients of a look-up by trees.

    The value is that of hard codes; the gradient of x, thresholds and temperatures that of soft
    ones, the product along a path of sigmoid((x - threshold) / temperature).

    Parameters
    ----------
    grad
        (N, M) float32, the gradient of the sums of table rows (float64 in the interpreter alone).
    x
        (N, D), dtype of grad, any strides.
    codes
        (N, C) uint8, those of x.
    splitdims, splitvals
        (C, L) int32, and (C, 2**L) of the dtype of grad, in heap order.
    log_temperature
        (C,), dtype of grad.
    lut, unit
        (C, 2**L, M) uint8 or the dtype of grad, and (M,): an entry is worth ``lut * unit``, and
        whatever all entries of a codebook have in common.
    bfloat16
        Whether products round their operands to bfloat16.

    Returns
    -------
    tuple of torch.Tensor
        The gradients of x (N, D), splitvals, log_temperature, and of tables in units of the sums
        (C, 2**L, M): each entry's is the sum over the rows that took it.

    Notes
    -----
    Source: the differentiable hash that ITLUMM asks for in section 4; soft trees as in
    halutmatmul.
    """
    (rows, width), (codebooks, levels), outputs = x.shape, splitdims.shape, grad.shape[1]
    entries, flat = 1 << levels, as_rows(grad)
    if not rows:
        shapes = x.shape, splitvals.shape, log_temperature.shape, lut.shape
        return tuple(x.new_zeros(shape) for shape in shapes)  # type: ignore[return-value]
    target = current_target()
    config = choose_config(entries, outputs, target)
    blocks = triton.cdiv(rows, config.rows)
    kinds = {
        "SUM": sum_type(grad.dtype),
        "PRODUCT": tl.bfloat16 if bfloat16 else sum_type(grad.dtype),
        "PRECISION": "ieee" if bfloat16 else product_precision(grad.dtype, target),
    }
    dvalues = x.new_empty((rows, codebooks * levels))
    dvals = x.new_empty((blocks, codebooks, entries))
    dwarmth = x.new_empty((blocks, codebooks))
    soft_tree_kernel[(blocks * triton.cdiv(codebooks, config.books),)](
        flat,
        x,
        splitdims.contiguous(),
        splitvals.contiguous(),
        log_temperature.exp().contiguous(),
        lut.contiguous(),
        unit.contiguous(),
        dvalues,
        dvals,
        dwarmth,
        rows,
        codebooks,
        outputs,
        width,
        flat.stride(0),
        *x.stride(),
        LEVELS=levels,
        ROWS=config.rows,
        BOOKS=config.books,
        STEP=config.step,
        num_warps=4,
        **kinds,
    )
    dtables = table_sums(flat, codes, entries, config.columns, config.leaves, kinds)
    return _to_columns(dvalues, splitdims, width), dvals.sum(0), dwarmth.sum(0), dtables


def _to_columns(dvalues: torch.Tensor, splitdims: torch.Tensor, width: int) -> torch.Tensor:
    """Add the gradients (N, C*L) of what was compared up by columns of x."""
    keys, order = torch.sort(splitdims.flatten(), stable=True)
    bounds = torch.arange(width + 1, dtype=torch.int32, device=splitdims.device)
    starts = torch.searchsorted(keys, bounds, out_int32=True)
    return add_product(
        None, dvalues, starts, order.to(torch.int32), dvalues.new_ones(len(order)), width
    )
