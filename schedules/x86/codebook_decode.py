"""Weights of codebooks in registers: packed vectors to index vectors, these to weights.

The layout is that of :mod:`lutcc.schedules.x86.pack_codebooks`: a vector has ``lanes`` lanes, of as
many rows of W; index vector f of a step holds columns 16 f .. 16 f + 15 of each row, and one
``vpshufb`` looks up one byte of all their weights.

Instructions to unfold a step, of one row vector: 4 bits: 3 for 2 index vectors; 2 bits: 3 for 4 (of
pairs), or 7; 3 bits: 21 for 8. Look-ups: int8 1 for each index vector; bfloat16 2 and 2 unpacks;
float32 4 and 8 unpacks.

Weights as integers are w + 64, 0 .. 128, unsigned. With q in -127 .. 127 as the signed operand,
``vpmaddubsw`` gives pairs below 2**15, and the sum of two such results, in 16 bits, wraps around;
but less 64 times the sum of its four q it is below 2**15 again: 4 * 64 * 127 = 32512. So two
vectors of pairs are widened by one ``vpmaddwd``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lutcc.schedules.intrinsics import x86
from lutcc.schedules.x86.emit import Expr, View, bind, i64, reinterpret, shuffle, splat
from lutcc.schedules.x86.gather_int8 import unpack
from lutcc.schedules.x86.granules import Granules, widened
from lutcc.schedules.x86.isa import Isa
from lutcc.schedules.x86.pack_codebooks import CodebookLayout, look_ups


@dataclass(frozen=True)
class PackedWeights:
    """Packed weights in the blob.

    Attributes
    ----------
    layout, arithmetic
        How they lie, and what is computed with them.
    indices, tables
        Bytes.
    """

    layout: CodebookLayout
    arithmetic: Granules
    indices: View
    tables: View

    @property
    def form(self) -> str:
        """``int8``, ``float32`` or ``bfloat16``."""
        return self.arithmetic.form

    @property
    def direct(self) -> bool:
        """Whether weights lie as they are multiplied."""
        return False

    def granules(self, packed: Sequence[Expr], tables: Sequence[list[Expr]]) -> Iterator[Expr]:
        """Yield the weights of a step, a granule of each lane after the other.

        Parameters
        ----------
        packed
            The packed vectors of the step.
        tables
            The look-up vectors of each 32 columns.
        """
        isa, bits = self.arithmetic.isa, self.layout.bits
        if self.arithmetic.integers:
            yield from integer_weights(isa, packed, bits, tables)
            return
        for n, index in enumerate(index_vectors(packed, bits)):
            planes = tables[n // 2]
            if self.form == "float32":
                yield from float_weights(isa, index, planes)
                continue
            for half in bfloat16_weights(isa, index, planes):
                yield from widened(half) if self.arithmetic.widened else [half]

    @property
    def count(self) -> int:
        """Index vectors of a step of a row vector."""
        return self.layout.step_columns // 16

    def packed(self, tile: Expr, step: Expr | int, vector: int) -> list[Expr]:
        """Load the packed vectors of a step of row vector ``vector`` of a row tile."""
        at = (i64(tile) * self.layout.steps + i64(step)) * self.layout.step_bytes
        return self.load(self.indices, at, vector * self.layout.step_vectors)

    def load(self, view: View, at: Expr, first: int, count: int | None = None) -> list[Expr]:
        """Load vectors ``first`` and on from byte ``at``: as many as a step has, or ``count``."""
        width = self.layout.vector_bytes
        count = self.layout.step_vectors if count is None else count
        return [bind(view.load(at + (first + v) * width, width)) for v in range(count)]

    def table(self, tile: Expr, number: Expr | int, vector: int) -> list[Expr]:
        """Load the look-up vectors of table ``number`` of row vector ``vector`` of a row tile."""
        each = self.layout.table_bytes(self.form)
        at = (i64(tile) * self.layout.tables + i64(number)) * each
        count = look_ups(self.form, self.layout.bits)
        return self.load(self.tables, at, vector * count, count)


def lookup(isa: Isa, table: Expr, index: Expr) -> Expr:
    """Return the bytes of each lane's table that the low nibbles of ``index`` point at."""
    instruction = x86.PSHUFB_512 if isa.has_avx512 else x86.PSHUFB_256
    return bind(instruction(table, index))


def shifted(value: Expr, count: int) -> Expr:
    """Shift bytes right (left, if negative), where bits that cross over do not matter."""
    width = int(str(value.ty.dtype).partition("x")[2])
    words = reinterpret(f"uint16x{width // 2}", value)
    by = splat(abs(count), "uint16", width // 2)
    return reinterpret(f"uint8x{width}", words >> by if count > 0 else words << by)


def masked(value: Expr, mask: int) -> Expr:
    """Keep the bits of ``mask`` in each byte."""
    return value & splat(mask, "uint8", int(str(value.ty.dtype).partition("x")[2]))


def nibbles(packed: Sequence[Expr], bits: int) -> list[Expr]:
    """Return what tables of 16 are looked up by: of each packed vector the low and high nibbles.

    At 4 and 3 bits these are the index vectors of a step, in order; at 2 bits they are pairs of
    them. Bit 7 is clear, as ``vpshufb`` needs it; of 3-bit ones, bits 3 to 6 may be anything.
    """
    found = []
    for vector in packed:
        found += [bind(masked(vector, 15)), bind(masked(shifted(vector, 4), 15))]
    if bits == 3:
        rest = masked(shifted(packed[0], 3), 0x11)
        rest = rest | masked(shifted(packed[1], 2), 0x22)
        rest = bind(rest | masked(shifted(packed[2], 1), 0x44))
        found += [rest, bind(masked(shifted(rest, 4), 15))]
    return found


def index_vectors(packed: Sequence[Expr], bits: int) -> list[Expr]:
    """Return the index vectors of a step; bits 3 (or 2) to 6 may be anything, bit 7 is clear."""
    if bits != 2:
        return nibbles(packed, bits)
    (vector,) = packed
    rest = [masked(shifted(vector, count), 15) for count in (2, 4, 6)]
    return [bind(index) for index in (masked(vector, 15), *rest)]


def integer_weights(
    isa: Isa, packed: Sequence[Expr], bits: int, tables: Sequence[Sequence[Expr]]
) -> list[Expr]:
    """Return w + 64 of a step, uint8, an index vector after the other.

    Parameters
    ----------
    packed
        The packed vectors of a step.
    tables
        The look-up vectors (form ``int8``) of each 32 columns, i.e. of two index vectors.
    """
    weights = []
    for n, index in enumerate(nibbles(packed, bits)):
        table = tables[n if bits == 2 else n // 2]
        weights += [lookup(isa, vector, index) for vector in table]
    return weights


def _interleaved(a: Expr, b: Expr) -> list[Expr]:
    """Return the low and the high half of each lane of two vectors, interleaved item by item."""
    kind, _, count = str(a.ty.dtype).partition("x")
    size = {"uint8": 1, "uint16": 2}[kind]
    width = int(count) * size
    both = []
    for high in (False, True):
        picks = unpack(width, size, high=high)
        items = [pick // size for pick in picks[::size]]
        both.append(bind(shuffle([a, b], items)))
    return both


def bfloat16_weights(isa: Isa, index: Expr, planes: Sequence[Expr]) -> list[Expr]:
    """Return the weights of an index vector as bfloat16 (uint16), two vectors.

    In each lane the first vector has columns 0 to 7 of the row, the second 8 to 15. ``planes`` are
    the last two look-up vectors of form ``bfloat16`` or ``float32``.
    """
    low, high = (lookup(isa, plane, index) for plane in planes)
    width = int(str(low.ty.dtype).partition("x")[2])
    return [bind(reinterpret(f"uint16x{width // 2}", half)) for half in _interleaved(low, high)]


def float_weights(isa: Isa, index: Expr, planes: Sequence[Expr]) -> list[Expr]:
    """Return the float32 weights of an index vector, four vectors.

    In each lane, vector j has columns 4 j .. 4 j + 3 of the row. ``planes`` are the four look-up
    vectors of form ``float32``.
    """
    low = bfloat16_weights(isa, index, planes[:2])
    high = bfloat16_weights(isa, index, planes[2:])
    floats = [half for pair in zip(low, high, strict=True) for half in _interleaved(*pair)]
    lanes = int(str(floats[0].ty.dtype).partition("x")[2]) // 2
    return [bind(reinterpret(f"float32x{lanes}", value)) for value in floats]
