"""Matrix products over packed panels, after Goto: the core of the sampled products.

One factor is packed in panels of ``tile.rows`` rows, [panel][depth][rows], the other in panels of
``tile.columns`` columns, [panel][depth][columns], so that the micro-kernel reads both end to end:
in each step it broadcasts ``rows`` numbers and multiplies each with a panel's line of columns. A
panel of columns stays in the L1 cache while a block of rows, which L2 holds, passes by.

Count, for a step of 6 x 16 on AVX2: 12 multiply-adds (6 cycles on two ports), 8 loads (4 cycles):
the multiply-adds are the limit.

Source: Goto and van de Geijn, Anatomy of high-performance matrix multiplication, 2008.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from lutcc.schedules.x86.bfloat16 import dot_pairs
from lutcc.schedules.x86.config import ProductConfig
from lutcc.schedules.x86.context import Scratch
from lutcc.schedules.x86.emit import (
    LANES,
    Expr,
    Registers,
    View,
    bind,
    branch,
    equal,
    fma,
    i64,
    loop,
    maximum,
    minimum,
    registers,
    splat,
)

#: Opens a loop over threads; yields (thread, number of threads).
ThreadLoop = Callable[[], AbstractContextManager[tuple[Expr, Expr]]]
#: Fills register (row of the tile, chunk of 16 columns) before the first block of the depth.
Start = Callable[[int, int], Expr]
#: Takes the finished registers.
Finish = Callable[[Callable[[int, int], Expr]], None]


@dataclass(frozen=True)
class Tile:
    """Register tile: rows times chunks of 16 columns.

    ``pairs``: a term is a pair of bfloat16 products, whose factors lie side by side in 32 bits.
    """

    rows: int
    chunks: int
    pairs: bool = False

    @property
    def columns(self) -> int:
        """Columns of the tile."""
        return self.chunks * LANES


@dataclass(frozen=True)
class Depth:
    """How the terms of the sums are cut: ``passes`` blocks of ``step`` terms, the last may be less.

    Attributes
    ----------
    terms
        How many there are, known at run time only.
    passes, step
        At least one pass, so that a sum of no terms is written too.
    many
        Whether more than one pass can happen.
    """

    terms: Expr
    passes: Expr
    step: Expr
    many: bool

    @classmethod
    def cut(cls, terms: Expr, most: int, config: ProductConfig) -> Depth:
        """Cut ``terms`` (at most ``most``) in equal blocks."""
        passes = bind(maximum(ceiling(terms, config.depth), 1))
        return cls(terms, passes, bind(ceiling(terms, passes)), most > config.depth)

    def block(self, number: Expr) -> tuple[Expr, Expr]:
        """Return first term and number of terms of a pass."""
        first = bind(number * self.step)
        return first, bind(maximum(minimum(self.step, self.terms - first), 0))


def ceiling(value: Expr, divisor: int | Expr) -> Expr:
    """Return ``value / divisor`` rounded up."""
    return (value + divisor - 1) // i64(divisor)


def share(count: Expr, thread: Expr, threads: Expr) -> tuple[Expr, Expr]:
    """Return first and number of the items that a thread does."""
    each = bind(ceiling(count, threads))
    first = bind(thread * each)
    return first, bind(maximum(minimum(each, count - first), 0))


@dataclass(frozen=True)
class Block:
    """Panels that are multiplied with one another, over one block of the depth.

    Attributes
    ----------
    tile
        The register tile.
    rows, columns
        The packed factors, ``depth`` terms of each.
    columns_step
        Distance of two panels of columns, in numbers.
    depth
        Terms.
    partial
        Where sums wait between passes, tile after tile; None where one pass does.
    number, passes
        Which pass this is, of how many.
    """

    tile: Tile
    rows: View
    columns: View
    columns_step: Expr
    depth: Expr
    partial: View | None
    number: Expr
    passes: Expr

    def multiply(
        self,
        row_panels: Expr,
        column_panels: Expr,
        start: Callable[[Expr, Expr], Start],
        finish: Callable[[Expr, Expr], Finish],
    ) -> None:
        """Multiply each panel of rows with each panel of columns."""
        with loop(column_panels) as j, loop(row_panels) as i:
            slot = bind((j * row_panels + i) * (self.tile.rows * self.tile.columns))
            self._tile(i, j, slot, start(i, j), finish(i, j))

    def _tile(self, i: Expr, j: Expr, slot: Expr, start: Start, finish: Finish) -> None:
        rows, chunks, width = self.tile.rows, self.tile.chunks, self.tile.columns
        acc = registers(rows * chunks, "float32", LANES)

        def fill(value: Start) -> None:
            for r in range(rows):
                for c in range(chunks):
                    acc.set(r * chunks + c, value(r, c))

        def place(r: int, c: int) -> Expr:
            return slot + (r * width + c * LANES)

        partial = self.partial
        if partial is None:
            fill(start)
        else:
            with branch(equal(self.number, i64(0))) as (first, later):
                with first:
                    fill(start)
                with later:
                    fill(lambda r, c: partial.load(place(r, c), LANES))
        left = self.rows.at(bind(i * self.depth * rows))
        right = self.columns.at(bind(j * self.columns_step))
        with loop(self.depth) as d:
            self._step(acc, left, right, d)

        def result(r: int, c: int) -> Expr:
            return acc.get(r * chunks + c)

        if partial is None:
            finish(result)
            return
        with branch(equal(self.number, self.passes - 1)) as (last, earlier):
            with last:
                finish(result)
            with earlier:
                for r in range(rows):
                    for c in range(chunks):
                        partial.store(place(r, c), result(r, c), LANES)

    def _step(self, acc: Registers, left: View, right: View, d: Expr) -> None:
        """Add one term to each sum."""
        rows, chunks = self.tile.rows, self.tile.chunks
        line = [bind(right.load(d * self.tile.columns + c * LANES, LANES)) for c in range(chunks)]
        for r in range(rows):
            value = bind(splat(left.load(d * rows + r)))
            for c in range(chunks):
                slot = r * chunks + c
                if self.tile.pairs:
                    acc.set(slot, dot_pairs(acc.get(slot), value, line[c]))
                else:
                    acc.set(slot, fma(value, line[c], acc.get(slot)))


def partial_sums(scratch: Scratch, depth: Depth, numbers: int) -> View | None:
    """Take room for sums between passes, if there can be more than one pass."""
    return scratch.take(numbers, "float32") if depth.many else None
