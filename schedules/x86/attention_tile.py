"""What ``attention`` does with a register tile of queries and a block of keys."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lutcc.schedules.x86 import edges
from lutcc.schedules.x86.attention_operands import Operands
from lutcc.schedules.x86.attention_shape import Head, Shape
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
from lutcc.schedules.x86.panels import ceiling

_INFINITY = math.inf


@dataclass(frozen=True)
class Queries:
    """A tile of queries, and where its scores and what came of earlier blocks of keys lie.

    Attributes
    ----------
    begin, row
        The first query of the unit, and of the tile.
    scores, sums, largest, totals
        See :class:`lutcc.schedules.x86.attention._Room`.
    """

    begin: Expr
    row: Expr
    scores: View
    sums: View
    largest: View
    totals: View


@dataclass(frozen=True)
class BlockOfKeys:
    """A block of keys and their values, prepared.

    Attributes
    ----------
    shape, head
        What is computed.
    first, count
        Which keys.
    later, last
        Whether a block came before this one, and whether none comes after it.
    operands
        Keys, values and queries.
    """

    shape: Shape
    head: Head
    first: Expr
    count: Expr
    later: Expr
    last: Expr
    operands: Operands

    def emit(self, queries: Queries) -> None:
        """Attend from a tile of queries."""
        shape, head = self.shape, self.head
        rows = [bind(minimum(queries.row + r, head.queries - 1)) for r in range(shape.tile_rows)]
        starts = [self.operands.query_at(head, queries.begin, row) for row in rows]
        self._scores(starts, queries.scores)
        scales = self._softmax(rows, queries)
        for column in range(0, shape.width, LANES * shape.tile_vectors):
            count = min(shape.tile_vectors, (shape.width - column) // LANES)
            self._sums(queries, scales, column, count)

    # -- scores --------------------------------------------------------------------------

    def _scores(self, starts: list[Expr], target: View) -> None:
        """Multiply the queries with the keys."""
        shape = self.shape
        vectors = bind(ceiling(self.count, LANES))
        whole = bind(vectors // i64(shape.tile_vectors))
        with loop(whole) as w:
            self._products(starts, bind(w * shape.tile_vectors), shape.tile_vectors, target)
        with loop(vectors - whole * shape.tile_vectors) as w:
            self._products(starts, bind(whole * shape.tile_vectors + w), 1, target)

    def _products(self, starts: list[Expr], first: Expr, count: int, target: View) -> None:
        """Take scores of ``count`` vectors of keys from vector ``first`` on."""
        shape, operands = self.shape, self.operands
        acc = registers(len(starts) * count, "float32", LANES)
        for slot in range(len(starts) * count):
            acc.set(slot, splat(0.0))
        with loop(operands.steps) as step:
            keys = [operands.key(step, first + v) for v in range(count)]
            for r, start in enumerate(starts):
                query = operands.query(start, step)
                for v, key in enumerate(keys):
                    slot = r * count + v
                    acc.set(slot, operands.added(acc.get(slot), query, key))
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
                self.operands.weigh(r, bind(v * LANES), value)
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
        operands = self.operands
        with loop(operands.value_steps(self.count)) as step:
            values = [operands.value(step, column + c * LANES) for c in range(count)]
            for r in range(rows):
                weight = operands.weight(r, step)
                for c, value in enumerate(values):
                    slot = r * count + c
                    acc.set(slot, operands.added(acc.get(slot), weight, value))
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
