"""``linear``: an exact layer as broadcast-FMA tiles over 16-row columns.

Work: N D M fused multiply-adds; each loads one broadcast weight (reused for ``tile_r`` row
groups), so that both FMA ports stay busy from ``tile_r`` = 2 on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lutcc.ir.module import Operation
from lutcc.schedules.x86.context import Columns, Row, StageContext
from lutcc.schedules.x86.emit import Expr, bind, fma, i64, loop, registers, splat
from lutcc.schedules.x86.pack import CHUNK, chunk_starts
from lutcc.schedules.x86.relu import activate


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
    return activate(op, value + operand(2))


def emit_row(ctx: StageContext, op: Operation, finish: Callable[[Expr, Expr], None]) -> None:
    """Multiply one row; see :func:`lutcc.schedules.x86.lut_accumulate_rows.emit_row`."""
    source = ctx.values[op.operands[0].name]
    assert isinstance(source, Row)
    weight = ctx.blob.add("linear", "float32", [ctx.ref(op.operands[1])])
    depth, starts = source.columns, chunk_starts(op.operands[1].type.size(0))
    where = ctx.blob.add("ints", "int32", [], values=starts)
    together = min(4, len(starts))

    def some(first: Expr, count: int) -> None:
        acc = registers(count, "float32", 16)
        for k in range(count):
            acc.set(k, splat(0.0))
        with loop(depth) as d:
            value = bind(splat(source.view.load(d)))
            for k in range(count):
                at = ((i64(first) + k) * depth + d) * CHUNK
                acc.set(k, fma(value, weight.load(at, 16), acc.get(k)))
        for k in range(count):
            finish(bind(where.load(i64(first) + k).astype("int64")), acc.get(k))

    with loop(len(starts) // together) as b:
        some(b * together, together)
    rest = len(starts) % together
    if rest:
        some(i64(len(starts) - rest), rest)
