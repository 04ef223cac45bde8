"""What ``attention`` does with a register tile of queries and a block of keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lutcc.ir.module import Operation
from lutcc.schedules.x86 import edges
from lutcc.schedules.x86.context import Tensor
from lutcc.schedules.x86.emit import (
    LANES,
    Expr,
    Registers,
    View,
    bind,
    branch,
    cast,
    const,
    differs,
    equal,
    fma,
    i64,
    local,
    loop,
    minimum,
    registers,
    select,
    shuffle,
    splat,
    when,
)
from lutcc.schedules.x86.exponential import LOG2_E, exp2
from lutcc.schedules.x86.isa import Isa
from lutcc.schedules.x86.pack import round_up
from lutcc.schedules.x86.panels import ceiling

_INFINITY = math.inf


@dataclass(frozen=True)
class Shape:
    """What is known of an attention when it is compiled, and how it is cut.

    Attributes
    ----------
    heads, group
        Heads of queries, and how many of them share a head of keys.
    columns, values
        Columns of a head of keys, and of values.
    scale, mask, causal
        As the op has them.
    tile_rows, tile_vectors
        Queries of a register tile, and vectors of keys whose scores it takes at once.
    block_keys
        Keys of a block.
    """

    heads: int
    group: int
    columns: int
    values: int
    scale: float
    mask: str
    causal: bool
    tile_rows: int
    tile_vectors: int
    block_keys: int = 128

    @classmethod
    def of(cls, op: Operation, isa: Isa) -> Shape:
        """Read it off an operation."""
        heads, groups = (int(op.attr(name)) for name in ("heads", "kv_heads"))  # type: ignore[arg-type]
        wide = isa.has_avx512
        return cls(
            heads,
            heads // groups,
            op.operands[0].type.size(2) // heads,
            op.operands[2].type.size(2) // groups,
            float(op.attr("scale")),  # type: ignore[arg-type]
            str(op.attr("mask")),
            bool(op.attr("causal")),
            6 if wide else 3,
            4 if wide else 2,
        )

    @property
    def width(self) -> int:
        """Columns of values with their padding."""
        return round_up(self.values, LANES)

    @property
    def factor(self) -> float:
        """What sums of products are multiplied with: powers of two follow, but for added masks."""
        return self.scale if self.mask == "add" else self.scale * LOG2_E

    def power(self, difference: Expr) -> Expr:
        """Return e to a difference of scores."""
        if self.mask == "add":  # masks near the least float32 must not overflow
            difference = difference * splat(LOG2_E)
        return exp2(bind(difference), -127.0)


@dataclass(frozen=True)
class Head:
    """One head of one image.

    Attributes
    ----------
    operands, target
        q, k, v, the mask and the result.
    image, number
        Which.
    queries, keys
        S and T.
    """

    operands: Sequence[Tensor]
    target: View
    image: Expr
    number: Expr
    queries: Expr
    keys: Expr

    def query_at(self, shape: Shape, row: Expr) -> Expr:
        """Return where a query's columns begin."""
        line = (self.image * self.queries + row) * shape.heads + self.number
        return bind(line * shape.columns)

    def key_at(self, shape: Shape, key: Expr) -> Expr:
        """Return where a key's columns begin."""
        line = (self.image * self.keys + key) * (shape.heads // shape.group)
        return bind((line + self.number // i64(shape.group)) * shape.columns)

    def value_at(self, shape: Shape, key: Expr) -> Expr:
        """Return where a value's columns begin."""
        line = (self.image * self.keys + key) * (shape.heads // shape.group)
        return bind((line + self.number // i64(shape.group)) * shape.values)

    def result_at(self, shape: Shape, row: Expr) -> Expr:
        """Return where a result's columns begin."""
        line = (self.image * self.queries + row) * shape.heads + self.number
        return bind(line * shape.values)

    def mask_at(self, row: Expr) -> Expr:
        """Return where the mask of a query begins."""
        sizes, place = self.operands[3].sizes, i64(0)
        for index, size in zip((self.image, self.number, row), sizes[:3], strict=True):
            place = place * size + select(equal(size, i64(1)), i64(0), index)
        return bind(place * sizes[3])


@dataclass(frozen=True)
class Queries:
    """A tile of queries, and where its scores and what came of earlier blocks of keys lie.

    Attributes
    ----------
    row
        The first query.
    scores, sums, largest, totals
        See :class:`lutcc.schedules.x86.attention._Room`.
    """

    row: Expr
    scores: View
    sums: View
    largest: View
    totals: View


@dataclass(frozen=True)
class BlockOfKeys:
    """A block of keys, transposed, and their values.

    Attributes
    ----------
    shape, head
        What is computed.
    first, count
        Which keys.
    later, last
        Whether a block came before this one, and whether none comes after it.
    keys, values
        See :class:`lutcc.schedules.x86.attention._Room`.
    """

    shape: Shape
    head: Head
    first: Expr
    count: Expr
    later: Expr
    last: Expr
    keys: View
    values: View

    def emit(self, queries: Queries) -> None:
        """Attend from a tile of queries."""
        shape, head = self.shape, self.head
        rows = [bind(minimum(queries.row + r, head.queries - 1)) for r in range(shape.tile_rows)]
        self._scores(rows, queries.scores)
        scales = self._softmax(rows, queries)
        for column in range(0, shape.width, LANES * shape.tile_vectors):
            count = min(shape.tile_vectors, (shape.width - column) // LANES)
            self._sums(queries, scales, column, count)

    # -- scores --------------------------------------------------------------------------

    def _scores(self, rows: list[Expr], target: View) -> None:
        """Multiply the queries with the keys."""
        shape = self.shape
        starts = [self.head.query_at(shape, row) for row in rows]
        vectors = bind(ceiling(self.count, LANES))
        whole = bind(vectors // i64(shape.tile_vectors))
        with loop(whole) as w:
            self._products(starts, bind(w * shape.tile_vectors), shape.tile_vectors, target)
        with loop(vectors - whole * shape.tile_vectors) as w:
            self._products(starts, bind(whole * shape.tile_vectors + w), 1, target)

    def _products(self, starts: list[Expr], first: Expr, count: int, target: View) -> None:
        """Take scores of ``count`` vectors of keys from vector ``first`` on."""
        shape, q = self.shape, self.head.operands[0].view
        acc = registers(len(starts) * count, "float32", LANES)
        for slot in range(len(starts) * count):
            acc.set(slot, splat(0.0))
        with loop(shape.columns) as d:
            base = bind(d * shape.block_keys + first * LANES)
            keys = [bind(self.keys.load(base + v * LANES, LANES)) for v in range(count)]
            for r, start in enumerate(starts):
                query = bind(splat(q.load(start + d)))
                for v, key in enumerate(keys):
                    slot = r * count + v
                    acc.set(slot, fma(query, key, acc.get(slot)))
        for r in range(len(starts)):
            for v in range(count):
                place = r * shape.block_keys + (first + v) * LANES
                target.store(place, acc.get(r * count + v), LANES)

    # -- softmax -------------------------------------------------------------------------

    def _softmax(self, rows: list[Expr], queries: Queries) -> Registers:
        """Turn scores into exponentials; return what earlier sums are multiplied with.

        At the last block, totals become what sums are to be multiplied with.
        """
        shape, count = self.shape, len(rows)
        top = registers(count, "float32", LANES)
        for r in range(count):
            top.set(r, splat(-_INFINITY))
        self._masked(rows, queries.scores, top)
        scales = registers(count, "float32", LANES)
        for r in range(count):
            largest = across(top.get(r), larger)
            before = bind(splat(queries.largest.load(r)))
            before = bind(select(splat(self.later, "bool"), before, splat(-_INFINITY)))
            largest = bind(larger(largest, before))
            queries.largest.store(r, _lane(largest))
            nothing = equal(largest, splat(-_INFINITY))
            base = bind(select(nothing, splat(0.0), largest))
            top.set(r, base)
            scales.set(r, shape.power(before - base))
        total = registers(count, "float32", LANES)
        for r in range(count):
            total.set(r, splat(0.0))
        with loop(ceiling(self.count, LANES)) as v:
            for r in range(count):
                place = bind(r * shape.block_keys + v * LANES)
                value = shape.power(queries.scores.load(place, LANES) - top.get(r))
                queries.scores.store(place, value, LANES)
                total.set(r, total.get(r) + value)
        for r in range(count):
            whole = across(total.get(r), lambda a, b: a + b)
            before = splat(queries.totals.load(r))
            before = bind(select(splat(self.later, "bool"), before, splat(0.0)))
            queries.totals.store(r, _lane(bind(fma(before, scales.get(r), whole))))
        return scales

    def _masked(self, rows: list[Expr], scores: View, top: Registers) -> None:
        """Scale and mask the scores, and find the largest of each lane."""
        whole = self.count // i64(LANES)
        partial = bind(self.count - whole * LANES)
        with loop(whole) as v:
            self._vector(rows, scores, top, bind(v * LANES), None)
        with when(partial > 0):
            self._vector(rows, scores, top, bind(whole * LANES), partial)

    def _vector(
        self, rows: list[Expr], scores: View, top: Registers, key: Expr, valid: Expr | None
    ) -> None:
        """Scale and mask the scores of 16 keys, of which ``valid`` exist."""
        shape, low = self.shape, splat(-_INFINITY)
        lanes = _iota()
        for r, row in enumerate(rows):
            place = bind(r * shape.block_keys + key)
            value = bind(scores.load(place, LANES) * splat(shape.factor))
            if shape.mask != "none":
                start = bind(self.head.mask_at(row))
                mask = self._mask(start, bind(self.first + key), valid)
                if shape.mask == "add":
                    value = bind(value + mask)
                else:
                    value = bind(select(differs(mask, splat(0, "int32")), value, low))
            if shape.causal:
                seen = cast("int32", row - self.first - key)
                value = bind(select(lanes > splat(seen, "int32"), low, value))
            if valid is not None:
                exists = lanes < splat(cast("int32", valid), "int32")
                value = bind(select(exists, value, low))
            scores.store(place, value, LANES)
            top.set(r, larger(value, top.get(r)))

    def _mask(self, start: Expr, key: Expr, valid: Expr | None) -> Expr:
        """Load the mask of 16 keys: float32, or int32 for flags."""
        tensor = self.head.operands[3]
        dtype, view = ("float32" if self.shape.mask == "add" else "int32"), tensor.view
        lanes = local(LANES, dtype)
        one = equal(tensor.sizes[3], i64(1))

        def whole(value: Expr) -> Expr:
            return value if view.dtype == "float32" else cast(f"int32x{LANES}", value)

        with branch(one) as (same, each):
            with same:
                lanes.store(0, splat(cast(dtype, view.load(start)), dtype), LANES)
            with each:
                if valid is None:
                    lanes.store(0, whole(view.load(start + key, LANES)), LANES)
                else:
                    lanes.store(0, splat(0.0 if dtype == "float32" else 0, dtype), LANES)
                    with loop(valid) as i:
                        lanes.store(i, cast(dtype, view.load(start + key + i)))
        return bind(lanes.load(0, LANES))

    # -- weighted sums -------------------------------------------------------------------

    def _sums(self, queries: Queries, scales: Registers, column: int, count: int) -> None:
        """Add the values of ``count`` vectors of columns, each times its weight."""
        shape = self.shape
        rows = shape.tile_rows
        acc = registers(rows * count, "float32", LANES)
        with branch(self.later) as (later, first):
            with later:
                for r in range(rows):
                    for c in range(count):
                        before = queries.sums.load(r * shape.width + column + c * LANES, LANES)
                        acc.set(r * count + c, before * scales.get(r))
            with first:
                for slot in range(rows * count):
                    acc.set(slot, splat(0.0))
        with loop(self.count) as j:
            base = bind(j * shape.width + column)
            values = [bind(self.values.load(base + c * LANES, LANES)) for c in range(count)]
            for r in range(rows):
                weight = bind(splat(queries.scores.load(j + r * shape.block_keys)))
                for c, value in enumerate(values):
                    slot = r * count + c
                    acc.set(slot, fma(weight, value, acc.get(slot)))
        with branch(self.last) as (last, earlier):
            with last:
                self._finish(queries, acc, column, count)
            with earlier:
                for r in range(rows):
                    for c in range(count):
                        place = r * shape.width + column + c * LANES
                        queries.sums.store(place, acc.get(r * count + c), LANES)

    def _finish(self, queries: Queries, acc: Registers, column: int, count: int) -> None:
        """Divide by the totals, and store what exists."""
        shape, head = self.shape, self.head
        for r in range(shape.tile_rows):
            with when(queries.row + r < head.queries):
                total = bind(queries.totals.load(r))
                scale = bind(splat(self._reciprocal(total)))
                start = head.result_at(shape, bind(queries.row + r))
                for c in range(count):
                    at = column + c * LANES
                    valid = min(LANES, shape.values - at)
                    value = bind(acc.get(r * count + c) * scale)
                    edges.store_partial(head.target, bind(start + at), value, valid)

    def _reciprocal(self, total: Expr) -> Expr:
        """Return 1 / total; where there was nothing to see, what torch gives."""
        inverse = const(1.0, "float32") / total
        nothing: Expr = const(0.0, "float32")
        if self.shape.mask == "none" and not self.shape.causal:
            undefined = const(math.nan, "float32")
            nothing = select(equal(self.head.keys, i64(0)), nothing, undefined)
        return bind(select(equal(total, const(0.0, "float32")), nothing, inverse))


def larger(a: Expr, b: Expr) -> Expr:
    """Return the larger of two vectors' lanes; ``b`` where ``a`` is NaN."""
    return select(a > b, a, b)


def across(value: Expr, join: Callable[[Expr, Expr], Expr]) -> Expr:
    """Join all lanes of a vector; every lane has the result."""
    for distance in (8, 4, 2, 1):
        turned = shuffle([value], [(i + distance) % LANES for i in range(LANES)])
        value = bind(join(value, bind(turned)))
    return value


def _lane(value: Expr) -> Expr:
    """Return lane 0."""
    return shuffle([value], [0])


def _iota() -> Expr:
    import tvm.tirx as tir

    return tir.Ramp(const(0, "int32"), const(1, "int32"), LANES)
