"""``codebook_matmul`` of many rows: weights expanded once into the L1 cache, dot products of them.

A *panel* is 4 row vectors of W, 8 rows on AVX2 and 16 on AVX-512, over a block of columns. It is
expanded as it lies, one row of W in each 16-byte lane, and multiplied with all rows of x of a block
before the next one is: a *granule*, 16 bytes of a row of x (16 integers, 8 bfloat16 or 4 floats),
is broadcast to all lanes. A sum so has its parts in the 4 words of a lane, which are added at the
end. Nothing is transposed, neither W nor x.

Count, float32 on AVX2, of 3 rows of x: 12 multiply-adds and 7 loads, 6 cycles on two ports. int8,
of 2 rows and 2 granules: 24 multiplications (two ``vpmaddubsw``, whose results are added in 16
bits, and one ``vpmaddwd``), 24 sums, 14 loads: 12 cycles on two ports for multiplications. AVX-512,
of 6 rows: 24 multiply-adds (``vpdpbusd``, ``vdpbf16ps``), 10 loads, 12 cycles. The multiplications
are the limit. To expand 32 weights takes some 8 instructions for integers and 28 for floats, and
serves all rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lutcc.schedules.intrinsics import streaming, x86
from lutcc.schedules.x86 import edges
from lutcc.schedules.x86.bfloat16 import dot_pairs
from lutcc.schedules.x86.codebook_decode import (
    bfloat16_weights,
    float_weights,
    index_vectors,
    integer_weights,
)
from lutcc.schedules.x86.codebook_few import Weights, widened
from lutcc.schedules.x86.codebook_rows import PAIR_COLUMNS, PreparedRows
from lutcc.schedules.x86.context import External, Scratch
from lutcc.schedules.x86.emit import (
    Expr,
    Registers,
    View,
    bind,
    branch,
    cast,
    equal,
    fma,
    i64,
    loop,
    minimum,
    registers,
    reinterpret,
    select,
    shuffle,
    splat,
    when,
)
from lutcc.schedules.x86.isa import Isa
from lutcc.schedules.x86.pack_codebooks import CodebookLayout
from lutcc.schedules.x86.panels import ThreadLoop, ceiling, share

#: Row vectors of a panel.
VECTORS = 4
#: Bytes of an expanded panel: half of the L1 cache.
PANEL_BYTES = 16 << 10
#: Panels that are done one after the other with a block of columns of x, which L2 holds.
TOGETHER = 8
#: Rows of x of a block, and bytes that their numbers take at most.
BLOCK_ROWS = 120
BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class Cut:
    """How a product of many rows is cut.

    Attributes
    ----------
    isa, layout, form
        The level; how W is packed; the arithmetic.
    """

    isa: Isa
    layout: CodebookLayout
    form: str

    @property
    def pairs(self) -> bool:
        """Whether two granules of integers are multiplied together."""
        return self.form == "int8" and not self.isa.has_vbmi_vnni

    @property
    def granule(self) -> int:
        """Columns of a granule."""
        return {"int8": 16, "bfloat16": 8 if self.isa.has_bf16 else 4, "float32": 4}[self.form]

    @property
    def tile_rows(self) -> int:
        """Rows of x of a register tile."""
        return 6 if self.isa.has_avx512 else 2 if self.form == "int8" else 3

    @property
    def width(self) -> int:
        """Outputs of a panel: 8 or 16."""
        return VECTORS * self.layout.lanes

    @property
    def panels(self) -> int:
        """Panels of W."""
        return -(-self.layout.rows // self.width)

    @property
    def step_granules(self) -> int:
        """Granules of a step of the packed indices."""
        return self.layout.step_columns // self.granule

    @property
    def blocks(self) -> int:
        """Blocks of columns."""
        whole = self.layout.steps * self.step_granules * VECTORS * self.layout.vector_bytes
        return -(-whole // PANEL_BYTES)

    @property
    def block_steps(self) -> int:
        """Steps of a block of columns."""
        return -(-self.layout.steps // self.blocks)

    def block_rows(self, rows: int | None) -> int:
        """Rows of x of a block, in whole tiles; ``rows`` is N where it is known."""
        row_bytes = self.layout.steps * self.step_granules * 16
        most = max(1, min(BLOCK_ROWS, BLOCK_BYTES // row_bytes))
        most = most if rows is None else min(most, rows)
        return -(-most // self.tile_rows) * self.tile_rows


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
        """Emit blocks of rows, and for each two loops over threads."""
        with loop(ceiling(rows, self.capacity)) as b:
            first = bind(b * self.capacity)
            now = bind(minimum(i64(self.capacity), rows - first))
            with thread_loop() as (thread, threads):
                begin, own = share(now, thread, threads)
                line = private(thread).take(self.x.columns, "float32")
                with loop(own) as r:
                    row = bind(begin + r)
                    self.x.prepare(self.source, bind(first + row), row, line)
            with thread_loop() as (thread, threads):
                _Block(self, first, now, private(thread)).emit(thread, threads)


class _Block:
    """What a thread does with a block of rows of x."""

    def __init__(self, many: Many, first_row: Expr, rows: Expr, scratch: Scratch) -> None:
        self.many, self.cut, self.layout = many, many.cut, many.cut.layout
        self.first_row, self.rows = first_row, rows
        self.vector = self.layout.vector_bytes
        self.words = self.vector // 4
        self.kind = "int32" if self.cut.form == "int8" else "float32"
        granules = self.cut.block_steps * self.cut.step_granules
        self.panel = scratch.take(granules * VECTORS * self.vector, "uint8")
        self.partial: View | None = None
        if self.cut.blocks > 1:
            self.partial = scratch.take(TOGETHER * many.capacity * self.cut.width, self.kind)

    def emit(self, thread: Expr, threads: Expr) -> None:
        """Share out the panels of W, or, where they are few, the rows of x."""
        cut = self.cut
        tiles = bind(ceiling(self.rows, cut.tile_rows))
        first_panel, panels = i64(0), i64(cut.panels)
        first_tile = i64(0)
        if cut.panels < TOGETHER:
            first_tile, tiles = share(tiles, thread, threads)
        else:
            first_panel, panels = share(panels, thread, threads)
        with loop(ceiling(panels, TOGETHER)) as group:
            first = bind(first_panel + group * TOGETHER)
            now = bind(minimum(i64(TOGETHER), first_panel + panels - first))
            with loop(cut.blocks) as block, loop(now) as p:
                step = bind(block * cut.block_steps)
                steps = bind(minimum(i64(cut.block_steps), self.layout.steps - step))
                panel = bind(first + p)
                self._expand(panel, step, steps)
                with loop(tiles) as t:
                    row = bind((first_tile + t) * cut.tile_rows)
                    self._tile(row, panel, p, block, step, steps)

    def _expand(self, panel: Expr, first: Expr, steps: Expr) -> None:
        """Expand the weights of a panel: [granule][vector]."""
        packed, layout = self.many.weights.packed, self.layout
        for vector in range(VECTORS):
            number = bind(minimum(panel * VECTORS + vector, i64(layout.tiles * layout.tile - 1)))
            tile = bind(number // i64(layout.tile))
            inside = bind(number - tile * layout.tile)
            only = self._tables(tile, inside, i64(0)) if layout.tables == 1 else None
            with loop(steps) as s:
                step = bind(first + s)
                tables = only or self._tables(tile, inside, step)
                found = self._granules(packed.packed(tile, step, inside), tables)
                for g, value in enumerate(found):
                    place = bind((s * self.cut.step_granules + g) * VECTORS + vector)
                    self.panel.store(place * self.vector, value, self.vector)

    def _tables(self, tile: Expr, vector: Expr, step: Expr) -> list[list[Expr]]:
        """Return the look-up vectors of each 32 columns of a step."""
        packed, layout = self.many.weights.packed, self.layout
        pairs = layout.step_columns // PAIR_COLUMNS
        if layout.table_steps:
            return [packed.table(tile, bind(step // i64(layout.table_steps)), vector)] * pairs
        first = bind(step * layout.step_tables)
        each = layout.table_columns // PAIR_COLUMNS
        return [packed.table(tile, first + pair // each, vector) for pair in range(pairs)]

    def _granules(self, packed: list[Expr], tables: list[list[Expr]]) -> list[Expr]:
        """Return the expanded vectors of a step, in bytes."""
        isa, bits, form = self.cut.isa, self.layout.bits, self.cut.form
        if form == "int8":
            return integer_weights(isa, packed, bits, tables)
        found: list[Expr] = []
        for n, index in enumerate(index_vectors(packed, bits)):
            planes = tables[n // 2]
            if form == "float32":
                found += float_weights(isa, index, planes)
                continue
            halves = bfloat16_weights(isa, index, planes)
            found += halves if isa.has_bf16 else [w for half in halves for w in widened(half)]
        return [reinterpret(f"uint8x{self.vector}", value) for value in found]

    def _tile(
        self, row: Expr, panel: Expr, slot: Expr, block: Expr, step: Expr, steps: Expr
    ) -> None:
        """Multiply a tile of rows of x with the panel."""
        cut, width, capacity = self.cut, self.cut.width, self.many.capacity
        acc = registers(cut.tile_rows * VECTORS, self.kind, self.words)
        for k in range(cut.tile_rows * VECTORS):
            acc.set(k, self._zeros(self.words))
        starts = [
            bind((row + r) * self.many.x.columns + step * self.layout.step_columns)
            for r in range(cut.tile_rows)
        ]
        together = 2 if cut.pairs else 1
        with loop(bind(steps * (cut.step_granules // together))) as g:
            column = bind(g * (together * cut.granule))
            self._step(acc, [bind(start + column) for start in starts], bind(g * together))
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

    def _step(self, acc: Registers, starts: list[Expr], granule: Expr) -> None:
        """Add a granule, or two of integers, of each row of x times the panel's."""
        x, cut = self.many.x, self.cut
        together = 2 if cut.pairs else 1
        rows = []
        for start in starts:
            parts = [
                self._broadcast(x.values, start + k * cut.granule, cut.granule)
                for k in range(together)
            ]
            if cut.pairs:
                parts.append(self._broadcast(x.offsets, start // i64(4), 8))
            rows.append(parts)
        for c in range(VECTORS):
            weights = [
                bind(self.panel.load(((granule + k) * VECTORS + c) * self.vector, self.vector))
                for k in range(together)
            ]
            for r, parts in enumerate(rows):
                slot = r * VECTORS + c
                acc.set(slot, self._added(acc.get(slot), weights, parts))

    def _broadcast(self, view: View, at: Expr, count: int) -> Expr:
        lanes = self.layout.lanes
        return bind(shuffle([view.load(at, count)] * lanes, [*range(count)] * lanes))

    def _added(self, acc: Expr, weights: list[Expr], parts: list[Expr]) -> Expr:
        """Return sums with the products of the granules added."""
        isa = self.cut.isa
        if self.cut.granule == 4:
            weight = reinterpret(f"float32x{self.words}", weights[0])
            return bind(fma(parts[0], weight, acc, self.words))
        if self.cut.granule == 8:
            return dot_pairs(acc, parts[0], weights[0])
        if not self.cut.pairs:
            return bind(x86.VPDPBUSD_512(acc, weights[0], parts[0]))
        byte_pairs = x86.PMADDUBSW_512 if isa.has_avx512 else x86.PMADDUBSW_256
        word_pairs = x86.PMADDWD_512 if isa.has_avx512 else x86.PMADDWD_256
        low, high = (byte_pairs(w, q) for w, q in zip(weights, parts[:2], strict=True))
        four = word_pairs(low + high - parts[2], splat(1, "int16", self.words * 2))
        return bind(streaming.keep(acc + four, self.words))

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

        vectors = [acc.get(row * VECTORS + c) for c in range(VECTORS)]
        whole = folded(folded(*vectors[:2]), folded(*vectors[2:]))
        order = [i % lanes * 4 + i // lanes for i in range(VECTORS * lanes)]
        return bind(shuffle([whole], order))

    def _finish(self, panel: Expr, row: Expr, sums: list[Expr]) -> None:
        """Turn sums into results and store those that exist."""
        width, weights, x = self.cut.width, self.many.weights, self.many.x
        column = bind(panel * width)
        bias = bind(weights.bias.load(column, width))
        results = []
        for r, value in enumerate(sums):
            if self.cut.form == "int8":
                assert weights.units is not None
                if not self.cut.pairs:
                    value = value - splat(x.totals.load(row + r), "int32", width)
                unit = splat(x.units.load(row + r), "float32", width)
                unit = bind(unit * weights.units.load(column, width))
                value = streaming.rounded(cast(f"float32x{width}", value) * unit, width)
            results.append(bind(bind(value) + bias))

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
            edges.store_partial(target.view, at, value, valid)
            return
        line = registers(1, "float32", self.cut.width)
        line.set(0, value)
        base = bind(target.index(row, 0))
        with loop(valid) as lane:
            place = cast("int64", order.load(column + lane))
            target.view.store(base + place, line.view.load(lane))
