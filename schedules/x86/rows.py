"""A stage over rows as they lie: for small batches, where blocks would be mostly padding.

Matrix products share each load of a weight among the rows of a batch, and so pay at any size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lutcc.ir.module import Function, Operation, Value
from lutcc.schedules.x86 import (
    edges,
    linear,
    lut_accumulate_rows,
    nearest_encode,
    row_trees,
)
from lutcc.schedules.x86.context import External, Row, StageContext
from lutcc.schedules.x86.emit import Expr, bind, cast, i64, loop
from lutcc.schedules.x86.pack import CHUNK, round_up
from lutcc.schedules.x86.plan import ELEMENTWISE, REDUCTIONS, Step, plan_steps
from lutcc.schedules.x86.row_passes import RowPasses

_ENCODERS = {
    "tree_encode": row_trees,
    "interval_encode": row_trees,
    "nearest_encode": nearest_encode,
}
#: Producers that store their results where they are returned, if nothing else reads them.
_DIRECT = frozenset({"linear", *REDUCTIONS})
#: Takes the index of a row, a first column, and 16 values.
Put = Callable[[Expr, Expr, Expr], None]


class RowEmitter:
    """Emits the body of some rows, each done alone but for the weights that they share.

    Parameters
    ----------
    ctx, function
        The stage.
    first, count
        The rows.
    capacity
        The largest ``count``.
    """

    def __init__(
        self, ctx: StageContext, function: Function, first: Expr, count: Expr, capacity: int
    ) -> None:
        self.ctx, self.function = ctx, function
        self.first, self.count, self.capacity = first, count, capacity
        self.read = {value.name for op in function.body for value in op.operands}

    def emit(self, inputs: dict[str, External], outputs: dict[str, External]) -> None:
        """Emit all steps."""
        self.ctx.values.update(inputs)
        for step in plan_steps(self.function):
            self._step(step, outputs)
        for value in self.function.params:
            if value.name in outputs:
                self._materialise(value)
                self._store(value, outputs[value.name])

    def _step(self, step: Step, outputs: dict[str, External]) -> None:
        result = step.result
        op = step.producer
        if op is not None and op.opcode in _ENCODERS:
            target = self._take(result.type.size(1), "uint8")
            with self._each_row() as (index, row):
                _ENCODERS[op.opcode].emit_row(self.ctx, op, row, target.at(index))
        else:
            dtype = {"uint8": "float32"}.get(result.type.dtype, result.type.dtype)
            last = result.name in outputs and result.name not in self.read
            if last and op is not None and op.opcode in _DIRECT:
                self._columns(step, self._direct(outputs[result.name]))
                return
            target = self._take(result.type.size(1), dtype)
            self._columns(step, self._scratch(target))
        self._finished(result, target, outputs)

    def _finished(self, result: Value, target: Row, outputs: dict[str, External]) -> None:
        """Note where a value is, and store it if it is returned."""
        self.ctx.values[result.name] = target
        if result.name in outputs:
            self._store(result, outputs[result.name])

    def _take(self, columns: int, dtype: str) -> Row:
        stride = round_up(columns, 64)
        view = self.ctx.scratch.take(stride * self.capacity, dtype)
        return Row(view, columns, dtype, stride)

    @contextmanager
    def _each_row(self) -> Iterator[tuple[Expr, Expr]]:
        """Open a loop over the rows: yields index and row, while values are those of that row."""
        if self.capacity == 1:
            yield i64(0), self.first
            return
        every = dict(self.ctx.values)
        with loop(self.count) as index:
            for name, value in every.items():
                if isinstance(value, Row):
                    self.ctx.values[name] = value.at(index)
            yield index, bind(self.first + index)
        self.ctx.values.update(every)

    def _store(self, value: Value, output: External) -> None:
        with self._each_row() as (_, row):
            source = self.ctx.values[value.name]
            if source.dtype == "uint8":
                with loop(output.columns) as c:
                    output.view.store(i64(row) * output.columns + c, source.view.load(c))
            else:
                edges.copy_row_out(source.view, output, row)

    def _materialise(self, value: Value, *, codes: bool = False) -> None:
        """Bring the rows of an external value into scratch."""
        have = self.ctx.values[value.name]
        if isinstance(have, External):
            target = self._take(have.columns, "uint8" if codes else "float32")
            with self._each_row() as (index, row):
                edges.copy_row_in(have, row, target.at(index).view)
            self.ctx.values[value.name] = target

    @staticmethod
    def _scratch(target: Row) -> Put:
        """Return what stores 16 columns of a row in scratch."""
        return lambda index, first, value: target.at(index).view.store(first, value, 16)

    def _direct(self, target: External) -> Put:
        """Return what stores 16 columns of a row where they are returned."""

        def put(index: Expr, first: Expr, value: Expr) -> None:
            value = cast("uint8x16", value) if target.dtype == "uint8" else value
            at = target.index(bind(self.first + index), first)
            edges.store_partial(target.view, bind(at), value, min(target.columns, CHUNK))

        return put

    def _columns(self, step: Step, put: Put) -> None:
        op = step.producer
        for other in step.chain:
            if other.opcode == "add":
                self._materialise(other.operands[1])
        source = step.source if op is None else op.operands[0]
        assert source is not None
        self._materialise(source, codes=op is not None and op.opcode == "lut_accumulate")
        values = dict(self.ctx.values)

        def finish_row(index: Expr, first: Expr, value: Expr) -> None:
            for each in ([op] if op else []) + list(step.chain):
                value = self._apply(each, value, index, first, values)
            put(index, first, value)

        if op is not None and op.opcode == "linear":
            linear.emit_rows(self.ctx, op, self.count, self.capacity, finish_row)
            return
        if op is not None and op.opcode in REDUCTIONS:
            self._reductions(step, put)
            return
        with self._each_row() as (index, _):

            def finish(first: Expr, value: Expr) -> None:
                finish_row(index, first, value)

            if op is not None:
                lut_accumulate_rows.emit_row(self.ctx, op, finish)
            else:
                row = self.ctx.values[source.name]
                with loop(round_up(row.columns, CHUNK) // CHUNK) as k:
                    finish(k * CHUNK, row.view.load(k * CHUNK, 16))

    def _reductions(self, step: Step, put: Put) -> None:
        """Do an operation that looks at whole rows, and what follows it, in passes."""
        assert step.producer is not None
        result = step.result
        body = [step.producer, *step.chain]
        passes = RowPasses(self.ctx, body, result.type.size(1), [result.name])
        with self._each_row() as (index, _):
            values = dict(self.ctx.values)
            passes.emit(
                lambda name, piece: values[name].view.load(piece.first, CHUNK),
                lambda _, piece, value: put(index, piece.first, value),
            )

    def _apply(
        self, op: Operation, value: Expr, index: Expr, first: Expr, values: dict[str, Any]
    ) -> Expr:
        """Return ``op`` of 16 columns of row ``index``, from ``first`` on."""

        def operand(number: int) -> Expr:
            other = op.operands[number]
            if op.opcode == "add":
                return values[other.name].at(index).view.load(first, 16)
            vector = self.ctx.blob.add("vector", "float32", [self.ctx.ref(other)])
            return vector.load(first, 16)

        if op.opcode == "linear":
            return linear.bias_and_activation(op, value, operand)
        if op.opcode in ELEMENTWISE:
            return ELEMENTWISE[op.opcode](op, value, operand)
        return value
