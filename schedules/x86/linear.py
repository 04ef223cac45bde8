"""``linear``: an exact layer as broadcast-FMA tiles over 16-row columns.

Work: N D M fused multiply-adds; each loads one broadcast weight (reused for ``tile_r`` row
groups), so that both FMA ports stay busy from ``tile_r`` = 2 on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lutcc.ir.module import Operation
from lutcc.schedules.x86.activation import activated
from lutcc.schedules.x86.context import Columns, Row, StageContext
from lutcc.schedules.x86.emit import Expr, bind, branch, cast, fma, i64, loop, registers, splat
from lutcc.schedules.x86.pack import CHUNK, chunk_starts

#: Less rows than this take wide tiles of one or two rows, whatever the config says.
FEW_ROWS = 3
#: What is left of the rows goes in batches of these: each reads all weights once.
_SMALL_BATCHES = (5, 4, 3, 2, 1)


class LinearTile:
    """Register tile of a matrix product; row groups of 16."""

    rows = 16

    def __init__(self, ctx: StageContext, op: Operation, source: Columns) -> None:
        self.op = op
        self.source = source
        self.weight = ctx.blob.add("linear", "float32", [ctx.ref(op.operands[1])])

    def tile(self, chunk: Expr, first: Expr, count: int, groups: Sequence[Expr]) -> Any:
        """Multiply ``count`` columns from ``first`` of a chunk with some row groups.

        Returns a function (column in tile, index of row group) -> list of one float32x16.
        """
        depth = self.source.columns
        acc = registers(count * len(groups), "float32", 16)
        for slot in range(count * len(groups)):
            acc.set(slot, splat(0.0))
        base = bind(i64(chunk) * (depth * CHUNK) + first)
        rows = [bind(self.source.index(g, 0)) for g in groups]
        with loop(depth) as d:
            values = [bind(self.source.view.load(r + d * 16, 16)) for r in rows]
            for j in range(count):
                weight = bind(splat(self.weight.load(base + d * CHUNK + j)))
                for r, value in enumerate(values):
                    slot = j * len(groups) + r
                    acc.set(slot, fma(value, weight, acc.get(slot)))
        return lambda j, r: [acc.get(j * len(groups) + r)]


def bias_and_activation(op: Operation, value: Expr, operand: Callable[[int], Expr]) -> Expr:
    """Add the bias and apply the activation."""
    return activated(str(op.attr("activation")), value + operand(2))


def emit_rows(
    ctx: StageContext,
    op: Operation,
    rows: Expr,
    capacity: int,
    finish: Callable[[Expr, Expr, Expr], None],
) -> None:
    """Multiply ``rows`` rows (at most ``capacity``), which share loads of weights.

    Some chunks of columns at a time: their weights stay in cache for all rows. ``finish(row, first
    column, float32x16)`` takes the products; see
    :func:`lutcc.schedules.x86.lut_accumulate_rows.emit_row`.
    """
    source = ctx.values[op.operands[0].name]
    assert isinstance(source, Row)
    weight = ctx.blob.add("linear", "float32", [ctx.ref(op.operands[1])])
    depth, starts = source.columns, chunk_starts(op.operands[1].type.size(0))
    where = ctx.blob.add("ints", "int32", [], values=starts)
    choice = ctx.configs.rows

    def tile(chunk: Expr, chunks: int, row: Expr, count: int) -> None:
        acc = registers(chunks * count, "float32", 16)
        for slot in range(chunks * count):
            acc.set(slot, splat(0.0))
        bases = [bind((i64(chunk) + k) * (depth * CHUNK)) for k in range(chunks)]
        lines = [source.at(row + r).view for r in range(count)]
        with loop(depth) as d:
            weights = [bind(weight.load(base + d * CHUNK, 16)) for base in bases]
            for r, line in enumerate(lines):
                value = bind(splat(line.load(d)))
                for k in range(chunks):
                    slot = k * count + r
                    acc.set(slot, fma(value, weights[k], acc.get(slot)))
        for k in range(chunks):
            column = bind(cast("int64", where.load(i64(chunk) + k)))
            for r in range(count):
                finish(bind(row + r), column, acc.get(k * count + r))

    def all_rows(chunk: Expr, chunks: int, batches: Sequence[int]) -> None:
        done = i64(0)
        for batch in batches:
            whole = bind((rows - done) // i64(batch))
            with loop(whole) as b:
                tile(chunk, chunks, bind(done + b * batch), batch)
            done = bind(done + whole * batch)

    def product(chunks: int, batches: Sequence[int]) -> None:
        together = min(chunks, len(starts))
        with loop(len(starts) // together) as b:
            all_rows(b * together, together, batches)
        rest = len(starts) % together
        if rest:
            all_rows(i64(len(starts) - rest), rest, batches)

    largest = min(choice.linear_batch, capacity)
    smaller = {n for n in (largest // 2, *_SMALL_BATCHES) if 0 < n < largest}
    with branch(rows < i64(FEW_ROWS)) as (few, many):
        with few:  # enough independent sums to hide the latency of an addition
            product(4, (2, 1) if ctx.isa.has_avx512 else (1,))
        with many:
            product(choice.linear_chunks, (largest, *sorted(smaller, reverse=True)))
