"""Trees of at most 16 leaves over 32 numbers of 16 bits at a time, in two registers of AVX2.

The eight thresholds of a level fill half a register, from which ``vpshufb`` takes words by the
numbers of their two bytes. A node is kept as these, ``2 r`` and ``2 r + 1``, where r holds the
answers so far, the first one in its lowest bit: an answer is added by an ``and`` and an ``or``.
Codes are brought into their own order by one more ``vpshufb``, 32 at a time.

Count, 16 leaves and 32 numbers: 38 instructions for the answers, 15 to find the numbers and to make
codes, where 32 bits take 104.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lutcc.schedules.intrinsics import words
from lutcc.schedules.intrinsics.x86 import PSHUFB_256
from lutcc.schedules.x86.context import StageContext
from lutcc.schedules.x86.emit import Expr, View, bind, reinterpret, shuffle, splat
from lutcc.schedules.x86.isa import Isa
from lutcc.schedules.x86.pack_words import WORD_LEVEL, word_code


def fit(isa: Isa, entries: int) -> bool:
    """Whether trees of so many leaves compare words in this way."""
    return not isa.has_avx512 and entries <= 16


class Trees:
    """Trees of one depth; the constants that they share."""

    def __init__(self, ctx: StageContext, depth: int) -> None:
        self._depth = depth
        order = ctx.blob.add("ints", "int32", [], values=_quads(word_code(depth)))
        self._order = order.as_dtype("uint8")

    def codes(
        self, halves: Sequence[Callable[[Expr], Expr]], table: View, offsets: Sequence[Expr]
    ) -> Expr:
        """Return the codes of 32 rows, uint8x32: those of the two halves alternate.

        Parameters
        ----------
        halves
            Load the numbers (int16x16) of 16 rows each, at an offset.
        table
            The thresholds, as ``tree_words`` packs them.
        offsets
            Of the number that each level compares.
        """
        low, high = self._answers(halves, table, offsets)
        mixed = (low & splat(0xFF, "int16")) | (high << splat(8, "int16"))
        order = bind(shuffle([self._order.load(0, 16)] * 2, range(32)))
        return PSHUFB_256(order, reinterpret("uint8x32", bind(mixed)))

    def _answers(
        self, halves: Sequence[Callable[[Expr], Expr]], table: View, offsets: Sequence[Expr]
    ) -> list[Expr]:
        """Return the answers of 16 rows each, int16x16: the last one is a byte's lowest bit."""
        found = [splat(0x0100, "int16") for _ in halves]
        for level, offset in enumerate(offsets):
            here = table.load(WORD_LEVEL * level, WORD_LEVEL)
            both = bind(shuffle([here] * 2, range(16)))
            last = level == self._depth - 1
            for k, load in enumerate(halves):
                threshold = both
                if level:
                    numbers = (reinterpret("uint8x32", v) for v in (both, found[k]))
                    threshold = bind(reinterpret("int16x16", PSHUFB_256(*numbers)))
                bits = splat(1 if last else 0x0202 << level, "int16")
                found[k] = bind(words.with_answer(found[k], bind(load(offset)), threshold, bits))
        return found


def _quads(small: Sequence[int]) -> list[int]:
    """Return bytes, four in an int32 each."""
    return [int.from_bytes(bytes(small[k : k + 4]), "little") for k in range(0, len(small), 4)]
