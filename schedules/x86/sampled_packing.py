"""Packs the taken columns of a and rows of b for ``sampled_matmul``, whatever their strides.

A *step* of the product is one term of each sum, in float32: bfloat16 factors are widened. Where the
CPU multiplies pairs of bfloat16 (``vdpbf16ps``), a step is two terms, which lie side by side in 32
bits; of an odd number of terms the last one's partner is zero bits in both factors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lutcc.schedules.x86.bfloat16 import rounded, widened
from lutcc.schedules.x86.context import External
from lutcc.schedules.x86.emit import (
    LANES,
    Expr,
    View,
    bind,
    branch,
    cast,
    const,
    differs,
    equal,
    hold,
    i64,
    loop,
    minimum,
    reinterpret,
    select,
    splat,
    when,
)
from lutcc.schedules.x86.panels import Tile

#: Lines of memory that are read side by side: lines a power of two apart share a set of the L1
#: cache, which holds 8 of them.
LINES = 8
_HIGH = 0xFFFF0000


def list_taken(
    shared: Any, indices: View, scales: View, places: int, group: int, columns: int
) -> None:
    """Write which columns are taken and what each counts, and one more that counts nothing."""
    shared.count.store(0, hold(const(0, "int32")))
    with loop(places) as s:
        factor = bind(scales.load(s))
        with when(differs(factor, const(0.0, "float32"))):
            pair = bind(cast("int64", indices.load(s)) * group)
            with loop(minimum(i64(group), columns - pair)) as c:
                at = bind(shared.count.load(0))
                shared.columns.store(cast("int64", at), cast("int32", pair + c))
                shared.factors.store(cast("int64", at), factor)
                shared.count.store(0, at + const(1, "int32"))
    end = bind(cast("int64", shared.count.load(0)))
    shared.columns.store(end, hold(const(0, "int32")))
    shared.factors.store(end, const(0.0, "float32"))


@dataclass(frozen=True)
class Packing:
    """How both factors are packed.

    Attributes
    ----------
    tile
        The register tile; ``tile.pairs`` says whether a step is two terms.
    a, b
        The factors.
    rows, outputs
        N and M.
    bfloat16
        Whether the factors are.
    columns, factors
        The taken columns and the scale of each, see :func:`list_taken`.
    live
        How many are taken.
    """

    tile: Tile
    a: External
    b: External
    rows: Expr
    outputs: int
    bfloat16: bool
    columns: View
    factors: View
    live: Expr

    @property
    def terms(self) -> int:
        """Terms of a step."""
        return 2 if self.tile.pairs else 1

    @property
    def steps(self) -> Expr:
        """Steps of all the taken columns."""
        return bind((self.live + self.terms - 1) // i64(self.terms))

    def pack_columns(self, where: View, panel: Expr) -> None:
        """Pack the taken rows of one panel of b, times their scales: [step][column]."""
        width, steps = self.tile.columns, self.steps
        column = bind(panel * width)

        def whole() -> None:
            with branch(equal(self.b.column_stride, i64(1))) as (lying, strided):
                with lying:
                    self._lines(where, column, steps)
                with strided:
                    self._numbers(where, column, steps, width)

        tail = self.outputs % width
        if not tail:
            whole()
        elif self.outputs < width:
            self._numbers(where, column, steps, tail)
        else:
            with branch(equal(panel, i64(self.outputs // width))) as (last, other):
                with last:
                    self._numbers(where, column, steps, tail)
                with other:
                    whole()

    def _lines(self, where: View, column: Expr, steps: Expr) -> None:
        """Pack lines of b that lie end to end."""
        width, b = self.tile.columns, self.b
        with loop(steps) as d:
            rows = [bind(b.index(taken, 0) + column) for taken in self._taken(d)]
            scaled = self._scaled(d)
            for c in range(0, width, LANES):
                loads = [b.view.load(row + c, LANES) for row in rows]
                values = [bind(widened(value, self.bfloat16)) for value in loads]
                where.store(d * width + c, scaled(values), LANES)

    def _numbers(self, where: View, column: Expr, steps: Expr, valid: int) -> None:
        """Pack one number after the other, a few lines of memory at a time, then scale."""
        width, b = self.tile.columns, self.b
        for part in range(0, valid, LINES):
            with loop(steps) as d:
                rows = [bind(b.index(taken, column)) for taken in self._taken(d)]
                for c in range(part, min(part + LINES, valid)):
                    found = [b.view.load(row + b.column_stride * c) for row in rows]
                    where.store(d * width + c, self._raw(found))
        if valid < width:
            with loop(steps) as d:
                for c in range(valid, width):
                    where.store(d * width + c, hold(const(0, where.dtype)))
        with loop(steps) as d:
            scaled = self._scaled(d)
            for c in range(0, width, LANES):
                value = bind(where.load(d * width + c, LANES))
                where.store(d * width + c, scaled(self._parts(value)), LANES)

    def pack_rows(self, where: View, row: Expr, start: Expr, steps: Expr) -> None:
        """Pack the taken columns of one panel of rows; rows past the end repeat the last."""
        rows, a = self.tile.rows, self.a
        bases = [
            bind(minimum(row + r, self.rows - 1) * a.row_stride if r else row * a.row_stride)
            for r in range(rows)
        ]
        for part in range(0, rows, LINES):
            with loop(steps) as d:
                columns = [bind(taken * a.column_stride) for taken in self._taken(start + d)]
                mask = self._mask(start + d)
                for r in range(part, min(part + LINES, rows)):
                    value = self._raw([a.view.load(bases[r] + column) for column in columns])
                    where.store(d * rows + r, value if mask is None else value & mask)

    def _taken(self, step: Expr) -> list[Expr]:
        """Return the columns of a step."""
        first = step * self.terms
        return [cast("int64", self.columns.load(first + t)) for t in range(self.terms)]

    def _raw(self, found: Sequence[Expr]) -> Expr:
        """Return numbers as they lie in one word, before they are scaled."""
        if not self.tile.pairs:
            return widened(found[0], self.bfloat16)
        low, high = (cast("uint32", value) for value in found)
        return low | (high << const(16, "uint32"))

    def _parts(self, word: Expr) -> list[Expr]:
        """Return the float32 values of words of :meth:`_raw`."""
        if not self.tile.pairs:
            return [word]
        low, high = word << splat(16, "uint32"), word & splat(_HIGH, "uint32")
        return [bind(reinterpret("float32x16", bits)) for bits in (low, high)]

    def _mask(self, step: Expr) -> Expr | None:
        """Return which bits of a step's words are there; None where all are."""
        if not self.tile.pairs:
            return None
        there = step * 2 + 1 < self.live
        return bind(select(there, const(0xFFFFFFFF, "uint32"), const(0xFFFF, "uint32")))

    def _scaled(self, step: Expr) -> Callable[[Sequence[Expr]], Expr]:
        """Return a function from a step's values to what is packed."""
        first = step * self.terms
        factors = [bind(splat(self.factors.load(first + t))) for t in range(self.terms)]
        mask = self._mask(step)

        def scaled(values: Sequence[Expr]) -> Expr:
            products = [bind(v * f) for v, f in zip(values, factors, strict=True)]
            if not self.bfloat16:
                return products[0]
            halves = [rounded(value) for value in products]
            if mask is None:
                return halves[0]
            low, high = (reinterpret("uint32x16", half) for half in halves)
            word = (low >> splat(16, "uint32")) | (high & splat(_HIGH, "uint32"))
            return word & splat(mask)

        return scaled
