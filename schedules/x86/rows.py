"""A stage over one row: for small batches, where a block of rows would be mostly padding."""

from __future__ import annotations

from lutcc.ir.module import Function, Operation, Value
from lutcc.schedules.x86 import edges, linear, lut_accumulate_rows
from lutcc.schedules.x86.context import External, Row, StageContext
from lutcc.schedules.x86.emit import Expr, i64, loop
from lutcc.schedules.x86.pack import CHUNK, round_up
from lutcc.schedules.x86.plan import ELEMENTWISE, ENCODERS, Step, plan_steps


class RowEmitter:
    """Emits the body of one single row."""

    def __init__(self, ctx: StageContext, function: Function) -> None:
        self.ctx = ctx
        self.function = function
        self.steps = plan_steps(function)

    def emit(self, row: Expr, inputs: dict[str, External], outputs: dict[str, External]) -> None:
        """Emit all steps for ``row``."""
        self.ctx.values.update(inputs)
        for step in self.steps:
            result = step.result
            columns = result.type.size(1)
            dtype = {"uint8": "float32"}.get(result.type.dtype, result.type.dtype)
            op = step.producer
            if op is not None and op.opcode in ENCODERS:
                target = Row(self.ctx.scratch.take(columns, "uint8"), columns, "uint8")
                ENCODERS[op.opcode].emit_row(self.ctx, op, row, target)
            else:
                size = round_up(columns, 64)
                target = Row(self.ctx.scratch.take(size, dtype), columns, dtype)
                self._columns(step, row, target)
            self.ctx.values[result.name] = target
            if result.name in outputs:
                self._store(target, outputs[result.name], row)
        for value in self.function.params:
            if value.name in outputs:
                self._store(self._as_row(value, row), outputs[value.name], row)

    def _store(self, source: Row, output: External, row: Expr) -> None:
        if source.dtype == "uint8":
            with loop(output.columns) as c:
                output.view.store(i64(row) * output.columns + c, source.view.load(c))
            return
        edges.copy_row_out(source.view, output, row)

    def _as_row(self, value: Value, row: Expr, *, codes: bool = False) -> Row:
        have = self.ctx.values[value.name]
        if isinstance(have, External):
            dtype = "uint8" if codes else "float32"
            view = self.ctx.scratch.take(round_up(have.columns, 64), dtype)
            if codes:
                with loop(have.columns) as j:
                    view.store(j, have.view.load(have.index(row, j)))
            else:
                edges.copy_row_in(have, row, view)
            have = Row(view, have.columns, dtype)
            self.ctx.values[value.name] = have
        return have

    def _columns(self, step: Step, row: Expr, target: Row) -> None:
        def finish(first: Expr, value: Expr) -> None:
            for op in ([step.producer] if step.producer else []) + list(step.chain):
                value = self._apply(op, value, first, row)
            target.view.store(first, value, 16)

        for op in step.chain:
            if op.opcode == "add":
                self._as_row(op.operands[1], row)
        op = step.producer
        if op is None:
            assert step.source is not None
            source = self._as_row(step.source, row)
            with loop(round_up(source.columns, CHUNK) // CHUNK) as k:
                finish(k * CHUNK, source.view.load(k * CHUNK, 16))
        elif op.opcode == "linear":
            self._as_row(op.operands[0], row)
            linear.emit_row(self.ctx, op, finish)
        else:
            self._as_row(op.operands[0], row, codes=True)
            lut_accumulate_rows.emit_row(self.ctx, op, finish)

    def _apply(self, op: Operation, value: Expr, first: Expr, row: Expr) -> Expr:
        def operand(index: int) -> Expr:
            other = op.operands[index]
            if op.opcode == "add":
                return self._as_row(other, row).view.load(first, 16)
            vector = self.ctx.blob.add("vector", "float32", [self.ctx.ref(other)])
            return vector.load(first, 16)

        if op.opcode == "linear":
            return linear.bias_and_activation(op, value, operand)
        if op.opcode in ELEMENTWISE:
            return ELEMENTWISE[op.opcode](op, value, operand)
        return value
