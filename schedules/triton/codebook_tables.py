"""What kernels of codebooks share: packed indices, regions, tables, and rows as integers.

Indices are unpacked in registers: a word of 32 bits holds 8 indices of 4 bits or 16 of 2, and where
rows are not whole words, or an index has 3 bits, the bytes of 8 indices are put together. Entries
of tables are gathered from memory: a row's table is 8 to 32 bytes, so that a warp's look-ups hit
one or two lines of L1, at best 32 look-ups per cycle of an SM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
import triton
import triton.language as tl

from lutcc.ir.codebooks import TABLE_LIMIT
from lutcc.ir.codebooks import segments as count_segments
from lutcc.schedules.triton.jit import jit
from lutcc.schedules.triton.rows import as_rows

#: Magnitude of a row's integers (``lutcc.ir.arithmetic.quantize_rows``).
ROW_LIMIT = 127
_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Weights:
    """A matrix (``rows``, ``columns``), as kernels take it.

    Attributes
    ----------
    packed
        (rows, words) int32, or (rows, bytes) uint8.
    codebooks
        (G, 2**bits), contiguous.
    scales
        (T,), contiguous; None if there are none, as of integers.
    rows, columns, bits
        As of :func:`lutcc.ops.codebook_matmul`.
    segments, segment_size
        Tables of a row, and columns of each.
    """

    packed: torch.Tensor
    codebooks: torch.Tensor
    scales: torch.Tensor | None
    rows: int
    columns: int
    bits: int
    segments: int
    segment_size: int

    @classmethod
    def of(
        cls,
        indices: torch.Tensor,
        codebooks: torch.Tensor,
        scales: torch.Tensor,
        bits: int,
        columns: int,
        segment_size: int,
    ) -> Self:
        """Return the matrix of an operator's arguments.

        Examples
        --------
        >>> ones = torch.ones(1)
        >>> w = Weights.of(torch.zeros(2, 8, dtype=torch.uint8), ones.expand(1, 16), ones, 4, 16, 0)
        >>> w.packed.shape, w.segments, w.segment_size
        (torch.Size([2, 2]), 1, 16)
        """
        indices = indices.contiguous()
        whole_words = bits != 3 and indices.shape[1] % 4 == 0
        if whole_words and indices.storage_offset() % 4 == 0:
            indices = indices.view(torch.int32)
        rows, regions = indices.shape[0], max(codebooks.shape[0], scales.shape[0])
        number = count_segments(regions, rows, columns, segment_size)
        return cls(
            indices,
            codebooks.contiguous(),
            scales.contiguous(),
            rows,
            columns,
            bits,
            number,
            segment_size if number > 1 else columns,
        )

    @property
    def run(self) -> int:
        """Columns, a power of two, of which any number from a multiple on share their tables."""
        return self.segment_size & -self.segment_size if self.segments > 1 else 1 << 30

    def arguments(self) -> tuple[Any, ...]:
        """Return what every kernel takes first."""
        scales = self.codebooks if self.scales is None else self.scales
        return (
            self.packed,
            self.codebooks,
            scales,
            self.rows,
            self.columns,
            self.packed.stride(0),
            self.codebooks.shape[0],
            scales.shape[0],
            self.segments,
            self.segment_size,
        )

    def constants(self) -> dict[str, Any]:
        """Return what every kernel is compiled for."""
        return {
            "BITS": self.bits,
            "WORDS": self.packed.dtype is torch.int32,
            "BOOK_SEGMENTS": self.codebooks.shape[0] > self.rows,
            "SCALE_SEGMENTS": self.scales is not None and self.scales.shape[0] > self.rows,
            "HAS_SCALES": self.scales is not None,
        }

    def as_integers(self) -> tuple[Weights, torch.Tensor]:
        """Return the matrix with int8 tables and without scales, and each row's unit (rows,).

        The integers are those of :func:`lutcc.ir.codebooks.integer_tables`.
        """
        shape = (self.rows * self.segments, 1 << self.bits)
        tables = self.codebooks.new_empty(shape, dtype=torch.int8)
        units = self.codebooks.new_empty((self.rows,), dtype=torch.float32)
        options = self.constants()
        step = 16
        integer_tables_kernel[(triton.cdiv(self.rows, step),)](
            *self.arguments()[1:4],
            tables,
            units,
            *self.arguments()[6:9],
            ENTRIES=1 << self.bits,
            BOOK_SEGMENTS=options["BOOK_SEGMENTS"],
            SCALE_SEGMENTS=options["SCALE_SEGMENTS"],
            LIMIT=TABLE_LIMIT,
            ROWS=step,
            enable_fp_fusion=False,
        )
        integers = Weights(
            self.packed,
            tables,
            None,
            self.rows,
            self.columns,
            self.bits,
            self.segments,
            self.segment_size,
        )
        return integers, units


@jit
def first_region(m, regions, rows, segments, SEGMENTED: tl.constexpr):
    """Return the region of rows m, or of their first segments."""
    return m * segments if SEGMENTED else m * regions // rows


@jit
def unpacked(
    packed, m, here, first, stride, BITS: tl.constexpr, WORDS: tl.constexpr, DEPTH: tl.constexpr
):
    """Return (rows, DEPTH) int32: indices of rows m from column ``first``, a multiple of 16.

    What does not exist is 0.
    """
    GROUP: tl.constexpr = 32 // BITS if WORDS else 8
    group = first // GROUP + tl.arange(0, DEPTH // GROUP)
    lines = packed + m[:, None] * stride
    if WORDS:
        mask = here[:, None] & (group < stride)[None, :]
        word = tl.load(lines + group[None, :], mask=mask, other=0)
    else:
        word = tl.zeros((m.shape[0], DEPTH // GROUP), tl.int32)
        for i in tl.static_range(BITS):
            byte = group * BITS + i
            mask = here[:, None] & (byte < stride)[None, :]
            word |= tl.load(lines + byte[None, :], mask=mask, other=0).to(tl.int32) << (8 * i)
    shift = tl.arange(0, GROUP) * BITS
    index = (word[:, :, None] >> shift[None, None, :]) & ((1 << BITS) - 1)
    return tl.reshape(index, (m.shape[0], DEPTH))


@jit
def weights_tile(
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
    BITS: tl.constexpr,
    WORDS: tl.constexpr,
    BOOK_SEGMENTS: tl.constexpr,
    SCALE_SEGMENTS: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Return (rows, DEPTH) weights of rows m (int64) from a column on, all of one segment.

    In ``WIDE``, or in the type of the tables where there are no scales; 0 where ``here`` says no,
    and beyond the last column.
    """
    index = unpacked(packed, m, here, first, stride, BITS, WORDS, DEPTH)
    k = first + tl.arange(0, DEPTH)
    segment = first // segment_size
    book = first_region(m, books, rows, segments, BOOK_SEGMENTS)
    if BOOK_SEGMENTS:
        book += segment
    value = tl.load(
        codebooks + (book << BITS)[:, None] + index,
        mask=here[:, None] & (k < columns)[None, :],
        other=0,
    )
    if HAS_SCALES:
        place = first_region(m, factors, rows, segments, SCALE_SEGMENTS)
        if SCALE_SEGMENTS:
            place += segment
        scale = tl.load(scales + place, mask=here, other=0)
        value = value.to(WIDE) * scale.to(WIDE)[:, None]
    return value


@jit
def magnitude(value):
    """Return the absolute value, infinity for NaN, which maxima would pass over."""
    return tl.where(value == value, tl.abs(value), float("inf"))


@jit
def steps_of(largest, LIMIT: tl.constexpr):
    """Return LIMIT / largest, or 0 where that or the largest is not finite."""
    inverse = tl.div_rn(tl.full(largest.shape, LIMIT, tl.float32), largest)
    usable = (largest < float("inf")) & (inverse < float("inf"))
    return tl.where(usable, inverse, 0.0)


@jit
def rounded(value, inverse):
    """Return int8: value * inverse to the nearest integer, ties to even; 0 where inverse is 0.

    Adding 1.5 * 2**23 rounds as IEEE says, if the product before it is rounded too: kernels that
    use it are compiled without fused multiply-adds.
    """
    scaled = tl.where(inverse == 0.0, 0.0, value) * inverse
    return ((scaled + 12582912.0) - 12582912.0).to(tl.int8)


@jit
def integer_tables_kernel(
    codebooks,
    scales,
    rows,
    tables,
    units,
    books,
    factors,
    segments,
    ENTRIES: tl.constexpr,
    BOOK_SEGMENTS: tl.constexpr,
    SCALE_SEGMENTS: tl.constexpr,
    LIMIT: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Write the tables of a tile of rows as integers, and the rows' units."""
    m = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = m < rows
    entry = tl.arange(0, ENTRIES)
    book = first_region(m, books, rows, segments, BOOK_SEGMENTS)
    place = first_region(m, factors, rows, segments, SCALE_SEGMENTS)
    largest = tl.zeros((ROWS,), tl.float32)
    for segment in range(segments):
        b = book + segment if BOOK_SEGMENTS else book
        p = place + segment if SCALE_SEGMENTS else place
        value = tl.load(
            codebooks + b[:, None] * ENTRIES + entry[None, :], mask=here[:, None], other=0
        )
        value = value.to(tl.float32)
        value *= tl.load(scales + p, mask=here, other=0).to(tl.float32)[:, None]
        largest = tl.maximum(largest, tl.max(magnitude(value), 1))
    inverse = steps_of(largest, LIMIT)
    for segment in range(segments):
        b = book + segment if BOOK_SEGMENTS else book
        p = place + segment if SCALE_SEGMENTS else place
        value = tl.load(
            codebooks + b[:, None] * ENTRIES + entry[None, :], mask=here[:, None], other=0
        )
        value = value.to(tl.float32)
        value *= tl.load(scales + p, mask=here, other=0).to(tl.float32)[:, None]
        out = tables + (m * segments + segment)[:, None] * ENTRIES + entry[None, :]
        tl.store(out, rounded(value, inverse[:, None]), mask=here[:, None])
    limit = tl.full((ROWS,), LIMIT, tl.float32)
    tl.store(units + m, tl.div_rn(largest, limit), mask=here)


@jit
def quantize_rows_kernel(x, q, units, columns, x_row, LIMIT: tl.constexpr, BLOCK: tl.constexpr):
    """Write a row as integers, and its unit."""
    n = tl.program_id(0).to(tl.int64)
    largest = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        k = start + tl.arange(0, BLOCK)
        value = tl.load(x + n * x_row + k, mask=k < columns, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, magnitude(value))
    most = tl.max(largest, 0) + tl.zeros((1,), tl.float32)
    inverse = steps_of(most, LIMIT)
    for start in range(0, columns, BLOCK):
        k = start + tl.arange(0, BLOCK)
        value = tl.load(x + n * x_row + k, mask=k < columns, other=0.0).to(tl.float32)
        tl.store(q + n * columns + k, rounded(value, inverse), mask=k < columns)
    unit = tl.div_rn(most, tl.full((1,), LIMIT, tl.float32))
    tl.store(units + n + tl.arange(0, 1), unit)


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row of x (N, K) as integers in -127..127 int8, and its unit (N,) float32.

    The same integers as :func:`lutcc.ir.arithmetic.quantize_rows`; the unit of a row with a NaN is
    infinity, and gives the same NaN.

    Examples
    --------
    >>> q, unit = quantize_rows(torch.tensor([[1, -2, 0.5]]).cuda())  # doctest: +SKIP
    >>> q.tolist(), unit.tolist()  # doctest: +SKIP
    ([[64, -127, 32]], [0.015748031437397003])
    """
    x = as_rows(x)
    rows, columns = x.shape
    q = torch.empty((rows, columns), dtype=torch.int8, device=x.device)
    units = torch.empty((rows,), dtype=torch.float32, device=x.device)
    if rows:
        quantize_rows_kernel[(rows,)](
            x,
            q,
            units,
            columns,
            x.stride(0),
            LIMIT=ROW_LIMIT,
            BLOCK=_BLOCK,
            enable_fp_fusion=False,
        )
    return q, units
