"""Keys, values and queries of ``attention`` as its register tiles read them: floats, or pairs.

Pairs of bfloat16 lie in 32 bits: two columns of a key, or one column of two values. ``vdpbf16ps``
multiplies both, which takes half the instructions of multiply-adds of floats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from lutcc.schedules.x86.attention_shape import Head, Shape
from lutcc.schedules.x86.bfloat16 import dot_pairs, halves
from lutcc.schedules.x86.context import Scratch
from lutcc.schedules.x86.emit import (
    LANES,
    Expr,
    View,
    bind,
    fma,
    hold,
    i64,
    local,
    loop,
    minimum,
    shuffle,
    splat,
    transpose16,
)
from lutcc.schedules.x86.pack import round_up
from lutcc.schedules.x86.panels import ceiling


class Operands(Protocol):
    """What a thread prepares, and how its numbers are multiplied.

    A *step* is a term of a score (a column, or a pair of columns), or of a weighted sum (a key, or
    a pair of keys).
    """

    @property
    def steps(self) -> int:
        """Steps of a score."""
        ...

    def prepare_queries(self, head: Head, begin: Expr, some: Expr) -> None:
        """Bring some queries of a unit into order."""
        ...

    def prepare_keys(self, head: Head, first: Expr, count: Expr) -> None:
        """Bring a block of keys and values into order."""
        ...

    def key(self, step: Expr, vector: Expr | int) -> Expr:
        """Load a step of 16 keys."""
        ...

    def query(self, start: Expr, step: Expr) -> Expr:
        """Load a step of a query for all lanes; ``start`` is from :meth:`query_at`."""
        ...

    def query_at(self, head: Head, begin: Expr, row: Expr) -> Expr:
        """Return where query ``row`` begins, of a unit that begins at ``begin``."""
        ...

    def value_steps(self, count: Expr) -> Expr:
        """Return the steps of a weighted sum of ``count`` values."""
        ...

    def value(self, step: Expr, column: int) -> Expr:
        """Load a step of 16 columns of values."""
        ...

    def weigh(self, row: int, key: Expr, weights: Expr) -> None:
        """Store the weights of 16 keys for a query of a tile."""
        ...

    def weight(self, row: int, step: Expr) -> Expr:
        """Load a step of a query's weights for all lanes."""
        ...

    def added(self, acc: Expr, one: Expr, other: Expr) -> Expr:
        """Return sums with the products of a step added."""
        ...


@dataclass(frozen=True)
class Floats:
    """Operands in float32.

    Attributes
    ----------
    shape
        What is computed.
    keys, values, weights
        [column][key]; [key][column], padded with zeros; [query of a tile][key].
    source
        q as it lies.
    """

    shape: Shape
    keys: View
    values: View
    weights: View
    source: View

    @classmethod
    def take(cls, shape: Shape, queries: View, scratch: Scratch) -> Floats:
        """Assign room."""
        return cls(
            shape,
            scratch.take(shape.columns * shape.block_keys, "float32"),
            scratch.take(shape.block_keys * shape.width, "float32"),
            scratch.take(shape.tile_rows * shape.block_keys, "float32"),
            queries,
        )

    @property
    def steps(self) -> int:
        """A column each."""
        return self.shape.columns

    def prepare_queries(self, head: Head, begin: Expr, some: Expr) -> None:
        """Leave them where they are."""

    def prepare_keys(self, head: Head, first: Expr, count: Expr) -> None:
        """Transpose keys, and copy values."""
        _transpose(self.shape, head, first, count, self.keys)
        source = head.operands[2].view
        with loop(count) as j:
            start = head.value_at(self.shape, bind(first + j))
            _pieces(source, start, self.shape.values, self.shape.width, self._into(j))

    def _into(self, row: Expr) -> Callable[[Expr | int, Expr], None]:
        return lambda column, value: self.values.store(
            row * self.shape.width + column, value, LANES
        )

    def key(self, step: Expr, vector: Expr | int) -> Expr:
        """Load a column of 16 keys."""
        return bind(self.keys.load(step * self.shape.block_keys + i64(vector) * LANES, LANES))

    def query_at(self, head: Head, begin: Expr, row: Expr) -> Expr:
        """Return where a query lies in q."""
        del begin
        return head.query_at(self.shape, row)

    def query(self, start: Expr, step: Expr) -> Expr:
        """Load a column of a query."""
        return bind(splat(self.source.load(start + step)))

    def value_steps(self, count: Expr) -> Expr:
        """Take a key each."""
        return count

    def value(self, step: Expr, column: int) -> Expr:
        """Load 16 columns of a value."""
        return bind(self.values.load(step * self.shape.width + column, LANES))

    def weigh(self, row: int, key: Expr, weights: Expr) -> None:
        """Store weights."""
        self.weights.store(row * self.shape.block_keys + key, weights, LANES)

    def weight(self, row: int, step: Expr) -> Expr:
        """Load a key's weight."""
        return bind(splat(self.weights.load(row * self.shape.block_keys + step)))

    def added(self, acc: Expr, one: Expr, other: Expr) -> Expr:
        """Multiply and add."""
        return fma(one, other, acc)


@dataclass(frozen=True)
class Pairs:
    """Operands in pairs of bfloat16.

    Attributes
    ----------
    shape
        What is computed.
    keys, values
        [pair of columns][key][2]; [pair of keys][column][2].
    queries, weights
        [query of a unit][column]; [query of a tile][key].
    lines
        Room for a block of keys or values, rounded: [key][column].
    """

    shape: Shape
    keys: View
    values: View
    queries: View
    weights: View
    lines: View

    @classmethod
    def take(cls, shape: Shape, queries: View, scratch: Scratch) -> Pairs:
        """Assign room."""
        del queries
        columns = round_up(shape.columns, 2 * LANES)
        widest = max(columns, shape.width)
        return cls(
            shape,
            scratch.take(columns * shape.block_keys, "uint16"),
            scratch.take(shape.block_keys * shape.width, "uint16"),
            scratch.take(shape.queries * columns, "uint16"),
            scratch.take(shape.tile_rows * shape.block_keys, "uint16"),
            scratch.take(shape.block_keys * widest, "uint16"),
        )

    @property
    def _columns(self) -> int:
        """Columns of a query or a key with their padding."""
        return round_up(self.shape.columns, 2 * LANES)

    @property
    def steps(self) -> int:
        """Two columns each."""
        return -(-self.shape.columns // 2)

    def prepare_queries(self, head: Head, begin: Expr, some: Expr) -> None:
        """Round queries."""
        with loop(some) as r:
            start = head.query_at(self.shape, bind(begin + r))
            self._round(head.operands[0].view, start, self.shape.columns, self.queries, r)

    def prepare_keys(self, head: Head, first: Expr, count: Expr) -> None:
        """Round keys and values; transpose pairs of those, interleave rows of these."""
        shape = self.shape
        with loop(count) as j:
            start = head.key_at(shape, bind(first + j))
            self._round(head.operands[1].view, start, shape.columns, self.lines, j)
        source = self.lines.as_dtype("float32")  # its bits
        words = self._columns // 2
        with loop(ceiling(count, LANES)) as g:
            starts = [bind(minimum(g * LANES + i, count - 1) * words) for i in range(LANES)]
            target = self.keys.as_dtype("float32")
            with loop(words // LANES) as c:

                def quarter(row: int, number: int, c: Expr = c) -> Expr:
                    return source.load(starts[row] + (c * LANES + 4 * number), 4)

                for k, column in enumerate(transpose16(quarter)):
                    place = (c * LANES + k) * shape.block_keys + g * LANES
                    target.store(place, column, LANES)
        with loop(count) as j:
            start = head.value_at(shape, bind(first + j))
            self._round(head.operands[2].view, start, shape.values, self.lines, j, shape.width)
        with loop(ceiling(count, 2)) as j:
            upper = bind(minimum(2 * j + 1, count - 1))
            for column in range(0, shape.width, LANES):
                rows = [
                    bind(self.lines.load(row * shape.width + column, LANES))
                    for row in (2 * j, upper)
                ]
                mixed = [lane + LANES * odd for lane in range(LANES) for odd in (0, 1)]
                place = (j * shape.width + column) * 2
                self.values.store(place, shuffle(rows, mixed), 2 * LANES)

    def _round(
        self,
        source: View,
        start: Expr,
        columns: int,
        target: View,
        row: Expr,
        width: int | None = None,
    ) -> None:
        """Store a row rounded to bfloat16, padded with zeros."""
        width = self._columns if width is None else width

        def store(column: Expr | int, value: Expr) -> None:
            target.store(row * width + column, halves(value), LANES)

        _pieces(source, start, columns, width, store)

    def key(self, step: Expr, vector: Expr | int) -> Expr:
        """Load a pair of columns of 16 keys."""
        place = (step * self.shape.block_keys + i64(vector) * LANES) * 2
        return bind(self.keys.load(place, 2 * LANES))

    def query_at(self, head: Head, begin: Expr, row: Expr) -> Expr:
        """Return where a query lies among those of the unit, in pairs."""
        return bind((row - begin) * (self._columns // 2))

    def query(self, start: Expr, step: Expr) -> Expr:
        """Load a pair of columns of a query."""
        return bind(splat(self.queries.as_dtype("float32").load(start + step)))

    def value_steps(self, count: Expr) -> Expr:
        """Two keys each; where one is left over, the other's weight is 0."""
        return bind(ceiling(count, 2))

    def value(self, step: Expr, column: int) -> Expr:
        """Load 16 columns of two values."""
        return bind(self.values.load((step * self.shape.width + column) * 2, 2 * LANES))

    def weigh(self, row: int, key: Expr, weights: Expr) -> None:
        """Round and store weights."""
        self.weights.store(row * self.shape.block_keys + key, halves(weights), LANES)

    def weight(self, row: int, step: Expr) -> Expr:
        """Load the weights of two keys."""
        place = row * (self.shape.block_keys // 2) + step
        return bind(splat(self.weights.as_dtype("float32").load(place)))

    def added(self, acc: Expr, one: Expr, other: Expr) -> Expr:
        """Multiply pairs and add."""
        return dot_pairs(acc, one, other)


def _pieces(
    source: View,
    start: Expr,
    columns: int,
    width: int,
    put: Callable[[Expr | int, Expr], None],
) -> None:
    """Hand over a row in vectors of 16 columns, zeros behind the last."""
    whole = columns // LANES * LANES
    for column in range(0, whole, LANES):
        put(column, bind(source.load(start + column, LANES)))
    for column in range(whole, width, LANES):
        rest = local(LANES, "float32")
        rest.store(0, splat(0.0), LANES)
        for lane in range(max(0, columns - column)):
            rest.store(lane, source.load(start + (column + lane)))
        put(column, hold(rest.load(0, LANES)))


def _transpose(shape: Shape, head: Head, first: Expr, count: Expr, target: View) -> None:
    """Store keys as [column][key]; those past the end repeat the last one."""
    columns, source = shape.columns, head.operands[1].view
    with loop(ceiling(count, LANES)) as g:
        starts = [
            head.key_at(shape, bind(minimum(first + g * LANES + i, head.keys - 1)))
            for i in range(LANES)
        ]

        def chunk(start: Expr | int, quarters: int) -> None:
            def quarter(row: int, number: int) -> Expr:
                return source.load(starts[row] + (start + 4 * number), 4)

            for j, column in enumerate(transpose16(quarter, quarters)):
                target.store((i64(start) + j) * shape.block_keys + g * LANES, column, LANES)

        with loop(columns // LANES) as c:
            chunk(bind(c * LANES), 4)
        done = columns // LANES * LANES
        quarters = (columns - done) // 4
        if quarters:
            chunk(done, quarters)
        for column in range(done + 4 * quarters, columns):
            for lane, start in enumerate(starts):
                place = i64(column) * shape.block_keys + g * LANES + lane
                target.store(place, source.load(start + column))
