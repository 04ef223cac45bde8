"""A stage with Hadamard transforms, block-diagonal products, hashes and gathers.

Rows go through the projection and the hash in tiles, so that weights are shared and nothing but
codes and scores leaves the caches near the core; these wait in a queue until a block of rows is
complete and goes past the tables (:mod:`lutcc.schedules.x86.weighted_gather`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lutcc.ir.module import Function, Operation, Value
from lutcc.schedules.x86 import (
    bfloat16,
    block_diagonal_matmul,
    edges,
    hadamard,
    sign_hash,
    weighted_gather,
)
from lutcc.schedules.x86.context import External, Row, StageContext
from lutcc.schedules.x86.emit import (
    LANES,
    Expr,
    bind,
    branch,
    cast,
    equal,
    i64,
    local,
    loop,
    maximum,
    minimum,
    registers,
)
from lutcc.schedules.x86.pack import CHUNK, round_up
from lutcc.schedules.x86.plan import ELEMENTWISE, Step, plan_steps
from lutcc.schedules.x86.rows import RowEmitter
from lutcc.schedules.x86.weighted_gather import Queue


class HashRowEmitter(RowEmitter):
    """Emits the body of a tile of rows up to the gathers, whose codes it puts into queues.

    Parameters
    ----------
    queues
        By the name of a gather's result.
    queued
        Number of the tile's first row in the queues.
    """

    def __init__(
        self,
        ctx: StageContext,
        function: Function,
        first: Expr,
        count: Expr,
        capacity: int,
        queues: dict[str, Queue],
        queued: Expr,
    ) -> None:
        super().__init__(ctx, function, first, count, capacity)
        self.queues, self.queued = queues, queued
        self._left = dict(function.use_counts)
        for value in function.returns:
            self._left[value.name] = self._left.get(value.name, 0) + 1
        self._free: dict[int, list[Row]] = {}

    def _step(self, step: Step, outputs: dict[str, External]) -> None:
        op = step.producer
        emit = self._hash_steps().get(op.opcode) if op is not None else None
        if emit is None:
            super()._step(step, outputs)
            return
        emit(step, outputs)
        for each in (op, step.folded):
            for value in each.operands if each is not None else ():
                self._release(value)

    def _hash_steps(self) -> dict[str, Callable[[Step, dict[str, External]], None]]:
        return {
            "hadamard": self._hadamard,
            "block_diagonal_matmul": self._product,
            "sign_hash": self._hash,
            "weighted_gather": self._enqueue,
        }

    # -- memory --------------------------------------------------------------------------

    def _take_floats(self, columns: int, room: int) -> Row:
        """Return rows of floats with room for ``room``, reusing the memory of dead values."""
        stride = block_diagonal_matmul.row_stride(room + LANES)
        if self._free.get(stride):
            return replace(self._free[stride].pop(), columns=columns)
        view = self.ctx.scratch.take(stride * self.capacity, "float32")
        return Row(view, columns, "float32", stride)

    def _release(self, value: Value) -> None:
        """Count a reading of ``value``; after the last one its memory is free."""
        self._left[value.name] = self._left.get(value.name, 0) - 1
        have = self.ctx.values.get(value.name)
        if self._left[value.name] or not isinstance(have, Row) or have.dtype != "float32":
            return
        # A transform in place has handed its operand's memory on to its result.
        taken_over = any(
            isinstance(other, Row) and other.view is have.view and self._left.get(name, 0) > 0
            for name, other in self.ctx.values.items()
        )
        if not taken_over:
            self._free.setdefault(have.stride, []).append(have)

    def _own_copy(self, value: Value, room: int) -> Row:
        """Return the rows of a value in memory that may be overwritten, with room for ``room``."""
        have = self.ctx.values[value.name]
        stride = block_diagonal_matmul.row_stride(room + LANES)
        if isinstance(have, Row) and have.stride == stride and self._left.get(value.name) == 1:
            return have
        target = self._take_floats(value.type.size(1), room)
        with self._each_row() as (index, row):
            if isinstance(have, External):
                edges.copy_row_in(have, row, target.at(index).view)
            else:
                source = self.ctx.values[value.name]
                with loop(round_up(source.columns, LANES) // LANES) as k:
                    line = source.view.load(k * LANES, LANES)
                    target.at(index).view.store(k * LANES, line, LANES)
        return target

    # -- steps ---------------------------------------------------------------------------

    def _hadamard(self, step: Step, outputs: dict[str, External]) -> None:
        op = step.producer
        assert op is not None
        width = step.result.type.size(1)
        output = outputs.get(step.result.name)
        last = output is not None and step.result.name not in self.read and width >= LANES
        have = self.ctx.values[op.operands[0].name]
        direct = isinstance(have, External) and have.columns == width >= LANES
        if direct:
            target = self._take_floats(width, width)
        else:
            target = self._own_copy(op.operands[0], width)

        # Stores of a pass to places a page or more apart are slow past the caches: copy instead.
        direct_out = last and width < 2048

        def transform(row: Expr, at: Row, load: hadamard.Load | None) -> None:
            def finish(first: Expr, value: Expr) -> None:
                if direct_out:
                    store_columns(output, row, first, value)
                else:
                    at.view.store(first, value, value_lanes(value))

            hadamard.emit_row(self.ctx, op, at, finish, load)
            if last and not direct_out:
                with loop(width // LANES) as k:
                    first = bind(k * LANES)
                    store_columns(output, row, first, at.view.load(first, LANES))

        with self._each_row() as (index, row):
            at = target.at(index)
            if not direct:
                transform(row, at, None)
            else:
                lanes = hadamard.lanes_of(self.ctx)
                with branch(equal(have.column_stride, i64(1))) as (contiguous, strided):
                    with contiguous:
                        line = bind(i64(row) * have.row_stride)
                        transform(row, at, lambda first: have.view.load(line + first, lanes))
                    with strided:
                        edges.copy_row_in(have, row, at.view)
                        transform(row, at, None)
        if not last:
            self._finished(step.result, replace(target, columns=width), outputs)

    def _product(self, step: Step, outputs: dict[str, External]) -> None:
        op = step.producer
        assert op is not None
        if step.folded is not None:
            width = step.folded.results[0].type.size(1)
            source = self._own_copy(step.folded.operands[0], width)
            with self._each_row() as (index, _):
                hadamard.clear_padding(source.at(index), width)
                hadamard.mix(self.ctx, source.at(index).view, width, op.operands[1].type.size(1))
        else:
            self._materialise(op.operands[0])
            source = self.ctx.values[op.operands[0].name]
        if op.operands[1].type.dtype == "bfloat16":
            source = self._rounded(op, source)
        for other in step.chain:
            if other.opcode == "add":
                self._materialise(other.operands[1])
        values = dict(self.ctx.values)
        room = block_diagonal_matmul.padded_columns(op)
        target = self._take_floats(step.result.type.size(1), max(room, self._slack(step.result)))

        def finish(index: Expr, first: Expr, value: Expr) -> None:
            for each in step.chain:
                value = self._apply(each, value, index, first, values)
            target.at(index).view.store(first, value, LANES)

        block_diagonal_matmul.emit_rows(
            self.ctx, op, source, self.count, self.capacity, finish, step.folded
        )
        if (
            step.folded is not None
            and self.ctx.values.get(step.folded.operands[0].name) is not source
        ):
            self._free.setdefault(source.stride, []).append(source)
        self._finished(step.result, target, outputs)

    def _rounded(self, op: Operation, source: Row) -> Row:
        """Return a copy of rows in bfloat16, in the form that the product takes."""
        pairs = block_diagonal_matmul.uses_pairs(self.ctx.isa, op)
        target = self._take(source.columns + LANES, "uint16" if pairs else "float32")
        target = replace(target, columns=source.columns)
        with self._each_row() as (index, _):
            bfloat16.round_row(source.at(index), target.at(index))
        return target

    def _slack(self, value: Value) -> int:
        """Return the columns that readers of a value may touch."""
        hashed = [
            value.type.size(1) + sign_hash.slack(op)
            for op in self.function.body
            if op.opcode == "sign_hash" and op.operands[0].name == value.name
        ]
        return max([value.type.size(1), *hashed])

    def _hash(self, step: Step, outputs: dict[str, External]) -> None:
        op = step.producer
        assert op is not None
        have = self.ctx.values[op.operands[0].name]
        if not isinstance(have, Row) or have.stride < self._slack(op.operands[0]):
            have = self._own_copy(op.operands[0], self._slack(op.operands[0]))
            self.ctx.values[op.operands[0].name] = have
        codes, scores = (
            self._take(r.type.size(1) + CHUNK * int(op.attr("neighbors")), r.type.dtype)
            for r in op.results
        )
        with self._each_row() as (index, _):
            source = self.ctx.values[op.operands[0].name]
            sign_hash.emit_row(
                op,
                source,
                lambda found, index=index: sign_hash.store(
                    found, codes.at(index), scores.at(index)
                ),
            )
        for result, target in zip(op.results, (codes, scores), strict=True):
            row = replace(target, columns=result.type.size(1))
            self._finished(result, row, outputs)

    def _enqueue(self, step: Step, outputs: dict[str, External]) -> None:
        op = step.producer
        assert op is not None
        for value in op.operands[:2]:
            have = self.ctx.values[value.name]
            if isinstance(have, External):
                target = self._take(value.type.size(1) + CHUNK, value.type.dtype)
                with self._each_row() as (index, row):
                    edges.copy_row_in(have, row, target.at(index).view)
                self.ctx.values[value.name] = replace(target, columns=value.type.size(1))
        with self._each_row() as (index, _):
            codes, scores = (self.ctx.values[v.name] for v in op.operands[:2])
            queue = self.queues[op.results[0].name]
            weighted_gather.enqueue(self.ctx, op, queue, codes, scores, bind(self.queued + index))


def store_columns(target: External, row: Expr, first: Expr, value: Expr) -> None:
    """Store 8 or 16 columns of a row-major value, past the caches where that pays."""
    index = bind(i64(row) * target.columns + first)
    lanes = value_lanes(value)
    if target.stream is None:
        if target.columns >= lanes:
            target.view.store(index, value, lanes)
        else:
            edges.store_partial(target.view, index, value, target.columns)
        return
    with branch(target.stream) as (large, small):
        with large:
            target.view.store_stream(index, value, lanes)
        with small:
            target.view.store(index, value, lanes)


def value_lanes(value: Expr) -> int:
    """Return how many lanes a vector has."""
    return int(str(value.ty.dtype).partition("x")[2] or 1)


def emit_stage(
    context: Callable[[], StageContext],
    function: Function,
    begin: Expr,
    end: Expr,
    capacity: int,
    inputs: dict[str, External],
    outputs: dict[str, External],
) -> StageContext:
    """Emit rows ``begin .. end - 1`` of a stage; returns the context, whose scratch tells its size.

    ``capacity`` is the rows of a tile.
    """
    ctx = context()
    gathers = [s for s in plan_steps(function) if _is_gather(s)]
    choice = ctx.configs.gather
    block = round_up(choice.rows, capacity) if choice is not None and gathers else capacity
    queues = {
        step.producer.results[0].name: weighted_gather.make_queue(
            ctx,
            weighted_gather.plan_gather(
                ctx, step.producer, signed=_may_be_negative(function, step.producer)
            ),
            block,
        )
        for step in gathers
        if step.producer is not None
    }
    count = bind(maximum(end - begin, 0))
    with loop((count + (block - 1)) // i64(block)) as b:
        first = bind(begin + b * block)
        rows = bind(minimum(i64(block), end - first))
        with loop((rows + (capacity - 1)) // i64(capacity)) as t:
            queued = bind(t * capacity)
            now = bind(minimum(i64(capacity), rows - queued))
            HashRowEmitter(ctx, function, bind(first + queued), now, capacity, queues, queued).emit(
                inputs, outputs
            )
        for step in gathers:
            _gather(ctx, step, queues, first, rows, inputs, outputs)
    return ctx


def _is_gather(step: Step) -> bool:
    return step.producer is not None and step.producer.opcode == "weighted_gather"


def _may_be_negative(function: Function, gather: Operation) -> bool:
    """Whether a gather's scores may be negative: those of a hash's first neighbours are not."""
    maker = function.definitions.get(gather.operands[1].name)
    return maker is None or maker.opcode != "sign_hash" or maker.attr("neighbors") != 1


def _gather(
    ctx: StageContext,
    step: Step,
    queues: dict[str, Queue],
    first: Expr,
    rows: Expr,
    inputs: dict[str, External],
    outputs: dict[str, External],
) -> None:
    """Emit one gather of a block of rows with the operations that follow it."""
    op = step.producer
    assert op is not None
    output = outputs[step.result.name]

    def operand(each: Operation, number: int, row: Expr, column: Expr) -> Expr:
        other = each.operands[number]
        if each.opcode == "add":
            return load_columns(inputs[other.name], row, column)
        vector = ctx.blob.add("vector", "float32", [ctx.ref(other)])
        return vector.load(column, LANES)

    def finish(index: Expr, column: Expr, value: Any) -> None:
        row = bind(first + index)
        for each in step.chain:
            value = ELEMENTWISE[each.opcode](
                each, value, lambda i, each=each: operand(each, i, row, column)
            )
        if output.dtype == "uint8":
            value = cast("uint8x16", value)
        store_columns(output, row, column, bind(value))

    weighted_gather.emit(ctx, queues[op.results[0].name], rows, finish)


def load_columns(source: External, row: Expr, column: Expr) -> Expr:
    """Return 16 columns of a row of any strides; fewer columns than 16 are padded with zeros."""
    value = registers(1, "float32", LANES)
    lanes = local(LANES, "float32")

    def one_by_one() -> None:
        with loop(min(source.columns, LANES)) as lane:
            lanes.store(lane, source.view.load(source.index(row, column + lane)))
        value.set(0, lanes.load(0, LANES))

    if source.columns < LANES:
        one_by_one()
        return bind(value.get(0))
    with branch(equal(source.column_stride, i64(1))) as (contiguous, strided):
        with contiguous:
            value.set(0, source.view.load(source.index(row, column), LANES))
        with strided:
            one_by_one()
    return bind(value.get(0))
