"""``sparse_add``: a product with a sparse matrix, added to what is there.

Up to 3 rows are done one by one: each stored value takes three scalar loads and a multiply-add,
in four chains, which hide its latency. Outputs with equally many values follow one another, so that
the ends of their loops can be predicted. Limit: the loads, one value a cycle where a CPU has three
a cycle.

More rows go in blocks of 16, transposed, so that a stored value is multiplied with 16 rows: on
AVX2 two loads of x, two broadcasts' worth of value and two multiply-adds, for 16 terms. Limit: L2
reads of 64 bytes for each stored value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lutcc.ir.module import Operation
from lutcc.schedules.x86.config import FixedConfig
from lutcc.schedules.x86.context import Constant, External, Scratch
from lutcc.schedules.x86.edges import copy_row_in
from lutcc.schedules.x86.emit import (
    LANES,
    Expr,
    View,
    bind,
    branch,
    cast,
    const,
    equal,
    fma,
    i64,
    loop,
    minimum,
    registers,
    splat,
    transpose16,
)
from lutcc.schedules.x86.isa import Isa
from lutcc.schedules.x86.pack import CHUNK, chunk_starts
from lutcc.schedules.x86.panels import ThreadLoop, ceiling, share

#: Operands that are packed into the blob.
PACKED = (2, 3, 4)
#: Up to so many rows are done one by one.
ALONE = 3
#: Sums of one output that are added side by side.
CHAINS = 4


@dataclass(frozen=True)
class Sparse:
    """A sparse matrix in the blob.

    Attributes
    ----------
    outputs, width
        M and K.
    starts, columns, values
        As the op has them.
    order
        The outputs, those with most values first.
    """

    outputs: int
    width: int
    starts: View
    columns: View
    values: View
    order: View

    @classmethod
    def of(cls, op: Operation, constants: list[Constant]) -> Sparse:
        """Pack the constants of an operation: starts, columns, values."""
        base, x = (value.type for value in op.operands[:2])
        return cls(
            base.size(1),
            x.size(1),
            Constant.pack("raw", "int32", constants[:1]),
            Constant.pack("raw", "int32", constants[1:2]),
            Constant.pack("raw", "float32", constants[2:3]),
            Constant.pack("longest_first", "int32", constants[:1]),
        )

    def span(self, output: Expr) -> tuple[Expr, Expr]:
        """Return where the values of an output begin, and how many there are."""
        first = bind(cast("int64", self.starts.load(output)))
        return first, bind(cast("int64", self.starts.load(output + 1)) - first)

    def column(self, place: Expr) -> Expr:
        """Return the column of x that a stored value belongs to."""
        return cast("int64", self.columns.load(place))


def take_shared(op: Operation, isa: Isa, config: FixedConfig, scratch: Scratch) -> None:
    """Assign nothing: threads share nothing."""
    del op, isa, config, scratch


def emit(
    op: Operation,
    config: FixedConfig,
    operands: list[Any],
    target: External,
    rows: Expr,
    shared: None,
    threads: ThreadLoop,
    private: Callable[[Expr], Scratch],
) -> None:
    """Emit the operation; see :func:`lutcc.schedules.x86.codebook_matmul.emit`."""
    del config, shared
    base, x, sparse = operands[0], operands[1], Sparse.of(op, operands[2:])
    with branch(rows <= i64(ALONE)) as (few, many):
        with few, threads() as (thread, count):
            line = private(thread).take(sparse.width + LANES, "float32")
            with loop(rows) as n:
                copy_row_in(x, n, line)
                _row_alone(sparse, base, line, target, n, thread, count)
        with many, threads() as (thread, count):
            first, own = share(bind(ceiling(rows, LANES)), thread, count)
            block = Block(sparse, base, x, target, rows, private(thread))
            with loop(own) as b:
                block.emit(bind((first + b) * LANES))


def _row_alone(
    sparse: Sparse,
    base: External,
    x: View,
    target: External,
    row: Expr,
    thread: Expr,
    threads: Expr,
) -> None:
    """Add to one row: every so-many-th of the outputs, so that threads have equally much."""
    with loop((sparse.outputs - thread + threads - 1) // threads) as i:
        output = bind(cast("int64", sparse.order.load(thread + i * threads)))
        first, count = sparse.span(output)
        sums = registers(CHAINS, "float32", 1)
        for k in range(CHAINS):
            sums.set(k, const(0.0, "float32"))

        def add(chain: int, place: Expr) -> None:
            value = x.load(sparse.column(place))
            sums.set(chain, fma(value, sparse.values.load(place), sums.get(chain), 1))

        groups = bind(count // i64(CHAINS))
        with loop(groups) as z:
            for k in range(CHAINS):
                add(k, first + z * CHAINS + k)
        with loop(count - groups * CHAINS) as z:
            add(0, first + groups * CHAINS + z)
        total = (sums.get(0) + sums.get(1)) + (sums.get(2) + sums.get(3))
        there = base.view.load(base.index(row, output))
        target.view.store(target.index(row, output), there + total)


class Block:
    """16 rows side by side; rows past the end repeat the last one."""

    def __init__(
        self,
        sparse: Sparse,
        base: External,
        x: External,
        target: External,
        rows: Expr,
        scratch: Scratch,
    ) -> None:
        self.sparse, self.base, self.x, self.target, self.rows = sparse, base, x, target, rows
        self.columns = scratch.take(sparse.width * LANES, "float32")
        self.sums = scratch.take(CHUNK * LANES, "float32")

    def emit(self, first: Expr) -> None:
        """Add to the rows from ``first`` on."""
        rows = [bind(minimum(first + i, self.rows - 1)) for i in range(LANES)]
        self._transpose([bind(row * self.x.row_stride) for row in rows])
        outputs = self.sparse.outputs
        valid = min(outputs, CHUNK)
        with loop(len(chunk_starts(outputs))) as k:
            start = bind(minimum(k * CHUNK, i64(max(outputs - CHUNK, 0))))
            with loop(valid) as m:
                self._output(start, m)
            found = transpose16(lambda row, q: self.sums.load(row * LANES + 4 * q, 4))
            for row, value in zip(rows, found, strict=True):
                self._store(row, start, value, valid)

    def _transpose(self, lines: list[Expr]) -> None:
        """Write the columns of x, 16 rows of each."""
        x, width = self.x, self.sparse.width

        def one_by_one() -> None:
            with loop(width) as column:
                for lane, line in enumerate(lines):
                    value = x.view.load(line + column * x.column_stride)
                    self.columns.store(column * LANES + lane, value)

        if width < CHUNK:
            one_by_one()
            return
        with branch(equal(x.column_stride, i64(1))) as (lying, strided):
            with lying, loop(len(chunk_starts(width))) as k:
                start = bind(minimum(k * CHUNK, i64(width - CHUNK)))
                places = [bind(line + start) for line in lines]
                found = transpose16(lambda row, q: x.view.load(places[row] + 4 * q, 4))
                for column, value in enumerate(found):
                    self.columns.store((start + column) * LANES, value, LANES)
            with strided:
                one_by_one()

    def _output(self, start: Expr, m: Expr) -> None:
        """Sum one output of the rows."""
        first, count = self.sparse.span(bind(start + m))
        acc = registers(1, "float32", LANES)
        acc.set(0, splat(0.0))
        with loop(count) as z:
            value = splat(self.sparse.values.load(first + z))
            column = bind(self.sparse.column(first + z) * LANES)
            acc.set(0, fma(self.columns.load(column, LANES), value, acc.get(0)))
        self.sums.store(m * LANES, acc.get(0), LANES)

    def _store(self, row: Expr, start: Expr, value: Expr, valid: int) -> None:
        """Store sums of one row, added to what is there."""
        base, at = self.base, bind(self.target.index(row, start))
        there = bind(base.index(row, start))
        line = registers(1, "float32", LANES)
        line.set(0, value)

        def one_by_one() -> None:
            with loop(valid) as lane:
                number = base.view.load(there + lane * base.column_stride)
                self.target.view.store(at + lane, number + line.view.load(lane))

        if valid < CHUNK:
            one_by_one()
            return
        with branch(equal(base.column_stride, i64(1))) as (lying, strided):
            with lying:
                self.target.view.store(at, base.view.load(there, LANES) + line.get(0), LANES)
            with strided:
                one_by_one()
