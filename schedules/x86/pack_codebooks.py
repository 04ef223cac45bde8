"""How codebook weights lie in the blob: one row of W in each 16-byte lane. NumPy alone.

A *step* is the least run of columns whose packed indices fill whole vectors: 32 columns at 4 bits
(one vector), 64 at 2 bits (one), 128 at 3 bits (three). A vector has ``lanes`` lanes of 16 bytes,
lane r of which belongs to row r of a *row vector*; ``tile`` row vectors lie side by side:

* indices: [row tile][step][row vector][packed vector][lane][16];
* tables: [row tile][table][row vector][look-up vector][lane][16].

A packed vector unfolds into *index vectors*; index vector f of a step holds its columns 16 f ..
16 f + 15. 4 bits: low and high nibbles. 2 bits: bits 0-1, 2-3, 4-5, 6-7. 3 bits: bits 0-2 and 4-6
of the three vectors are index vectors 0 to 5, bits 3 and 7 of the first (second, third) are bit 0
(1, 2) of index vectors 6 and 7: every look-up is by a nibble, in which bit 3 may be anything.

A table serves ``table_columns`` columns of a row: all; a segment; or, where segments end inside a
step, the greatest common divisor of both. Rows and columns are padded with weights that are finite
where the row has such.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lutcc.ir.arithmetic import round_to_bfloat16
from lutcc.ir.codebooks import (
    TABLE_LIMIT,
    entry_tables,
    integer_tables,
    segments,
    unpack_indices,
)
from lutcc.schedules.x86.pack_rows import RowLayout

Array = NDArray[Any]

#: Entries of a table of bytes: what a nibble points at.
ENTRIES = 16
_STEP_COLUMNS = {2: 64, 3: 128, 4: 32}
_STEP_VECTORS = {2: 1, 3: 3, 4: 1}


@dataclass(frozen=True, slots=True)
class CodebookLayout(RowLayout):
    """Sizes of packed weights.

    Attributes
    ----------
    bits
        Of an index.
    rows, columns
        M and K.
    segment_size
        Columns of a segment; 0 where a row has one table.
    lanes
        16-byte lanes of a vector: rows of a row vector.
    tile
        Row vectors side by side.

    Examples
    --------
    >>> layout = CodebookLayout(bits=3, rows=5, columns=130, segment_size=96, lanes=2, tile=2)
    >>> layout.steps, layout.tiles, layout.tables, layout.table_columns
    (2, 2, 8, 32)
    """

    bits: int
    rows: int
    columns: int
    segment_size: int
    lanes: int
    tile: int

    @classmethod
    def of(
        cls,
        codebooks: int,
        scales: int,
        bits: int,
        rows: int,
        columns: int,
        segment_size: int,
        *,
        lanes: int,
        tile: int,
    ) -> Self:
        """Return the layout of weights with so many codebooks and scales."""
        most = max(segments(n, rows, columns, segment_size) for n in (codebooks, scales))
        return cls(bits, rows, columns, segment_size if most > 1 else 0, lanes, tile)

    @property
    def step_columns(self) -> int:
        """Columns of a step, a multiple of 32."""
        return _STEP_COLUMNS[self.bits]

    @property
    def step_vectors(self) -> int:
        """Packed vectors of a step of one row vector."""
        return _STEP_VECTORS[self.bits]

    @property
    def table_columns(self) -> int:
        """Columns that a table serves: whole steps, or a whole part of one."""
        if not self.segment_size:
            return self.steps * self.step_columns
        if self.segment_size % self.step_columns == 0:
            return self.segment_size
        return math.gcd(self.segment_size, self.step_columns)

    @property
    def table_steps(self) -> int:
        """Steps that a table serves; 0 where a step needs several tables."""
        return self.table_columns // self.step_columns

    @property
    def step_tables(self) -> int:
        """Tables of a step."""
        return max(1, self.step_columns // self.table_columns)

    @property
    def tables(self) -> int:
        """Tables of a row."""
        return -(-self.steps * self.step_columns // self.table_columns)

    def table_bytes(self, form: str) -> int:
        """Bytes of one table of a row tile."""
        return self.tile * look_ups(form, self.bits) * self.vector_bytes

    def to_json(self) -> dict[str, int]:
        """Return the fields."""
        return asdict(self)


def look_ups(form: str, bits: int) -> int:
    """Return the look-up vectors of a table.

    ``int8``: entries + 64, as unsigned bytes; at 2 bits a nibble is a pair of indices, and the two
    vectors give the weight of the lower and of the higher. ``float32``: the four bytes of the
    entries, the lowest first. ``bfloat16``: the two bytes of the rounded entries.

    Examples
    --------
    >>> look_ups("int8", 2), look_ups("int8", 3), look_ups("float32", 2)
    (2, 1, 4)
    """
    return {"int8": 2 if bits == 2 else 1, "float32": 4, "bfloat16": 2}[form]


def pack_codebook_indices(
    indices: Array, codebooks: Array, scales: Array, *, segment_size: int, **sizes: int
) -> Array:
    """(M, B) -> packed vectors; ``sizes`` are the fields of :class:`CodebookLayout`.

    ``segment_size`` is the op's, which is 0 or more where a row has one table, too.
    """
    layout = _layout(codebooks, scales, segment_size, sizes)
    count, lanes = layout.step_columns // 16, layout.lanes
    shape = (-1, layout.tile, lanes, layout.steps, count, 16)
    width = layout.steps * layout.step_columns
    packed = np.empty(
        (layout.tiles, layout.steps, layout.tile, layout.step_vectors, lanes, 16), np.uint8
    )
    fills = _fill(codebooks, scales, layout, segment_size) if width > layout.columns else None
    for first, last in layout.pieces():
        rows = slice(first * layout.tile_rows, last * layout.tile_rows)
        unfolded = np.zeros(((last - first) * layout.tile_rows, width), np.uint8)
        found = unpack_indices(indices[rows], layout.bits, layout.columns)
        unfolded[: len(found), : layout.columns] = found
        if fills is not None:
            unfolded[: len(found), layout.columns :] = fills[rows, None]
        vectors = _folded(unfolded.reshape(shape), layout.bits)
        packed[first:last] = vectors.transpose(0, 3, 1, 4, 2, 5)
    return packed


def _layout(
    codebooks: Array, scales: Array, segment_size: int, sizes: Mapping[str, int]
) -> CodebookLayout:
    return CodebookLayout.of(len(codebooks), len(scales), segment_size=segment_size, **sizes)


def _fill(codebooks: Array, scales: Array, layout: CodebookLayout, segment_size: int) -> Array:
    """Return (M,): an index whose weight is finite at the end of each row, where there is one."""
    tables = entry_tables(codebooks, scales, layout.rows, layout.columns, segment_size)
    with np.errstate(all="ignore"):
        magnitude = np.abs(tables[:, -1])
    return np.where(np.isfinite(magnitude), magnitude, np.inf).argmin(axis=1).astype(np.uint8)


def _folded(index: Array, bits: int) -> Array:
    """Return index vectors (..., index vectors, 16) as packed vectors (..., packed, 16)."""
    part = [index[..., f, :] for f in range(index.shape[-2])]
    if bits == 4:
        vectors = [part[0] | part[1] << 4]
    elif bits == 2:
        vectors = [part[0] | part[1] << 2 | part[2] << 4 | part[3] << 6]
    else:
        vectors = [
            part[2 * v] | part[2 * v + 1] << 4 | (part[6] >> v & 1) << 3 | (part[7] >> v & 1) << 7
            for v in range(3)
        ]
    return np.stack(vectors, axis=-2)


def pack_codebook_tables(
    codebooks: Array, scales: Array, *, form: str, segment_size: int, **sizes: int
) -> Array:
    """Codebooks and scales -> tables, see :func:`look_ups`."""
    layout = _layout(codebooks, scales, segment_size, sizes)
    entries = entry_tables(codebooks, scales, layout.rows, layout.columns, segment_size)
    segment = np.arange(layout.tables) * layout.table_columns // max(segment_size, 1)
    segment = np.minimum(segment, entries.shape[1] - 1)
    nibbles = np.arange(ENTRIES)
    low = nibbles % entries.shape[2]
    if form == "int8":
        integers, _ = integer_tables(entries)
        biased = (integers + np.int8(TABLE_LIMIT)).view(np.uint8)
        picks = [low, nibbles >> 2] if layout.bits == 2 else [low]
        vectors = [biased[..., pick] for pick in picks]
    elif form == "float32":
        planes = (
            np.ascontiguousarray(entries[..., low])
            .view(np.uint8)
            .reshape(*entries.shape[:2], ENTRIES, 4)
        )
        vectors = [planes[..., p] for p in range(4)]
    else:
        rounded = np.ascontiguousarray(round_to_bfloat16(entries[..., low]))
        planes = rounded.view(np.uint8).reshape(*entries.shape[:2], ENTRIES, 4)
        vectors = [planes[..., p] for p in (2, 3)]
    padded = layout.tiles * layout.tile_rows
    tables = np.zeros((padded, layout.tables, len(vectors), ENTRIES), np.uint8)
    for v, vector in enumerate(vectors):
        tables[: layout.rows, :, v] = vector[:, segment]
    shape = (layout.tiles, layout.tile, layout.lanes, layout.tables, len(vectors), ENTRIES)
    return np.ascontiguousarray(tables.reshape(shape).transpose(0, 3, 1, 4, 2, 5))


def pack_codebook_units(
    codebooks: Array, scales: Array, *, segment_size: int, **sizes: int
) -> Array:
    """Codebooks and scales -> (M,) float32, padded to 16: what 1 in a row's integers stands for."""
    layout = _layout(codebooks, scales, segment_size, sizes)
    entries = entry_tables(codebooks, scales, layout.rows, layout.columns, segment_size)
    units = np.zeros(-(-layout.rows // 16) * 16, np.float32)
    units[: layout.rows] = integer_tables(entries)[1]
    return units
