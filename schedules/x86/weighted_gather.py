"""``weighted_gather``: many rows against one piece of some tables at a time.

Work: per row, table and output one look-up and one multiply-add. The tables of a layer are larger
than any cache near the core (h = 128, tau = 8, d = 512: 64 MiB in float32), and the codes jump in
them, so the order decides: outputs are cut into *slices* of a few cache lines, tables into
*groups*; the piece of a group in a slice fits half the L2 cache, all rows of a block pass over it
before the next piece, and the next piece is prefetched meanwhile, a cache line for each row. What
is left is L2 bandwidth: 4 bytes (2, 1) for each look-up, and reading the tables once for each
block of rows.

Codes and scores wait in a queue, group by group, until a block of rows is complete.
int8 tables: four looked-up rows are interleaved byte by byte, so that one instruction multiplies
and adds four tables for each output: ``vpdpbusd``, or ``vpmaddubsw`` and ``vpmaddwd``, whose 16-bit
sums of two products cannot saturate because a weight is at most 127 (7 bits) in magnitude.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tvm.tirx as tir

from lutcc.ir.module import Operation
from lutcc.schedules.x86 import gather_int8
from lutcc.schedules.x86.context import Row, StageContext
from lutcc.schedules.x86.emit import (
    LANES,
    Expr,
    View,
    bind,
    cast,
    fma,
    i64,
    loop,
    registers,
    reinterpret,
    select,
    splat,
    when,
)
from lutcc.schedules.x86.pack import CHUNK, chunk_starts, round_up

LINE = 64
_ITEMSIZE = {"float32": 4, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True)
class Gather:
    """One gather: sizes, and where its packed tables are.

    Attributes
    ----------
    tables, entries, codes
        H, K, E.
    dtype, signed
        Of the tables; whether weights may be negative.
    columns, group
        Outputs in a slice, codes in a group.
    starts
        First column of each chunk of 16 outputs; the last ones may repeat.
    table
        (slices, H * K, columns).
    """

    tables: int
    entries: int
    codes: int
    dtype: str
    signed: bool
    columns: int
    group: int
    starts: list[int]
    table: View

    @property
    def row_bytes(self) -> int:
        """Bytes of a table's row in a slice."""
        return self.columns * _ITEMSIZE[self.dtype]

    @property
    def chunks(self) -> int:
        """Chunks of 16 outputs in a slice."""
        return self.columns // CHUNK


def plan_gather(ctx: StageContext, op: Operation, *, signed: bool) -> Gather:
    """Cut a gather as the stage's config says, and ask for its tables.

    ``signed`` says that scores may be negative.
    """
    tables, entries, outputs = op.operands[2].type.sizes()
    dtype = op.operands[2].type.dtype
    choice = ctx.configs.gather
    assert choice is not None
    codes = op.operands[0].type.size(1)
    starts = chunk_starts(outputs)
    columns = min(choice.columns, round_up(len(starts) * CHUNK, _least_columns(dtype)))
    starts += [starts[-1]] * (round_up(len(starts), columns // CHUNK) - len(starts))
    form = {"float32": "plain", "bfloat16": "halves"}.get(dtype, "plain" if signed else "quads")
    table = ctx.blob.add(
        "gather_tables",
        "uint8" if dtype == "int8" else "float32" if dtype == "float32" else "uint32",
        [ctx.ref(op.operands[2])],
        columns=columns,
        form=form,
        lanes=ctx.isa.vector_bytes,
    )
    return Gather(tables, entries, codes, dtype, signed, columns, choice.group, starts, table)


def _least_columns(dtype: str) -> int:
    """Return the outputs that the kernel of a dtype handles together."""
    return {"float32": 16, "bfloat16": 32, "int8": 64}[dtype]


@dataclass(frozen=True)
class Queue:
    """Codes and scores of a block of rows: [group][row][codes of the group].

    Attributes
    ----------
    gather
        Whose they are.
    rows
        int32 numbers of table rows, ``table * K + code``.
    weights
        float32 scores; bytes (quantised scores) for int8 tables.
    units
        For int8 tables, the unit of each row's weights.
    capacity
        Rows of the block.
    partial
        Sums of a slice while groups pass: [row][columns].
    """

    gather: Gather
    rows: View
    weights: View
    units: View
    capacity: int
    partial: View

    def slot(self, group: Expr | int, row: Expr) -> Expr:
        """Return the index of the first code of a group."""
        return (i64(group) * self.capacity + row) * self.gather.group


def make_queue(ctx: StageContext, gather: Gather, capacity: int) -> Queue:
    """Take scratch for a queue."""
    count = round_up(gather.codes, max(CHUNK, gather.group)) * capacity
    integers = gather.dtype == "int8"
    return Queue(
        gather,
        ctx.scratch.take(count, "int32"),
        ctx.scratch.take(count, "uint8" if integers else "float32"),
        ctx.scratch.take(capacity if integers else 0, "float32"),
        capacity,
        ctx.scratch.take(gather.columns * capacity, "int32" if integers else "float32"),
    )


def enqueue(
    ctx: StageContext, op: Operation, queue: Queue, codes: Row, scores: Row, row: Expr
) -> None:
    """Put the codes and scores of one row (contiguous, with room for 16 more) into the queue."""
    gather = queue.gather
    neighbors = gather.codes // gather.tables
    bases = [e // neighbors * gather.entries for e in range(gather.codes)]
    padded = bases + [bases[-1]] * (round_up(len(bases), CHUNK) - len(bases))
    first_rows = ctx.blob.add("ints", "int32", [], values=padded)
    part = min(gather.group, CHUNK)
    scale: Any = None
    if gather.dtype == "int8":
        scale = gather_int8.quantiser(scores, gather.codes)
        queue.units.store(row, scale.unit)
    with loop(round_up(gather.codes, CHUNK) // CHUNK) as k:
        first = bind(k * CHUNK)
        code = bind(codes.view.load(first, LANES))
        last = splat(gather.entries - 1, "int32")
        code = bind(select(code < splat(0, "int32"), splat(0, "int32"), code))
        code = select(code > last, last, code)
        code = bind(code + first_rows.load(first, LANES))
        score = bind(scores.view.load(first, LANES))
        if scale is not None:
            score = bind(scale.apply(score))
        elif str(op.attr("score_dtype")) == "bfloat16":
            score = bind(rounded_to_bfloat16(score))
        for lane in range(0, CHUNK, part):
            group = bind((first + lane) // i64(gather.group))
            inside = (first + lane) - group * gather.group
            where = bind(queue.slot(group, row) + inside)
            queue.rows.store(where, _lanes(code, lane, part), part)
            queue.weights.store(where, _lanes(score, lane, part), part)


def _lanes(vector: Expr, first: int, count: int) -> Expr:
    return vector if count == LANES else tir.Shuffle([vector], list(range(first, first + count)))


def rounded_to_bfloat16(value: Expr) -> Expr:
    """Return float32 values rounded to bfloat16, nearest even; NaN stays NaN."""
    bits = bind(reinterpret("int32x16", value))
    odd = (bits >> splat(16, "int32")) & splat(1, "int32")
    high = (bits + splat(0x7FFF, "int32") + odd) & splat(-0x10000, "int32")
    rounded = reinterpret("float32x16", high)
    return select(tir.NE(value, value), value, rounded)


def emit(
    ctx: StageContext,
    queue: Queue,
    rows: Expr,
    finish: Callable[[Expr, Expr, Expr], None],
) -> None:
    """Gather for ``rows`` queued rows; ``finish(row, first column, 16 values)`` takes results."""
    gather = queue.gather
    where = ctx.blob.add("ints", "int32", [], values=gather.starts)
    groups = -(-gather.codes // gather.group)
    tail = gather.codes - (groups - 1) * gather.group
    piece_bytes = (
        gather.group * gather.entries * gather.row_bytes // max(1, gather.codes // gather.tables)
    )
    lines = max(1, piece_bytes // LINE)
    sweep = bind(rows * 4 >= i64(lines))
    per_row = bind((i64(lines) + rows - 1) // tir.Max(rows, i64(1)))
    kernel = _KERNELS[gather.dtype](ctx, queue)

    def passes(slice_: Expr, group: Expr | int, size: int, *, first: bool, last: bool) -> None:
        base = bind(i64(slice_) * (gather.tables * gather.entries))
        following = bind(
            (
                base
                + (i64(group) + 1) * (gather.group * gather.tables // gather.codes) * gather.entries
            )
            * gather.row_bytes
        )
        with loop(rows) as row:
            with when(sweep), loop(per_row) as line:
                byte = following + (row * per_row + line) * LINE
                gather.table.prefetch_bytes(byte)
            with when(tir.Not(sweep)):
                if last:
                    _prefetch_rows(queue, base + gather.tables * gather.entries, i64(0), row)
                else:
                    _prefetch_rows(queue, base, bind(i64(group) + 1), row)
            kernel.start(row, first=first)
            kernel.add(base, bind(queue.slot(group, row)), size)
            for k, value in enumerate(kernel.results(row) if last else ()):
                column = bind(cast("int64", where.load(i64(slice_) * gather.chunks + k)))
                finish(row, column, value)
            if not last:
                kernel.keep(row)

    with loop(len(gather.starts) // gather.chunks) as s:
        if groups > 1:
            passes(s, 0, gather.group, first=True, last=False)
            with loop(groups - 2) as g:
                passes(s, bind(g + 1), gather.group, first=False, last=False)
        passes(s, groups - 1, tail, first=groups == 1, last=True)


def _prefetch_rows(queue: Queue, base: Expr, group: Expr, row: Expr) -> None:
    """Ask for the lines that a row's codes of a group select."""
    gather = queue.gather
    slot = bind(queue.slot(group, row))
    with loop(gather.group) as k:
        number = cast("int64", queue.rows.load(slot + k))
        at = bind((base + number) * gather.row_bytes)
        for line in range(0, gather.row_bytes, LINE):
            gather.table.prefetch_bytes(at + line)


class _FloatKernel:
    """float32 and bfloat16 tables: sums of one row's slice in registers."""

    def __init__(self, ctx: StageContext, queue: Queue) -> None:
        self.queue, self.gather = queue, queue.gather
        self.acc = registers(self.gather.chunks, "float32", LANES)

    def start(self, row: Expr, *, first: bool) -> None:
        """Begin with zeros, or with what earlier groups summed."""
        for k in range(self.gather.chunks):
            at = row * self.gather.columns + k * LANES
            self.acc.set(k, splat(0.0) if first else self.queue.partial.load(at, LANES))

    def add(self, base: Expr, slot: Expr, size: int) -> None:
        """Add ``size`` weighted table rows."""
        for k in range(size):
            number = cast("int64", self.queue.rows.load(slot + k))
            weight = bind(splat(self.queue.weights.load(slot + k)))
            for c, value in enumerate(self._row(bind(base + number))):
                self.acc.set(c, fma(weight, value, self.acc.get(c)))

    def _row(self, number: Expr) -> list[Expr]:
        width, table = self.gather.columns, self.gather.table
        if self.gather.dtype == "float32":
            return [table.load(number * width + c * LANES, LANES) for c in range(width // LANES)]
        values = []
        for c in range(width // 32):  # a word holds column c in its low half, c + 16 in its high
            words = bind(table.load(number * (width // 2) + c * LANES, LANES))
            low, high = words << splat(16, "uint32"), words & splat(0xFFFF0000, "uint32")
            values += [reinterpret("float32x16", low), reinterpret("float32x16", high)]
        return values

    def keep(self, row: Expr) -> None:
        """Leave the sums for the next group."""
        for k in range(self.gather.chunks):
            self.queue.partial.store(row * self.gather.columns + k * LANES, self.acc.get(k), LANES)

    def results(self, row: Expr) -> list[Expr]:
        """Return the sums, 16 outputs each."""
        return [self.acc.get(k) for k in range(self.gather.chunks)]


_KERNELS: dict[str, Any] = {
    "float32": _FloatKernel,
    "bfloat16": _FloatKernel,
    "int8": gather_int8.Int8Kernel,
}
