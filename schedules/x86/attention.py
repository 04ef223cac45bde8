"""``attention``: a head at a time, keys transposed in L1, scores and softmax by blocks of keys.

A unit of work is a head of an image of q, k and v and up to 192 of its queries. For each block of
128 keys these are transposed once, values are copied end to end, and register tiles of queries take
scores (lanes are keys), their softmax, and weighted sums of values (lanes are columns of values).
Sums of earlier blocks are scaled down where a later block has a larger score.

Count, of D columns a head: 4 D FLOPs per query and key, and some 14 vector instructions per 16
scores for the softmax, a fifth of the products' at D = 32. To transpose a block of keys takes 1/4
shuffle a number, and serves all queries. AVX-512: a tile of 6 queries and 64 keys has 24
multiply-adds and 10 loads per column, 12 cycles on two ports, which are the limit.

Nothing depends on how units are shared among threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lutcc.ir.module import Operation
from lutcc.schedules.x86.attention_tile import BlockOfKeys, Head, Queries, Shape
from lutcc.schedules.x86.config import FixedConfig
from lutcc.schedules.x86.context import Scratch, Tensor
from lutcc.schedules.x86.emit import (
    LANES,
    Expr,
    View,
    bind,
    const,
    equal,
    hold,
    i64,
    loop,
    maximum,
    minimum,
    transpose16,
)
from lutcc.schedules.x86.isa import Isa
from lutcc.schedules.x86.pack import round_up
from lutcc.schedules.x86.panels import ThreadLoop, ceiling, share

#: Queries of a unit, a multiple of every tile's.
QUERIES = 192


def take_shared(op: Operation, isa: Isa, config: FixedConfig, scratch: Scratch) -> Isa:
    """Assign nothing: threads share nothing."""
    del op, config, scratch
    return isa


def emit(
    op: Operation,
    config: FixedConfig,
    operands: list[Tensor],
    target: View,
    rows: Expr,
    shared: Isa,
    thread_loop: ThreadLoop,
    private: Callable[[Expr], Scratch],
) -> None:
    """Emit the operation; see :func:`lutcc.schedules.x86.codebook_matmul.emit`."""
    del config
    shape = Shape.of(op, shared)
    q, k, _, _ = operands
    queries, keys = q.sizes[1], k.sizes[1]
    blocks = bind(ceiling(queries, QUERIES))
    with thread_loop() as (thread, threads):
        scratch = private(thread)
        room = _Room.take(shape, scratch)
        first, own = share(bind(rows * shape.heads * blocks), thread, threads)
        with loop(own) as u:
            unit = bind(first + u)
            head = bind(unit // blocks)
            number = bind(head // shape.heads)
            begin = bind((unit - head * blocks) * QUERIES)
            some = bind(minimum(i64(QUERIES), queries - begin))
            _unit(
                shape,
                room,
                Head(operands, target, number, bind(head - number * shape.heads), queries, keys),
                begin,
                some,
            )


@dataclass(frozen=True)
class _Room:
    """What a thread has for itself.

    Attributes
    ----------
    keys
        [column][key], transposed.
    values
        [key][column], columns padded with zeros to whole vectors.
    scores
        [query of a tile][key].
    sums
        [query][column]: weighted sums of the values of earlier blocks.
    largest, totals
        [query]: the largest score of earlier blocks, and the sum of their exponentials.
    """

    keys: View
    values: View
    scores: View
    sums: View
    largest: View
    totals: View

    @classmethod
    def take(cls, shape: Shape, scratch: Scratch) -> _Room:
        """Assign it."""
        width = round_up(shape.values, LANES)
        return cls(
            scratch.take(shape.columns * shape.block_keys, "float32"),
            scratch.take(shape.block_keys * width, "float32"),
            scratch.take(shape.tile_rows * shape.block_keys, "float32"),
            scratch.take(QUERIES * width, "float32"),
            scratch.take(QUERIES, "float32"),
            scratch.take(QUERIES, "float32"),
        )


def _unit(shape: Shape, room: _Room, head: Head, begin: Expr, some: Expr) -> None:
    """Attend from some queries of a head, block by block of keys."""
    seen = head.keys
    if shape.causal:
        seen = bind(minimum(seen, begin + some))
    blocks = bind(maximum(ceiling(seen, shape.block_keys), 1))
    with loop(blocks) as b:
        first = bind(b * shape.block_keys)
        now = bind(minimum(i64(shape.block_keys), head.keys - first))
        _transpose(shape, head, first, now, room.keys)
        _copy(shape, head, first, now, room.values)
        block = BlockOfKeys(
            shape,
            head,
            first,
            now,
            bind(b > 0),
            bind(equal(b, blocks - 1)),
            room.keys,
            room.values,
        )
        with loop(ceiling(some, shape.tile_rows)) as t:
            row = bind(t * shape.tile_rows)
            width = round_up(shape.values, LANES)
            block.emit(
                Queries(
                    bind(begin + row),
                    room.scores,
                    room.sums.at(row * width),
                    room.largest.at(row),
                    room.totals.at(row),
                )
            )


def _transpose(shape: Shape, head: Head, first: Expr, count: Expr, target: View) -> None:
    """Store keys as [column][key]; those past the end repeat the last one."""
    columns, source = shape.columns, head.operands[1].view
    with loop(ceiling(count, LANES)) as g:
        starts = [
            head.key_at(shape, bind(minimum(first + g * LANES + i, head.keys - 1)))
            for i in range(LANES)
        ]

        def store(column: Expr | int, value: Expr) -> None:
            target.store(i64(column) * shape.block_keys + g * LANES, value, LANES)

        def chunk(start: Expr | int, quarters: int) -> None:
            def quarter(row: int, number: int) -> Expr:
                return source.load(starts[row] + (start + 4 * number), 4)

            for j, column in enumerate(transpose16(quarter, quarters)):
                store(start + j, column)

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


def _copy(shape: Shape, head: Head, first: Expr, count: Expr, target: View) -> None:
    """Store values as [key][column], padded with zeros."""
    width, source = round_up(shape.values, LANES), head.operands[2].view
    whole = shape.values // LANES * LANES
    with loop(count) as j:
        start = head.value_at(shape, bind(first + j))
        for column in range(0, whole, LANES):
            target.store(j * width + column, source.load(start + column, LANES), LANES)
        for column in range(whole, width):
            exists = column < shape.values
            value = source.load(start + column) if exists else hold(const(0.0, "float32"))
            target.store(j * width + column, value)
