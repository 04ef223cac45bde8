"""``hadamard``: the Walsh-Hadamard transform of each row.

H of n = a * b is the Kronecker product of H_a and H_b. From n = 256 on a row is a matrix (a, b),
and the transform two products on tensor cores with sign matrices, which bfloat16 holds exactly;
the data are split into as many bfloat16 terms as their precision needs. Below that, and for float64
on a GPU, butterflies in registers do it. Rows above 4096 take two passes: transforms of 4096
columns each, then butterflies across those.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from lutcc.errors import InputError
from lutcc.schedules.triton.jit import jit
from lutcc.schedules.triton.rows import (
    as_rows,
    element_type,
    next_power_of_two,
    sum_dtype,
    sum_type,
)
from lutcc.schedules.triton.target import Target, current_target

#: The longest row: eight tiles of TILE.
MAX_SIZE = 32768

#: Elements that one program transforms with 4 warps: 32 per thread, so that nothing spills.
TILE = 4096

#: bfloat16 terms of the data in the first and in the second product. float16 and bfloat16 data are
#: exact in 2 and 1; what the first product sums is not, and errs by 3e-6 in 2 terms, 5e-8 in 3.
#: 0: a product in the type of the sums.
TERMS = {
    torch.bfloat16: (1, 2),
    torch.float16: (2, 2),
    torch.float32: (3, 3),
    torch.float64: (0, 0),
}


@dataclass(frozen=True, slots=True)
class HadamardConfig:
    """How a transform is cut.

    Attributes
    ----------
    size
        Columns transformed by one program (n, or TILE).
    outer, inner
        Factors of ``size`` whose transforms are products; ``outer`` 0: butterflies.
    rows
        Rows per program.
    terms
        As in :data:`TERMS`.
    num_warps
        Warps per program.
    """

    size: int
    outer: int
    inner: int
    rows: int
    terms: tuple[int, int]
    num_warps: int = 4


def choose_config(n: int, dtype: torch.dtype, target: Target) -> HadamardConfig:
    """Return the config for rows of ``n`` columns, a power of two.

    Examples
    --------
    >>> choose_config(1024, torch.bfloat16, Target("sm_90", "cuda"))
    HadamardConfig(size=1024, outer=32, inner=32, rows=4, terms=(1, 2), num_warps=4)
    """
    size = min(n, TILE)
    # Tensor cores for float64 are slow or absent; the interpreter takes the way of the other types.
    butterflies = size < 256 or (dtype is torch.float64 and target.backend != "interpreter")
    bits = size.bit_length() - 1
    outer = 0 if butterflies else 1 << (bits // 2)
    inner = size if butterflies else size // outer
    return HadamardConfig(size, outer, inner, max(1, TILE // size), TERMS[dtype])


@jit
def sign_matrix(N: tl.constexpr, dtype: tl.constexpr):
    """Return the (N, N) matrix of (-1)**popcount(i & j), N up to 256."""
    i = tl.arange(0, N)
    parity = i[:, None] & i[None, :]
    parity = parity ^ (parity >> 4)
    parity = parity ^ (parity >> 2)
    parity = parity ^ (parity >> 1)
    return (1 - 2 * (parity & 1)).to(dtype)


@jit
def times_signs(v, N: tl.constexpr, TERMS: tl.constexpr, SUM: tl.constexpr):
    """Return v (any, N) times the sign matrix, v split into TERMS bfloat16 terms, least first."""
    if TERMS == 0:
        out = tl.dot(v, sign_matrix(N, SUM), input_precision="ieee", out_dtype=SUM)
    else:
        signs = sign_matrix(N, tl.bfloat16)
        high = v.to(tl.bfloat16)
        if TERMS == 1:
            out = tl.dot(high, signs, out_dtype=SUM)
        else:
            rest = v - high.to(SUM)
            middle = rest.to(tl.bfloat16)
            if TERMS == 2:
                out = tl.dot(middle, signs, out_dtype=SUM)
            else:
                low = (rest - middle.to(SUM)).to(tl.bfloat16)
                out = tl.dot(low, signs, out_dtype=SUM)
                out = tl.dot(middle, signs, out, out_dtype=SUM)
            out = tl.dot(high, signs, out, out_dtype=SUM)
    return out


@jit
def hadamard_kernel(
    x,
    y,
    rows,
    columns,
    x_stride,
    scale,
    SIZE: tl.constexpr,
    LOG_SIZE: tl.constexpr,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNKS: tl.constexpr,
    FIRST_TERMS: tl.constexpr,
    SECOND_TERMS: tl.constexpr,
    SUM: tl.constexpr,
):
    """Transform each of the CHUNKS stretches of SIZE columns; ``columns`` of x are there."""
    chunk = tl.program_id(0) % CHUNKS
    r = (tl.program_id(0) // CHUNKS) * ROWS + tl.arange(0, ROWS)
    inside = (r < rows)[:, None]
    r = r.to(tl.int64)[:, None]
    c = (chunk * SIZE + tl.arange(0, SIZE))[None, :]
    v = tl.load(x + r * x_stride + c, mask=inside & (c < columns), other=0.0).to(SUM)
    if OUTER == 0:
        for s in tl.static_range(LOG_SIZE):
            v = tl.reshape(v, (ROWS, SIZE // 2 ** (s + 1), 2, 2**s))
            a, b = tl.split(tl.permute(v, (0, 1, 3, 2)))
            v = tl.reshape(tl.permute(tl.join(a + b, a - b), (0, 1, 3, 2)), (ROWS, SIZE))
    else:
        v = times_signs(tl.reshape(v, (ROWS * OUTER, INNER)), INNER, FIRST_TERMS, SUM)
        v = tl.permute(tl.reshape(v, (ROWS, OUTER, INNER)), (0, 2, 1))
        v = times_signs(tl.reshape(v, (ROWS * INNER, OUTER)), OUTER, SECOND_TERMS, SUM)
        v = tl.permute(tl.reshape(v, (ROWS, INNER, OUTER)), (0, 2, 1))
        v = tl.reshape(v, (ROWS, SIZE))
    v = v * scale
    tl.store(y + r * (CHUNKS * SIZE) + c, v.to(y.dtype.element_ty), mask=inside)


@jit
def butterflies(parts, COUNT: tl.constexpr, LOG_COUNT: tl.constexpr):
    """Transform across a tuple of COUNT equal tiles; no data move between threads."""
    for s in tl.static_range(LOG_COUNT):
        mixed = ()
        for i in tl.static_range(COUNT):
            if (i >> s) & 1:
                mixed = mixed + (parts[i ^ (1 << s)] - parts[i],)  # pyright: ignore
            else:
                mixed = mixed + (parts[i] + parts[i ^ (1 << s)],)
        parts = mixed
    return parts


@jit
def across_chunks_kernel(
    x,
    y,
    scale,
    SIZE: tl.constexpr,
    CHUNKS: tl.constexpr,
    LOG_CHUNKS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Transform across the CHUNKS stretches of SIZE columns of each row."""
    tiles: tl.constexpr = SIZE // TILE
    row = (tl.program_id(0) // tiles).to(tl.int64) * (CHUNKS * SIZE)
    c = (tl.program_id(0) % tiles) * TILE + tl.arange(0, TILE)
    parts = ()
    for i in tl.static_range(CHUNKS):
        parts = parts + (tl.load(x + row + i * SIZE + c),)
    parts = butterflies(parts, CHUNKS, LOG_CHUNKS)
    for i in tl.static_range(CHUNKS):
        tl.store(y + row + i * SIZE + c, (parts[i] * scale).to(y.dtype.element_ty))


def hadamard(x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Return the transform of the last dimension, padded with zeros to a power of two n.

    Parameters
    ----------
    x
        (..., D) float16, bfloat16, float32 or float64 of any strides; D in 1..32768.
    scale
        Factor of every element.

    Returns
    -------
    torch.Tensor
        (..., n), dtype of x. A row that holds an infinity or NaN has no finite element.

    Raises
    ------
    InputError
        If D is larger, or the dtype another.

    Notes
    -----
    Source: Zeng et al., LookupFFN, section 3.2. H is symmetric: the gradient is the transform of
    the gradient, cut to D columns.

    Examples
    --------
    >>> hadamard(torch.ones(2, 500, device="cuda")).shape  # doctest: +SKIP
    torch.Size([2, 512])
    """
    kind = element_type(x.dtype)
    flat = as_rows(x)
    rows, columns = flat.shape
    n = next_power_of_two(columns)
    if n > MAX_SIZE:
        raise InputError(
            f"rows have {columns} columns, but at most {MAX_SIZE} fit",
            where="lutcc.schedules.triton.hadamard",
            fix="use a block-diagonal transform of shorter rows",
        )
    y = x.new_empty((rows, n))
    if rows:
        config = choose_config(n, x.dtype, current_target())
        chunks = n // config.size
        wide = sum_dtype(x.dtype)
        half = y if chunks == 1 or y.dtype is wide else y.new_empty(y.shape, dtype=wide)
        # Triton passes numbers as float32: too coarse for float64.
        factor = 1.0 if kind is tl.float64 else float(scale)
        hadamard_kernel[(triton.cdiv(rows, config.rows) * chunks,)](
            flat,
            half,
            rows,
            columns,
            flat.stride(0),
            factor if chunks == 1 else 1.0,
            SIZE=config.size,
            LOG_SIZE=config.size.bit_length() - 1,
            OUTER=config.outer,
            INNER=config.inner,
            ROWS=config.rows,
            CHUNKS=chunks,
            FIRST_TERMS=config.terms[0],
            SECOND_TERMS=config.terms[1],
            SUM=sum_type(x.dtype),
            num_warps=config.num_warps,
        )
        if chunks > 1:
            across_chunks(half, y, chunks, factor)
        if kind is tl.float64:
            y.mul_(scale)
    return y.reshape(*x.shape[:-1], n)


def across_chunks(x: torch.Tensor, y: torch.Tensor, chunks: int, scale: float) -> None:
    """Write into ``y`` (rows, n) the transform across ``chunks`` stretches of x's whole rows."""
    size = x.shape[1] // chunks
    tile = min(size, 8192 // chunks)  # of 4 warps: 64 elements per thread
    across_chunks_kernel[(x.shape[0] * (size // tile),)](
        x,
        y,
        scale,
        SIZE=size,
        CHUNKS=chunks,
        LOG_CHUNKS=chunks.bit_length() - 1,
        TILE=tile,
        num_warps=4,
    )
