"""``codebook_dequantize``: rows of codebook weights, 16 columns at a time.

Indices are read as they are stored: a word or two, broadcast, are shifted by a multiple of the
bits in each lane, and the lanes select floats in registers (``vpermps``), whose low bits alone
count. Limit: the stores of 4 bytes a weight. 16 weights take, besides them, 2 broadcast loads, 2
shifts and 2 look-ups on AVX2 (at 4 bits 4 look-ups and 2 blends), half of that on AVX-512.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tvm.tirx as tir
from tvm.script.ir_builder import tirx as builder

from lutcc.ir.codebooks import segments
from lutcc.ir.module import Operation
from lutcc.schedules.intrinsics import x86
from lutcc.schedules.x86 import edges
from lutcc.schedules.x86.config import FixedConfig
from lutcc.schedules.x86.context import Constant, External, Scratch
from lutcc.schedules.x86.emit import (
    LANES,
    Expr,
    View,
    bind,
    both,
    branch,
    cast,
    const,
    differs,
    fence,
    i64,
    loop,
    reinterpret,
    select,
    shuffle,
    splat,
)
from lutcc.schedules.x86.isa import Isa
from lutcc.schedules.x86.panels import ThreadLoop, share

#: Operands that are packed into the blob.
PACKED = (1, 2, 3)
#: Stores a vector of some lanes at a column of the row being written.
Put = Callable[[Expr, Expr, int], None]


@dataclass(frozen=True)
class Weights:
    """Codebook weights as they are stored, in the blob.

    Attributes
    ----------
    isa
        The level.
    bits, rows, columns, segment_size
        What the op says; ``segment_size`` is ``columns`` where a row has one region.
    indices
        Rows of packed indices, with 16 bytes behind the last.
    codebooks, scales
        float32; 16 entries of each codebook, repeated where it has fewer.
    books, factors
        How many codebooks and scales.
    row_bytes
        Bytes of a row of indices.
    """

    isa: Isa
    bits: int
    rows: int
    columns: int
    segment_size: int
    indices: View
    codebooks: View
    scales: View
    books: int
    factors: int
    row_bytes: int

    @classmethod
    def of(cls, op: Operation, isa: Isa, constants: list[Constant]) -> Weights:
        """Pack the constants of an operation."""
        indices, codebooks, scales = (value.type for value in op.operands[1:4])
        rows, row_bytes = indices.sizes()
        bits, columns, size = (int(op.attr(n)) for n in ("bits", "columns", "segment_size"))  # type: ignore[arg-type]
        books, factors = codebooks.size(0), scales.size(0)
        most = max(segments(n, rows, columns, size) for n in (books, factors))
        return cls(
            isa,
            bits,
            rows,
            columns,
            size if most > 1 else columns,
            Constant.pack("codebook_rows", "uint8", constants[:1]),
            Constant.pack("codebook_entries", "float32", constants[1:2]),
            Constant.pack("vector", "float32", constants[2:3]),
            books,
            factors,
            row_bytes,
        )

    def region(self, count: int, row: Expr, segment: Expr) -> Expr:
        """Return which of ``count`` regions a segment of a row is in."""
        if count <= self.rows:
            return row * count // i64(self.rows)
        return row * (count // self.rows) + segment

    def table(self, row: Expr, segment: Expr) -> list[Expr]:
        """Return the 16 weights that indices mean, as vectors that one look-up handles."""
        book = bind(self.region(self.books, row, segment) * 16)
        scale = bind(self.scales.load(self.region(self.factors, row, segment)))
        width = 16 if self.isa.has_avx512 else 8
        count = 2 if width == 8 and self.bits == 4 else 1
        factor = splat(scale, "float32", width)
        return [bind(self.codebooks.load(book + k * width, width) * factor) for k in range(count)]

    def indices_of(self, at: Expr) -> Expr:
        """Return 16 lanes (int32) whose low bits are the indices from byte ``at`` on."""
        if self.bits == 2:
            words = splat(self._word(at), "uint32")
            shifts = tir.Ramp(const(0, "uint32"), const(2, "uint32"), LANES)
        else:
            pair = [splat(self._word(at + k * self.bits), "uint32", 8) for k in (0, 1)]
            words = shuffle(pair, range(16))
            ramp = tir.Ramp(const(0, "uint32"), const(self.bits, "uint32"), 8)
            shifts = shuffle([ramp, ramp], range(16))
        return bind(reinterpret("int32x16", words >> shifts))

    def _word(self, at: Expr) -> Expr:
        return bind(self.indices.at(at).as_dtype("uint32").load(0))

    def look_up(self, table: list[Expr], indices: Expr) -> Expr:
        """Return the weights of 16 indices."""
        if self.isa.has_avx512:
            return x86.VPERMPS_512(table[0], indices)
        halves = []
        for first in (0, 8):
            index = bind(shuffle([indices], range(first, first + 8)))
            found = x86.VPERMPS_256(table[0], index)
            if self.bits == 4:
                bit = index & splat(8, "int32", 8)
                upper = x86.VPERMPS_256(table[1], index)
                found = select(differs(bit, splat(0, "int32", 8)), upper, found)
            halves.append(bind(found))
        return shuffle(halves, range(16))

    def write(self, row: Expr, put: Put) -> None:
        """Write the columns of a row."""
        start = bind(row * self.row_bytes)
        whole, tail = divmod(self.columns, self.segment_size)

        def segment(number: Expr, columns: int) -> None:
            table = self.table(row, number)
            first = bind(number * self.segment_size)

            def chunk(column: Expr, lanes: int) -> None:
                at = bind(start + column * self.bits // i64(8))
                put(column, self.look_up(table, self.indices_of(at)), lanes)

            with loop(columns // LANES) as c:
                chunk(bind(first + c * LANES), LANES)
            if columns % LANES:
                chunk(bind(first + columns // LANES * LANES), columns % LANES)

        with loop(whole) as number:
            segment(number, self.segment_size)
        if tail:
            segment(i64(whole), tail)


def take_shared(op: Operation, isa: Isa, config: FixedConfig, scratch: Scratch) -> Isa:
    """Return the level; threads share nothing."""
    del op, config, scratch
    return isa


def emit(
    op: Operation,
    config: FixedConfig,
    operands: list[Any],
    target: External,
    count: Expr,
    shared: Isa,
    threads: ThreadLoop,
    private: Callable[[Expr], Scratch],
) -> None:
    """Emit the operation; see :func:`lutcc.schedules.x86.codebook_matmul.emit`."""
    del config, private
    rows, weights = operands[0].view, Weights.of(op, shared, operands[1:])
    check_rows(rows, count, weights.rows)

    def lines(store: Callable[[Expr, Expr, int], None]) -> None:
        with threads() as (thread, total):
            begin, own = share(count, thread, total)
            with loop(own) as i:
                number = bind(begin + i)
                to = bind(target.index(number, 0))

                def put(column: Expr, value: Expr, lanes: int) -> None:
                    store(bind(to + column), value, lanes)

                weights.write(bind(cast("int64", rows.load(number))), put)
            if target.stream is not None:
                fence()

    def plain(at: Expr, value: Expr, lanes: int) -> None:
        edges.store_partial(target.view, at, bind(value), lanes)

    if target.stream is None:
        lines(plain)
        return
    with branch(target.stream) as (streamed, usual):
        with streamed:
            lines(lambda at, value, lanes: target.view.store_stream(at, value))
        with usual:
            lines(plain)


def check_rows(rows: View, count: Expr, total: int) -> None:
    """Refuse to read a row that does not exist: the kernel reports an ``IndexError``."""
    message = f"rows holds a number that is not one of the rows 0..{total - 1}"
    with loop(count) as n:
        row = bind(rows.load(n))
        fine = both(row >= const(0, "int32"), row < const(total, "int32"))
        with builder.Assert(fine, message, "IndexError"):
            builder.evaluate(const(0, "int32"))
