"""Products of few rows: each weight is loaded, or looked up, once, in registers, for all of them.

Count, int8 at 4 bits on AVX2, for a row: a vector of 32 bytes, 64 weights, takes 3 instructions to
unfold, 2 look-ups, 2 ``vpmaddubsw``, 1 ``vpmaddwd`` and 3 sums: 11, on 4 ports 2.75 cycles. That
is 40 GB/s at 3.5 GHz, more than one core reads from memory and about what it reads from L3: cold,
the bytes of the indices are the limit. Each further row takes 6 more, 1.5 cycles. At 2 bits 19
instructions for 128 weights, at 3 bits 58 for 256 (96 bytes). With VNNI ``vpdpbusd`` replaces all
but the look-ups. float32 at 4 bits: 3 + 2 * (4 + 8) + 8 per 64 weights, 26 of which are shuffles,
on two ports: 13 cycles; bfloat16 in float arithmetic: 3 + 2 * (2 + 2 + 4) + 8.

Row tiles of W are shared out over threads, 16 rows at a time: their sums (four for each row) are
added up and stored together. For one row of x, dense weights are read at two places at a time, the
halves of a thread's share: from memory that takes a tenth less time than one place after the other
(with AVX-512, 32 MB: 15% less where most of them stay in the last cache).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

from lutcc.schedules.x86 import edges
from lutcc.schedules.x86.bfloat16 import finished
from lutcc.schedules.x86.codebook_rows import PAIR_COLUMNS, PreparedRows
from lutcc.schedules.x86.config import MOST_FEW
from lutcc.schedules.x86.context import External, Scratch
from lutcc.schedules.x86.emit import (
    LANES,
    Expr,
    Registers,
    View,
    bind,
    both,
    branch,
    cast,
    equal,
    i64,
    loop,
    maximum,
    minimum,
    registers,
    shuffle,
    splat,
    when,
)
from lutcc.schedules.x86.isa import Isa
from lutcc.schedules.x86.panels import ThreadLoop, share
from lutcc.schedules.x86.product_weights import Weights

#: Rows that are done together at most.
MOST_ROWS = MOST_FEW
#: Numbers of rows that have code of their own; others are done as the next larger one.
VARIANTS = (1, 2, 4, 8)
#: Multiply-adds that must be under way for both units to be busy.
_CHAINS = 8
#: Sums that stay in registers beside tables and weights, with 32 of them and with 16.
_SUMS_512, _SUMS_256 = 16, 4
#: More rows than these take longer than the hardware's prefetching, which software then helps.
_UNAIDED = 1

#: Gives the look-up vectors of a tile, a row vector of it, and a pair of granules.
Tables = Callable[[int, int, int], list[Expr]]


@dataclass(frozen=True)
class Few:
    """The product of some rows.

    Attributes
    ----------
    x, weights
        What is multiplied.
    prefetch
        How many bytes ahead weights are asked for; 0 leaves it to the hardware.
    target
        The result.
    first, count
        Rows of the result.
    """

    x: PreparedRows
    weights: Weights
    prefetch: int
    target: External
    first: Expr
    count: Expr

    def emit(
        self, thread_loop: ThreadLoop, private: Callable[[Expr], Scratch], rows: int | None
    ) -> None:
        """Emit a loop over threads; ``rows`` is N where it is known."""
        layout = self.x.layout
        blocks = -(-layout.rows // LANES)
        known = None if rows is None else {min(rows, MOST_ROWS), rows % MOST_ROWS}
        with thread_loop() as (thread, threads):
            begin, mine = share(i64(blocks), thread, threads)
            least = 0
            sums = private(thread).take(MOST_ROWS * LANES * 4, "int32")
            for most in VARIANTS:
                if known is None or any(least < n <= most for n in known):
                    with when(both(self.count > least, self.count <= most)):
                        self._blocks(most, begin, mine, sums)
                least = most

    def paired(self, rows: int) -> bool:
        """Tell whether weights are read at two places at a time."""
        return rows == 1 and self.weights.packed.direct

    def _blocks(self, rows: int, begin: Expr, count: Expr, sums: View) -> None:
        tiles = LANES // self.x.layout.tile_rows
        if self.paired(rows):
            whole = i64(self.x.layout.tiles // tiles)
            half = bind(maximum(minimum(count, whole - begin), 0) // i64(2))
            with loop(half) as b:
                self._together([bind(begin + b), bind(begin + half + b)], tiles, rows, sums)
            begin, count = bind(begin + half * 2), bind(count - half * 2)
        with loop(count) as b:
            block = bind(begin + b)
            now = bind(minimum(i64(tiles), i64(self.x.layout.tiles) - block * tiles))
            self._together([block], now, rows, sums)

    def _together(self, blocks: list[Expr], tiles: Expr | int, rows: int, sums: View) -> None:
        """Do blocks side by side: row tiles of each, as many as there are in them."""
        layout, each = self.x.layout, LANES // self.x.layout.tile_rows
        with loop(tiles) as i:
            at = bind(i * (layout.tile_rows * 4))
            numbers = [bind(block * each + i) for block in blocks]
            Tile(self, rows, numbers).multiply(sums, at)
        for number, block in enumerate(blocks):
            found = sums.at(number * rows * LANES * 4)
            for r in range(rows):
                if r:
                    with when(r < self.count):
                        self._finish(block, r, found)
                else:
                    self._finish(block, r, found)

    def _finish(self, block: Expr, row: int, sums: View) -> None:
        """Add up the sums of 16 rows of W, and store."""
        view = sums.as_dtype(self.x.granules.sums)
        parts = [bind(view.load((row * LANES + 4 * q) * 4, LANES)) for q in range(4)]
        total = bind(_sums_of_fours(parts))
        at = bind(block * LANES)
        self._store(block, row, self.weights.results(self.x, row, at, total, LANES))

    def _store(self, block: Expr, row: int, value: Expr) -> None:
        outputs, order = self.x.layout.rows, self.weights.order
        view, line = self.target.view, self.first + row
        column = bind(block * LANES)

        def put(valid: int) -> None:
            if order is None:
                at = bind(self.target.index(line, column))
                kept = finished(value, self.target.dtype, self.x.granules.isa)
                edges.store_partial(view, at, kept, valid)
                return
            base = bind(self.target.index(line, 0))
            for lane in range(valid):
                place = cast("int64", order.load(column + lane))
                view.store(base + place, shuffle([value], [lane]))

        tail = outputs % LANES
        if not tail or outputs < LANES:
            put(tail or LANES)
            return
        with branch(equal(block, i64(outputs // LANES))) as (last, other):
            with last:
                put(tail)
            with other:
                put(LANES)


def _sums_of_fours(parts: list[Expr]) -> Expr:
    """Return the sums of each four neighbours in four vectors."""
    while len(parts) > 1:
        parts = [
            bind(
                shuffle([a, b], [*range(0, 2 * LANES, 2)])
                + shuffle([a, b], [*range(1, 2 * LANES, 2)])
            )
            for a, b in zip(parts[::2], parts[1::2], strict=True)
        ]
    return parts[0]


class Tile:
    """The product of row tiles of W, side by side, with ``rows`` rows of x."""

    def __init__(self, few: Few, rows: int, tiles: list[Expr]) -> None:
        self.x, self.prefetch, self.rows, self.tiles = few.x, few.prefetch, rows, tiles
        self.packed, self.granules = few.weights.packed, few.x.granules
        self.layout, self.isa = few.x.layout, few.x.granules.isa
        self.lanes = self.isa.vector_bytes // 4
        self.kind = self.granules.sums
        self.together = _together(self.isa, rows, self.layout.tile)
        cells, under_way = rows * self.together, _CHAINS
        if few.paired(rows) and not self.isa.has_avx512:  # for one tile too: the same sums
            under_way //= 2
        most = 4
        if self.kind == "int32":  # two products a step, and vpdpbusd takes 4 cycles
            most = 2 if self.isa.has_vbmi_vnni else 1
        self.chains = min(most, max(1, under_way // cells))
        sums = len(tiles) * cells * self.chains
        self.acc: Registers = registers(sums, self.kind, self.lanes)

    def multiply(self, sums: View, at: Expr) -> None:
        """Emit it; the sums of row r of x go to ``sums`` from ``64 r + at`` on, tile after tile."""
        for v in range(0, self.layout.tile, self.together):
            self._vectors(range(v, v + self.together), sums, at)

    def _vectors(self, vectors: range, sums: View, at: Expr) -> None:
        """Do some row vectors of the tiles."""
        for slot in range(len(self.tiles) * self.rows * self.together * self.chains):
            self.acc.set(slot, splat(0 if self.kind == "int32" else 0.0, self.kind, self.lanes))
        layout, packed = self.layout, self.packed
        if not layout.table_steps:
            with loop(layout.steps) as step:
                first = bind(step * layout.step_tables)
                pairs = layout.table_columns // PAIR_COLUMNS
                self._step(
                    vectors,
                    step,
                    lambda tile, v, pair: packed.table(self.tiles[tile], first + pair // pairs, v),
                )
        elif layout.tables == 1:
            self._run(vectors, i64(0), i64(0), i64(layout.steps))
        else:
            with loop(layout.tables) as number:
                first = bind(number * layout.table_steps)
                last = minimum(first + layout.table_steps, i64(layout.steps))
                self._run(vectors, number, first, bind(last - first))
        for t, r in product(range(len(self.tiles)), range(self.rows)):
            for v in vectors:
                value = self.acc.get(self._slot(t, v, r, 0))
                for chain in range(1, self.chains):
                    value = value + self.acc.get(self._slot(t, v, r, chain))
                where = at + ((t * self.rows + r) * LANES + v * layout.lanes) * 4
                sums.as_dtype(self.kind).store(where, value, self.lanes)

    def _run(self, vectors: range, number: Expr, first: Expr, count: Expr) -> None:
        """Do steps that share a table."""
        numbered = list(enumerate(self.tiles))
        tables = {
            (t, v): self.packed.table(tile, number, v) for t, tile in numbered for v in vectors
        }
        with loop(count) as s:
            self._step(vectors, bind(first + s), lambda t, v, pair: tables[t, v])

    def _slot(self, tile: int, vector: int, row: int, chain: int) -> int:
        place = (tile * self.together + vector % self.together) * self.rows + row
        return place * self.chains + chain % self.chains

    def _step(self, vectors: range, step: Expr, tables: Tables) -> None:
        column = bind(step * self.layout.step_columns)
        self._prefetch(vectors[0] // self.together, step)
        for v in vectors:
            self._vector(v, step, column, tables)

    def _vector(self, v: int, step: Expr, column: Expr, tables: Tables) -> None:
        """Multiply a step of a row vector of each tile."""
        together, width = self.granules.together, self.granules.columns
        pairs = range(self.layout.step_columns // PAIR_COLUMNS)
        steps = []
        for t, tile in enumerate(self.tiles):
            packed = self.packed.packed(tile, step, v)
            found = self.packed.granules(packed, [tables(t, v, p) for p in pairs])
            steps.append(zip(*[found] * together, strict=True))
        for g, weights in enumerate(zip(*steps, strict=True)):
            at = column + g * together * width
            for r in range(self.rows):
                parts = self.x.parts(i64(r * self.x.columns) + at)
                for t, factors in enumerate(weights):
                    slot = self._slot(t, v, r, g)
                    total = self.granules.added(self.acc.get(slot), factors, parts, keep=False)
                    self.acc.set(slot, total)

    def _prefetch(self, turn: int, step: Expr) -> None:
        """Ask for what comes later, evenly: at the first turn for the next tile's first part."""
        if self.rows <= _UNAIDED or not self.prefetch:
            return
        layout, turns = self.layout, self.layout.tile // self.together
        share = layout.step_bytes // turns
        if turns == 1:
            ahead = step * share + self.prefetch
        else:
            ahead = step * share + (layout.steps * (layout.step_bytes + turn * share))
        for tile in self.tiles:
            at = bind(tile * (layout.steps * layout.step_bytes) + ahead)
            for line in range(0, share, 64):
                self.packed.indices.prefetch_bytes(at + line)


def _together(isa: Isa, rows: int, tile: int) -> int:
    """Return how many row vectors of a tile are done at a time: they share what is read of x."""
    sums = _SUMS_512 if isa.has_avx512 else _SUMS_256
    return max(n for n in (1, 2, 4) if n <= tile and (n == 1 or n * rows <= sums))
