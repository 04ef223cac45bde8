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
from lutcc.schedules.x86 import bfloat16, gather_int8
from lutcc.schedules.x86.context import Row, StageContext
from lutcc.schedules.x86.emit import (
    LANES,
    Expr,
    View,
    bind,
    cast,
    const,
    fma,
    i64,
    loop,
    registers,
    reinterpret,
    select,
    shuffle,
    splat,
    when,
)
from lutcc.schedules.x86.pack import CHUNK, gather_starts, round_up

LINE = 64
_ITEMSIZE = {"float32": 4, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True)
class Gather:
    """One gather: sizes, and where its packed tables are.

    Attributes
    ----------
    tables, entries, codes
        H, K, E.
    dtype, signed, pairs
        Of the tables; whether weights may be negative; whether two bfloat16 products are added at
        once (``vdpbf16ps``).
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
    pairs: bool
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
    least = {"float32": CHUNK, "bfloat16": 2 * CHUNK, "int8": ctx.isa.vector_bytes}[dtype]
    columns = min(max(choice.columns, least), round_up(outputs, least))
    starts = gather_starts(outputs, columns)
    pairs = dtype == "bfloat16" == op.attr("score_dtype") and ctx.isa.has_bf16
    form = {
        "float32": "plain",
        "bfloat16": "pairs" if pairs else "halves",
        "int8": "plain" if signed else "quads",
    }[dtype]
    table = ctx.blob.add(
        "gather_tables",
        "uint8" if dtype == "int8" else "float32" if dtype == "float32" else "uint32",
        [ctx.ref(op.operands[2])],
        columns=columns,
        form=form,
        lanes=ctx.isa.vector_bytes,
    )
    return Gather(
        tables, entries, codes, dtype, signed, pairs, columns, choice.group, starts, table
    )


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
        float32 scores; bfloat16 ones for products of pairs; bytes (quantised scores) for int8
        tables.
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
        ctx.scratch.take(count, _weight_dtype(gather)),
        ctx.scratch.take(capacity if integers else 0, "float32"),
        capacity,
        ctx.scratch.take(gather.columns * capacity, "int32" if integers else "float32"),
    )


def _weight_dtype(gather: Gather) -> str:
    if gather.dtype == "int8":
        return "uint8"
    return "uint16" if gather.pairs else "float32"


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
        elif gather.pairs:
            score = bind(bfloat16.halves(score))
        elif str(op.attr("score_dtype")) == "bfloat16":
            score = bind(bfloat16.rounded(score))
        for lane in range(0, CHUNK, part):
            group = bind((first + lane) // i64(gather.group))
            inside = (first + lane) - group * gather.group
            where = bind(queue.slot(group, row) + inside)
            queue.rows.store(where, _lanes(code, lane, part), part)
            queue.weights.store(where, _lanes(score, lane, part), part)


def _lanes(vector: Expr, first: int, count: int) -> Expr:
    return vector if count == LANES else tir.Shuffle([vector], list(range(first, first + count)))


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
    kernel = _kernel(ctx, queue)

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
        if self.gather.pairs:
            self._add_pairs(base, slot, size)
            return
        for k in range(size):
            number = cast("int64", self.queue.rows.load(slot + k))
            weight = bind(splat(self.queue.weights.load(slot + k)))
            for c, value in enumerate(self._row(bind(base + number))):
                self.acc.set(c, fma(weight, value, self.acc.get(c)))

    def _add_pairs(self, base: Expr, slot: Expr, size: int) -> None:
        """Add two rows at a time; an odd last one counts once, its double weighs nothing."""
        width = self.gather.columns // 2
        for k in range(0, size, 2):
            rows = [min(k, size - 1), min(k + 1, size - 1)]
            both = [self.queue.weights.load(slot + r) for r in rows]
            if rows[0] == rows[1]:
                both[1] = const(0, "uint16")
            high = cast("uint32", both[1]) << const(16, "uint32")
            weights = bind(splat(cast("uint32", both[0]) | high))
            numbers = [base + cast("int64", self.queue.rows.load(slot + r)) for r in rows]
            lines = [bind(number * width) for number in numbers]
            for part in range(self.gather.columns // 32):
                found = [
                    bind(
                        reinterpret("uint8x64", self.gather.table.load(line + part * LANES, LANES))
                    )
                    for line in lines
                ]
                for half in (False, True):
                    mixed = shuffle(found, gather_int8.unpack(64, 2, high=half))
                    slot_ = part * 2 + half
                    self.acc.set(slot_, bfloat16.dot_pairs(self.acc.get(slot_), mixed, weights))

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


def _kernel(ctx: StageContext, queue: Queue) -> Any:
    return (gather_int8.Int8Kernel if queue.gather.dtype == "int8" else _FloatKernel)(ctx, queue)
