"""Emits the stages of an entry function: fused groups that main calls."""

from __future__ import annotations

from dataclasses import dataclass

import tvm.tirx as tir

from lutcc.codegen.threads import Threads
from lutcc.codegen.values import Values
from lutcc.ir.module import Function, Operation
from lutcc.schedules.x86 import elementwise, hash_rows, lut_images, plan
from lutcc.schedules.x86.blocks import BlockEmitter
from lutcc.schedules.x86.config import KernelConfigs
from lutcc.schedules.x86.context import External, StageContext
from lutcc.schedules.x86.emit import Expr, bind, fence, hold, i64, loop, minimum, select
from lutcc.schedules.x86.isa import Isa
from lutcc.schedules.x86.rows import RowEmitter


@dataclass(frozen=True)
class StageEmitter:
    """Emits a stage.

    Attributes
    ----------
    isa, configs, values, threads
        Of the entry function; configs of this stage.
    function
        The stage, without repacks.
    """

    isa: Isa
    configs: KernelConfigs
    values: Values
    threads: Threads
    function: Function

    def emit(self, call: Operation) -> None:
        """Emit a call of the stage; threads share its rows, or its images."""
        if plan.goes_by_images(self.function):
            self._images(call)
        else:
            self._rows(call)

    def _images(self, call: Operation) -> None:
        images = self.values.rows(self.function.params[0])
        source, target = self.values.view(call.operands[0]), self.values.view(call.results[0])
        with self.threads.loop(images) as (thread, threads):
            share = tir.floordiv(images + threads - 1, threads)
            begin = self.threads.opaque(minimum(thread * share, images))
            end = self.threads.opaque(minimum(begin + share, images))
            ctx = self.context(thread, begin, i64(1), images)
            lut_images.emit(ctx, self.function, source, target, begin, end)

    def _rows(self, call: Operation) -> None:
        function = self.function
        rows = self.values.rows(function.params[0])
        outputs: dict[str, External] = {}
        copies = []
        for inner, outer in zip(function.returns, call.results, strict=True):
            if inner.name in outputs:
                copies.append((inner, outer))
            else:
                outputs[inner.name] = self.values.external(outer)
        inputs = {
            inner.name: self.values.external(outer)
            for inner, outer in zip(function.params, call.operands, strict=True)
        }
        unit = plan.rows_of_a_thread(self.isa, function, self.configs)
        units = tir.floordiv(rows + unit - 1, i64(unit))
        with self.threads.loop(units) as (thread, threads):
            share = tir.floordiv(rows + threads * unit - 1, threads * unit) * unit
            begin = self.threads.opaque(thread * share)
            end = self.threads.opaque(minimum(begin + share, rows))
            _Share(self, rows, thread, begin, end, inputs, outputs).emit()
            if any(external.stream is not None for external in outputs.values()):
                fence()
        returned = [value.name for value in function.returns]
        for inner, outer in copies:
            self.values.copy(call.results[returned.index(inner.name)], outer)

    def context(self, thread: Expr, first: Expr, groups: Expr, rows: Expr) -> StageContext:
        """Return what the operations of the stage share, for one thread."""
        refs = {
            op.results[0].name: str(op.attr("ref"))
            for op in self.function.body
            if op.opcode == "constant"
        }
        return StageContext(
            self.isa,
            self.configs,
            self.values.blob,
            self.threads.opaque_scratch(thread),
            plan.row_group(self.isa, self.function),
            first,
            groups,
            bind(rows - 1),
            refs=refs,
        )


@dataclass(frozen=True)
class _Share:
    """What one thread does of a stage: rows ``begin`` to ``end``."""

    stage: StageEmitter
    rows: Expr
    thread: Expr
    begin: Expr
    end: Expr
    inputs: dict[str, External]
    outputs: dict[str, External]

    def emit(self) -> None:
        function, threshold = self.stage.function, self.stage.configs.stage.row_threshold
        if plan.hashes(function):
            self._by_hashes()
        elif plan.elementwise_only(function):
            ctx = self._context(self.begin, i64(1))
            elementwise.emit(ctx, function, self.begin, self.end, self.inputs, self.outputs)
        elif plan.rows_only(function) or threshold >= plan.ALWAYS:
            self._by_rows(self.begin)
        elif threshold <= 0:
            self._by_blocks(self.end)
        else:
            split = self._split(threshold)
            self._by_blocks(split)
            self._by_rows(split)

    def _split(self, threshold: int) -> Expr:
        """Return where rows begin that go alone: few ones, and few that are left of groups.

        One more group costs less than the first one, which brings the tables near, and rows that
        go alone read tables of their own, from further away: they are worth a fifth of a group.
        """
        group = plan.row_group(self.stage.isa, self.stage.function)
        count = bind(tir.Max(self.end - self.begin, i64(0)))
        left = bind(tir.floormod(count, i64(group)))
        few = min(threshold // 3, group // 5)
        alone = select(left <= i64(few), left, i64(0))
        return bind(hold(self.end - select(self.rows <= i64(threshold), count, alone)))

    def _by_rows(self, begin: Expr) -> None:
        capacity = self._capacity
        count = bind(tir.Max(self.end - begin, i64(0)))
        with loop(tir.floordiv(count + (capacity - 1), i64(capacity))) as r:
            ctx = self._context(begin, i64(1))
            first = bind(begin + r * capacity)
            now = bind(minimum(i64(capacity), self.end - first))
            emitter = RowEmitter(ctx, self.stage.function, first, now, capacity)
            emitter.emit(self.inputs, self.outputs)

    def _by_blocks(self, end: Expr) -> None:
        begin, block = self.begin, self.stage.configs.stage.row_block
        group = plan.row_group(self.stage.isa, self.stage.function)
        count = tir.Max(end - begin, i64(0))
        with loop(tir.floordiv(count + block - 1, i64(block))) as b:
            first = bind(begin + b * block)
            now = minimum(i64(block), end - first)
            supers = tir.floordiv(now + group - 1, i64(group))
            ctx = self._context(first, bind(supers * (group // 16)))
            emitter = BlockEmitter(ctx, self.stage.function)
            emitter.emit(self.inputs, self.outputs)

    def _by_hashes(self) -> None:
        hash_rows.emit_stage(
            lambda: self._context(self.begin, i64(1)),
            self.stage.function,
            self.begin,
            self.end,
            self._capacity,
            self.inputs,
            self.outputs,
        )

    @property
    def _capacity(self) -> int:
        return plan.rows_at_once(self.stage.function, self.stage.configs)

    def _context(self, first: Expr, groups: Expr) -> StageContext:
        return self.stage.context(self.thread, first, groups, self.rows)
