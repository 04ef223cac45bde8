"""Stages of elementwise operations alone: one straight pass, every value in registers.

Work: each input is read once, each output written once; nothing is transposed and nothing waits
in scratch, so that only memory limits it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

from lutcc.ir.module import Function, Operation
from lutcc.schedules.x86.context import External, StageContext
from lutcc.schedules.x86.emit import (
    Expr,
    bind,
    both,
    branch,
    cast,
    equal,
    i64,
    local,
    loop,
    shuffle,
    splat,
)
from lutcc.schedules.x86.pack import CHUNK
from lutcc.schedules.x86.plan import ELEMENTWISE


def emit(
    ctx: StageContext,
    function: Function,
    begin: Expr,
    end: Expr,
    inputs: Mapping[str, External],
    outputs: Mapping[str, External],
) -> None:
    """Compute the rows from ``begin`` to ``end``."""
    whole = [equal(source.column_stride, i64(1)) for source in inputs.values()]
    streams = [target.stream for target in outputs.values()]

    def rows(*, contiguous: bool, stream: bool) -> None:
        _Pass(ctx, function, inputs, outputs, contiguous, stream).emit(begin, end)

    with branch(reduce(both, whole)) as (contiguous, strided):
        with contiguous:
            if None in streams:
                rows(contiguous=True, stream=False)
            else:
                with branch(reduce(both, streams)) as (large, small):
                    with large:
                        rows(contiguous=True, stream=True)
                    with small:
                        rows(contiguous=True, stream=False)
        with strided:
            rows(contiguous=False, stream=False)


@dataclass(frozen=True)
class _Pass:
    """The loop over rows and vectors, with one way to load and one to store."""

    ctx: StageContext
    function: Function
    inputs: Mapping[str, External]
    outputs: Mapping[str, External]
    contiguous: bool
    stream: bool

    def emit(self, begin: Expr, end: Expr) -> None:
        columns = next(iter(self.inputs.values())).columns
        with loop(end - begin) as r:
            row = bind(begin + r)
            if columns >= CHUNK:
                with loop(columns // CHUNK) as k:
                    self._vector(row, k * CHUNK, CHUNK)
                if columns % CHUNK:  # the last vector overlaps the one before
                    self._vector(row, i64(columns - CHUNK), CHUNK)
                return
            lanes = 1 << (columns.bit_length() - 1)
            for start in sorted({0, columns - lanes}):
                self._vector(row, i64(start), lanes)

    def _vector(self, row: Expr, first: Expr, lanes: int) -> None:
        """Compute ``lanes`` columns from ``first`` on; less than 16 repeat."""
        values = {
            name: bind(self._load(source, row, first, lanes))
            for name, source in self.inputs.items()
        }

        def operand(op: Operation, index: int) -> Expr:
            value = op.operands[index]
            if value.name in values:
                return values[value.name]
            vector = self.ctx.blob.add("vector", "float32", [self.ctx.ref(value)])
            return bind(vector.load(first, CHUNK))

        for op in self.function.body:
            if op.opcode != "constant":
                apply = ELEMENTWISE[op.opcode]
                result = apply(op, operand(op, 0), lambda i, op=op: operand(op, i))
                values[op.results[0].name] = bind(result)
        for name, target in self.outputs.items():
            self._store(values[name], target, bind(target.index(row, first)), lanes)

    def _load(self, source: External, row: Expr, first: Expr, lanes: int) -> Expr:
        if self.contiguous:
            value = source.view.load(source.index(row, first), lanes)
        else:
            gathered = local(lanes, source.dtype)
            for lane in range(lanes):
                gathered.store(lane, source.view.load(source.index(row, first + lane)))
            value = gathered.load(0, lanes)
        if lanes == 1:
            value = splat(value)
        elif lanes < CHUNK:
            value = shuffle([value] * (CHUNK // lanes), range(CHUNK))
        return value if source.dtype == "float32" else cast("float32x16", value)

    def _store(self, value: Expr, target: External, index: Expr, lanes: int) -> None:
        if target.dtype == "uint8":
            value = cast("uint8x16", value)
        if self.stream:
            target.view.store_stream(index, value)
        else:
            part = value if lanes == CHUNK else shuffle([value], range(lanes))
            target.view.store(index, part, lanes)
