"""Products of many rows: dot products with panels of weights in the L1 cache.

A *panel* is 4 row vectors of W (or 2), 8 rows on AVX2 and 16 on AVX-512, over a block of columns,
one row of W in each 16-byte lane. Dense weights lie like that in the blob; others are expanded
once, as they lie. A panel is multiplied with all rows of x of a block before the next one is: a
*granule*, 16 bytes of a row of x (16 integers, 8 bfloat16 or 4 floats), is broadcast to all lanes.
A sum so has its parts in the 4 words of a lane, which are added at the end. Nothing is transposed,
neither W nor x.

Count, float32 on AVX2, of 3 rows of x: 12 multiply-adds and 7 loads, 6 cycles on two ports. int8 in
16-bit words, of 2 rows: 8 multiplications, 8 sums, 6 loads for 128 products: 4 cycles on four
ports. int8 by 2 granules, of a row: 12 multiplications (two ``vpmaddubsw``, whose results are added
in 16 bits, and one ``vpmaddwd``), 12 sums, 11 loads: 6 cycles on two ports for multiplications.
AVX-512, of 6 rows: 24 multiply-adds (``vpdpbusd``, ``vdpbf16ps``), 10 loads, 12 cycles. The
multiplications are the limit. To expand 32 weights takes some 8 instructions for integers and 28
for floats, and serves all rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from lutcc.schedules.intrinsics import streaming
from lutcc.schedules.x86 import edges
from lutcc.schedules.x86.bfloat16 import finished
from lutcc.schedules.x86.codebook_rows import PAIR_COLUMNS, PreparedRows, RowsInPlace
from lutcc.schedules.x86.context import External, Scratch
from lutcc.schedules.x86.emit import (
    Expr,
    Registers,
    View,
    bind,
    branch,
    cast,
    equal,
    i64,
    loop,
    maximum,
    minimum,
    registers,
    reinterpret,
    select,
    shuffle,
    splat,
    when,
)
from lutcc.schedules.x86.panels import ThreadLoop, ceiling, share
from lutcc.schedules.x86.product_cut import Cut
from lutcc.schedules.x86.product_weights import Weights

#: Up to so many panels rows of float32 are read as they lie: a copy would serve too few outputs.
PANELS_IN_PLACE = 2


@dataclass(frozen=True)
class Many:
    """The product of many rows.

    Attributes
    ----------
    cut, weights
        What is multiplied, and how.
    x
        Room for the rows of a block, shared by all threads.
    capacity
        How many these are.
    source, target
        x and the result.
    """

    cut: Cut
    weights: Weights
    x: PreparedRows
    capacity: int
    source: External
    target: External

    def emit(self, rows: Expr, thread_loop: ThreadLoop, private: Callable[[Expr], Scratch]) -> None:
        """Emit blocks of rows of about one size, and for each two loops over threads."""
        blocks = bind(ceiling(rows, self.capacity))
        each = bind(ceiling(ceiling(rows, maximum(blocks, 1)), self.cut.tile_rows))
        each = bind(each * self.cut.tile_rows)
        with loop(blocks) as b:
            first = bind(b * each)
            now = bind(maximum(minimum(each, rows - first), 0))

            def prepared(first: Expr = first, now: Expr = now) -> None:
                with thread_loop() as (thread, threads):
                    begin, own = share(now, thread, threads)
                    line = private(thread).take(self.x.columns, "float32")
                    with loop(own) as r:
                        row = bind(begin + r)
                        self.x.prepare(self.source, bind(first + row), row, line)
                with thread_loop() as (thread, threads):
                    Block(self, first, now, private(thread)).emit(thread, threads)

            if self._in_place():
                unprepared = replace(self, x=RowsInPlace.of(self.x, self.source, first, now))
                with branch(equal(self.source.column_stride, i64(1))) as (neighbours, other):
                    with neighbours, thread_loop() as (thread, threads):
                        Block(unprepared, first, now, private(thread)).emit(thread, threads)
                    with other:
                        prepared()
            else:
                prepared()

    def _in_place(self) -> bool:
        """Tell whether to read rows as they lie, where a copy would serve too few outputs."""
        few = self.cut.panels <= PANELS_IN_PLACE or self.source.dtype == "bfloat16"
        plain = type(self.x) is PreparedRows
        return few and plain and RowsInPlace.possible(self.x, self.source)


class Block:
    """What a thread does with a block of rows of x."""

    def __init__(self, many: Many, first_row: Expr, rows: Expr, scratch: Scratch) -> None:
        self.many, self.cut, self.layout = many, many.cut, many.cut.layout
        self.first_row, self.rows = first_row, rows
        self.vector = self.layout.vector_bytes
        self.words, self.bytes = self.vector // 4, f"uint8x{self.vector}"
        self.kind = self.cut.granules.sums
        self.packed = many.weights.packed
        self.panel: View | None = None
        if not self.packed.direct:
            granules = self.cut.block_steps * self.cut.step_granules
            self.panel = scratch.take(granules * self.cut.vectors * self.vector, "uint8")
        self.partial: View | None = None
        if self.cut.blocks > 1:
            sums = self.cut.config.together * many.capacity * self.cut.width
            self.partial = scratch.take(sums, self.kind)

    def emit(self, thread: Expr, threads: Expr) -> None:
        """Share out the panels of W, or, where they are few, the rows of x."""
        cut = self.cut
        tiles = bind(ceiling(self.rows, cut.tile_rows))
        first_panel, panels = i64(0), i64(cut.panels)
        first_tile = i64(0)
        if cut.panels < cut.config.together:
            first_tile, tiles = share(tiles, thread, threads)
        else:
            first_panel, panels = share(panels, thread, threads)
        together = cut.config.together
        with loop(ceiling(panels, together)) as group:
            first = bind(first_panel + group * together)
            now = bind(minimum(i64(together), first_panel + panels - first))
            with loop(cut.blocks) as block, loop(now) as p:
                step = bind(block * cut.block_steps)
                steps = bind(minimum(i64(cut.block_steps), self.layout.steps - step))
                panel = bind(first + p)
                if self.panel is not None:
                    self._expand(self.panel, panel, step, steps)
                with loop(tiles) as t:
                    row = bind((first_tile + t) * cut.tile_rows)
                    self._tile(row, panel, p, block, step, steps)

    def _expand(self, target: View, panel: Expr, first: Expr, steps: Expr) -> None:
        """Expand the weights of a panel: [granule][vector]."""
        packed, layout, vectors = self.packed, self.layout, self.cut.vectors
        for vector in range(vectors):
            number = bind(minimum(panel * vectors + vector, i64(layout.tiles * layout.tile - 1)))
            tile = bind(number // i64(layout.tile))
            inside = bind(number - tile * layout.tile)
            only = self._tables(tile, inside, i64(0)) if layout.tables == 1 else None
            with loop(steps) as s:
                step = bind(first + s)
                tables = only or self._tables(tile, inside, step)
                found = packed.granules(packed.packed(tile, step, inside), tables)
                for g, value in enumerate([reinterpret(self.bytes, value) for value in found]):
                    place = bind((s * self.cut.step_granules + g) * vectors + vector)
                    target.store(place * self.vector, value, self.vector)

    def _tables(self, tile: Expr, vector: Expr, step: Expr) -> list[list[Expr]]:
        """Return the look-up vectors of each 32 columns of a step."""
        packed, layout = self.packed, self.layout
        pairs = layout.step_columns // PAIR_COLUMNS
        if layout.table_steps:
            return [packed.table(tile, bind(step // i64(layout.table_steps)), vector)] * pairs
        first = bind(step * layout.step_tables)
        each = layout.table_columns // PAIR_COLUMNS
        return [packed.table(tile, first + pair // each, vector) for pair in range(pairs)]

    def _tile(
        self, row: Expr, panel: Expr, slot: Expr, block: Expr, step: Expr, steps: Expr
    ) -> None:
        """Multiply a tile of rows of x with the panel."""
        cut, width, capacity = self.cut, self.cut.width, self.many.capacity
        acc = registers(cut.tile_rows * cut.vectors, self.kind, self.words)
        for k in range(cut.tile_rows * cut.vectors):
            acc.set(k, self._zeros(self.words))
        starts = [bind(self.many.x.start(bind(row + r), step)) for r in range(cut.tile_rows)]
        self._terms(acc, starts, panel, step, steps)
        sums = [self._sums(acc, r) for r in range(cut.tile_rows)]
        partial = self.partial
        if partial is None:
            self._finish(panel, row, sums)
            return
        place = bind((slot * capacity + row) * width)
        later = bind(block > i64(0))
        for r in range(cut.tile_rows):
            there = bind(partial.load(place + r * width, width))
            sums[r] = bind(sums[r] + bind(select(later, there, self._zeros(width))))
        with branch(equal(block, i64(cut.blocks - 1))) as (last, earlier):
            with last:
                self._finish(panel, row, sums)
            with earlier:
                for r in range(cut.tile_rows):
                    partial.store(place + r * width, sums[r], width)

    def _zeros(self, lanes: int) -> Expr:
        return splat(0 if self.kind == "int32" else 0.0, self.kind, lanes)

    def _terms(
        self, acc: Registers, starts: list[Expr], panel: Expr, step: Expr, steps: Expr
    ) -> None:
        """Add the products of the columns of some steps."""
        cut, vector = self.cut, self.vector
        together, columns = cut.granules.together, cut.granules.columns
        expanded = self.panel
        if expanded is not None:
            with loop(steps) as s:
                base = bind(self.many.x.column(step, s))
                with loop(cut.step_granules // together) as n:
                    first = bind(s * cut.step_granules + n * together)
                    column = bind(base + n * (together * columns))

                    def load(vector_number: int, k: int) -> Expr:
                        place = (first + k) * cut.vectors + vector_number
                        return expanded.load(place * vector, vector)

                    self._step(acc, [bind(start + column) for start in starts], load)
            return
        layout = self.layout
        with loop(steps) as s:
            base = bind((panel * layout.steps + step + s) * layout.step_bytes)
            column = bind(self.many.x.column(step, s))
            for g in range(cut.step_granules):

                def load_packed(vector_number: int, k: int, g: int = g) -> Expr:
                    place = vector_number * layout.step_vectors + g + k
                    return self.packed.indices.load(base + place * vector, vector)

                here = [bind(start + (column + g * columns)) for start in starts]
                self._step(acc, here, load_packed)

    def _step(self, acc: Registers, starts: list[Expr], load: Callable[[int, int], Expr]) -> None:
        """Add what is multiplied together of each row of x times the panel's.

        The factors of one side stay in registers while those of the other come one by one. Where
        rows are scattered, those are theirs, and nothing is pinned, which would cost up to half.
        """
        together, vectors = self.cut.granules.together, self.cut.vectors

        def weights(c: int) -> list[Expr]:
            return [bind(load(c, k)) for k in range(together)]

        scattered = self.many.x.scattered
        if vectors * together < len(starts) and not scattered:
            held = [weights(c) for c in range(vectors)]
            for r, start in enumerate(starts):
                parts = self.many.x.parts(start)
                for c in range(vectors):
                    self._add(acc, r * vectors + c, held[c], parts, last=c == vectors - 1)
            return
        rows = [self.many.x.parts(start) for start in starts]
        for c in range(vectors):
            found = weights(c)
            for r, parts in enumerate(rows):
                last = r == len(rows) - 1 and not scattered
                self._add(acc, r * vectors + c, found, parts, last=last)

    def _add(
        self, acc: Registers, slot: int, weights: list[Expr], parts: list[Expr], *, last: bool
    ) -> None:
        """Add products to a sum; nothing that comes after the ``last`` one is loaded before it."""
        total = self.cut.granules.added(acc.get(slot), weights, parts, keep=True)
        acc.set(slot, bind(streaming.pin(total, self.kind, self.words)) if last else total)

    def _sums(self, acc: Registers, row: int) -> Expr:
        """Return the sums of a row of x, one for each row of W of the panel."""
        lanes = self.layout.lanes

        def folded(a: Expr, b: Expr) -> Expr:
            parts = []
            for odd in (0, 1):
                words = [(lane * 4, 2 * k + odd) for lane in range(lanes) for k in range(2)]
                even, rest = words[::2], words[1::2]
                picks = [
                    source * self.words + base + word
                    for first, second in zip(even, rest, strict=True)
                    for source in (0, 1)
                    for base, word in (first, second)
                ]
                parts.append(bind(shuffle([a, b], picks)))
            return bind(parts[0] + parts[1])

        count = self.cut.vectors
        found = [acc.get(row * count + c) for c in range(count)]
        for _ in range(2):  # a single vector is folded with itself: half of what comes is idle
            found = [folded(a, b) for a, b in zip(found[::2], found[1::2] or found, strict=True)]
        order = [i % lanes * 4 + i // lanes for i in range(count * lanes)]
        return bind(shuffle(found, order))

    def _finish(self, panel: Expr, row: Expr, sums: list[Expr]) -> None:
        """Turn sums into results and store those that exist."""
        width, weights, x = self.cut.width, self.many.weights, self.many.x
        column = bind(panel * width)
        results = [
            weights.results(x, bind(row + r), column, value, width) for r, value in enumerate(sums)
        ]

        def store(valid: int) -> None:
            for r, value in enumerate(results):
                with when(row + r < self.rows):
                    self._store(bind(self.first_row + row + r), column, value, valid)

        tail = self.layout.rows % width
        if not tail or self.cut.panels == 1:
            store(tail or width)
            return
        with branch(equal(panel, i64(self.cut.panels - 1))) as (last, other):
            with last:
                store(tail)
            with other:
                store(width)

    def _store(self, row: Expr, column: Expr, value: Expr, valid: int) -> None:
        """Store the results of a row of x, each where its output is."""
        target, order = self.many.target, self.many.weights.order
        if order is None:
            at = bind(target.index(row, column))
            value = finished(value, target.dtype, self.cut.granules.isa)
            edges.store_partial(target.view, at, value, valid)
            return
        line = registers(1, "float32", self.cut.width)
        line.set(0, value)
        base = bind(target.index(row, 0))
        with loop(valid) as lane:
            place = cast("int64", order.load(column + lane))
            target.view.store(base + place, line.view.load(lane))
