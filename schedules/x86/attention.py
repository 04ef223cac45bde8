"""``attention``: a head at a time, keys transposed in L1, scores and softmax by blocks of keys.

A unit of work is a head of an image of q, k and v and some (192) of its queries. For each block of
128 keys these are transposed once, values are copied end to end, and register tiles of queries take
scores (lanes are keys), their softmax, and weighted sums of values (lanes are columns of values).
Sums of earlier blocks are scaled down where a later block has a larger score.

Count, of D columns a head: 4 D FLOPs per query and key, and some 14 vector instructions per 16
scores for the softmax, a fifth of the products' at D = 32. To transpose a block of keys takes 1/4
shuffle a number, and serves all queries. AVX-512: a tile of 8 queries and 32 keys has 16
multiply-adds and 10 loads per column, 8 cycles on two ports, which are the limit.

Nothing depends on how units are shared among threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lutcc.ir.module import Operation
from lutcc.schedules.space import Config, Knob, Space
from lutcc.schedules.x86.attention_operands import Floats, Operands, Pairs
from lutcc.schedules.x86.attention_shape import Head, Shape
from lutcc.schedules.x86.attention_tile import BlockOfKeys, Queries
from lutcc.schedules.x86.config import AttentionConfig
from lutcc.schedules.x86.context import Scratch, Tensor
from lutcc.schedules.x86.emit import (
    Expr,
    View,
    bind,
    equal,
    i64,
    loop,
    maximum,
    minimum,
)
from lutcc.schedules.x86.isa import Isa
from lutcc.schedules.x86.panels import ThreadLoop, ceiling, share

#: Name of the config's part.
PART = "attention"
#: Values of each knob that are worth trying.
_VALUES = {
    "queries": (48, 96, 192, 384),
    "keys": (64, 128, 256, 512),
    "tile_rows": (2, 3, 4, 6, 8, 12),
    "tile_vectors": (1, 2, 3, 4),
}
#: Tiles of fewer sums than this share of the registers leave the multipliers idle.
_LEAST_FILLED = 0.3


def default_config(op: Operation, isa: Isa) -> AttentionConfig:
    """Return the hand-picked config."""
    del op
    tile = (8, 2) if isa.has_avx512 else (3, 2)
    return AttentionConfig(192, 128, *tile)


def space(op: Operation, isa: Isa) -> Space:
    """Return the configs worth trying."""
    default = default_config(op, isa).to_json()
    values = {f"{PART}.{name}": value for name, value in default.items()}
    knobs = tuple(Knob(f"{PART}.{name}", choices) for name, choices in _VALUES.items())
    queries, keys = op.operands[0].type.shape[1], op.operands[1].type.shape[1]
    registers, each = (32, 1) if isa.has_avx512 else (16, 2)

    def valid(config: Config) -> bool:
        cut = {name: int(config[f"{PART}.{name}"]) for name in _VALUES}
        if cut == default:
            return True
        sums = cut["tile_rows"] * cut["tile_vectors"] * each
        fits = sums + cut["tile_vectors"] * each + 1 <= registers
        for name, size in (("queries", queries), ("keys", keys)):
            smaller = [n for n in _VALUES[name] if n < cut[name]]
            if smaller and isinstance(size, int) and smaller[-1] >= size:
                return False  # that gives the same loops
        return fits and sums >= _LEAST_FILLED * registers

    return Space(knobs, values, valid)


def take_shared(op: Operation, isa: Isa, config: AttentionConfig, scratch: Scratch) -> Shape:
    """Assign nothing: threads share nothing."""
    del scratch
    return Shape.of(op, isa, config)


def emit(
    op: Operation,
    config: AttentionConfig,
    operands: list[Tensor],
    target: View,
    rows: Expr,
    shared: Shape,
    thread_loop: ThreadLoop,
    private: Callable[[Expr], Scratch],
) -> None:
    """Emit the operation; see :func:`lutcc.schedules.x86.codebook_matmul.emit`."""
    del op, config
    shape = shared
    q, k, _, _ = operands
    queries, keys = q.sizes[1], k.sizes[1]
    blocks = bind(ceiling(queries, shape.queries))
    with thread_loop() as (thread, threads):
        scratch = private(thread)
        kind = Pairs if shape.pairs else Floats
        room = _Room.take(shape, kind.take(shape, q.view, scratch), scratch)
        first, own = share(bind(rows * shape.heads * blocks), thread, threads)
        with loop(own) as u:
            unit = bind(first + u)
            head = bind(unit // blocks)
            number = bind(head // shape.heads)
            begin = bind((unit - head * blocks) * shape.queries)
            some = bind(minimum(i64(shape.queries), queries - begin))
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
    operands
        Keys, values and queries.
    scores
        [query of a tile][key].
    sums
        [query][column]: weighted sums of the values of earlier blocks.
    largest, totals
        [query]: the largest score of earlier blocks, and the sum of their exponentials.
    """

    operands: Operands
    scores: View
    sums: View
    largest: View
    totals: View

    @classmethod
    def take(cls, shape: Shape, operands: Operands, scratch: Scratch) -> _Room:
        """Assign it."""
        return cls(
            operands,
            scratch.take(shape.tile_rows * shape.block_keys, "float32"),
            scratch.take(shape.queries * shape.width, "float32"),
            scratch.take(shape.queries, "float32"),
            scratch.take(shape.queries, "float32"),
        )


def _unit(shape: Shape, room: _Room, head: Head, begin: Expr, some: Expr) -> None:
    """Attend from some queries of a head, block by block of keys."""
    seen = head.keys
    if shape.causal:
        seen = bind(minimum(seen, begin + some))
    blocks = bind(maximum(ceiling(seen, shape.block_keys), 1))
    room.operands.prepare_queries(head, begin, some)
    with loop(blocks) as b:
        first = bind(b * shape.block_keys)
        now = bind(minimum(i64(shape.block_keys), head.keys - first))
        room.operands.prepare_keys(head, first, now)
        last = bind(equal(b, blocks - 1))
        block = BlockOfKeys(shape, head, first, now, bind(b > 0), last, room.operands)
        with loop(ceiling(some, shape.tile_rows)) as t:
            row = bind(t * shape.tile_rows)
            block.emit(
                Queries(
                    begin,
                    bind(begin + row),
                    room.scores,
                    room.sums.at(row * shape.width),
                    room.largest.at(row),
                    room.totals.at(row),
                )
            )
