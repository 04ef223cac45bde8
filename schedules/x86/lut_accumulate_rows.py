"""``lut_accumulate`` for single rows: each code selects a row of outputs, and rows are summed.

Tables lie as [C, K, M]: a row of N = 1 reads C table rows of M bytes instead of the whole table,
16 times fewer bytes at K = 16.
"""

from __future__ import annotations

from collections.abc import Callable

from lutcc.ir.module import Operation
from lutcc.schedules.x86.context import Row, StageContext
from lutcc.schedules.x86.emit import (
    Expr,
    View,
    bind,
    cast,
    i64,
    loop,
    minimum,
    registers,
    reinterpret,
    select,
    shuffle,
    splat,
)
from lutcc.schedules.x86.lut_accumulate import FLUSH, group_size, sign_correction
from lutcc.schedules.x86.pack import CHUNK, round_up


def emit_row(ctx: StageContext, op: Operation, finish: Callable[[Expr, Expr], None]) -> None:
    """Scan one row: each code selects a row of outputs, and rows are summed.

    ``finish(first column, int32x16 or float32x16)`` takes the sums of 16 columns; columns up to
    a multiple of 64 (float: 16) are delivered, the padding being zero.
    """
    codes = ctx.values[op.operands[0].name]
    assert isinstance(codes, Row)
    lut = op.operands[1].type
    if lut.dtype == "float32":
        _emit_row_float(ctx, op, codes.view, finish)
        return
    average = group_size(op)
    real = lut.size(0)
    codebooks = round_up(real, average)
    table = ctx.blob.add("lut_rows", "uint8", [ctx.ref(op.operands[1])], codebooks=codebooks)
    columns = round_up(lut.size(2), 64)
    blocks = columns // 64
    choice = ctx.configs.rows
    together = min(choice.scan_blocks, blocks)
    scan = _RowScan(
        table, codes.view, columns, lut.size(1), real, codebooks, average, choice.prefetch
    )
    correction = sign_correction(op)
    with loop(blocks // together) as b:
        scan.emit(b * together, together, correction, finish)
    if blocks % together:
        with loop(blocks % together) as b:
            scan.emit(b + (blocks - blocks % together), 1, correction, finish)


class _RowScan:
    """The row kernel over blocks of 64 output columns."""

    def __init__(
        self,
        table: View,
        codes: View,
        columns: int,
        entries: int,
        real: int,
        codebooks: int,
        average: int,
        ahead: int,
    ) -> None:
        self.table, self.codes, self.columns = table, codes, columns
        self.entries, self.real, self.codebooks, self.average = entries, real, codebooks, average
        self.ahead = ahead

    def _entry(self, codebook: Expr) -> Expr:
        """Return where the outputs of the entry begin that the row's code selects."""
        if self.codebooks != self.real:
            known = select(codebook < i64(self.real), codebook, i64(self.real - 1))
        else:
            known = codebook
        code = minimum(cast("int64", self.codes.load(known)), self.entries - 1)
        return bind((i64(codebook) * self.entries + code) * self.columns)

    def _prefetch(self, group: Expr, block: Expr, count: int) -> None:
        """Ask for the entries of some codebooks further on."""
        if not self.ahead:
            return
        for u in range(self.average):
            entry = self._entry(minimum(group + self.ahead + u, self.codebooks - 1))
            for k in range(count):
                self.table.prefetch(entry + (i64(block) + k) * 64)

    def _averaged(self, values: list[Expr]) -> Expr:
        one = splat(1, "uint16", 64)
        while len(values) > 1:
            pairs = zip(values[::2], values[1::2], strict=True)
            values = [
                bind(
                    cast(
                        "uint8x64",
                        (cast("uint16x64", a) + cast("uint16x64", b) + one) >> one,
                    )
                )
                for a, b in pairs
            ]
        return values[0]

    def emit(
        self, block: Expr, count: int, correction: int, finish: Callable[[Expr, Expr], None]
    ) -> None:
        """Scan ``count`` blocks of 64 columns from ``block`` on."""
        low, high = registers(count, "uint16", 32), registers(count, "uint16", 32)
        zero, eight = splat(0, "uint16", 32), splat(8, "uint16", 32)
        steps = self.codebooks // self.average
        flushes = -(-steps // FLUSH)
        wide = registers(count * 4, "int32", 16) if flushes > 1 else None

        def sums(k: int) -> list[Expr]:
            odd = bind(high.get(k))
            even = bind(low.get(k) - (odd << eight))
            return [
                cast("int32x16", shuffle([half], range(s, s + 16)))
                for half in (even, odd)
                for s in (0, 16)
            ]

        def scan(begin: Expr, extent: int | Expr) -> None:
            for k in range(count):
                low.set(k, zero)
                high.set(k, zero)
            with loop(extent) as s:
                group = bind((begin + s) * self.average)
                self._prefetch(group, block, count)
                entries = [self._entry(group + u) for u in range(self.average)]
                for k in range(count):
                    found = [bind(self.table.load(e + (i64(block) + k) * 64, 64)) for e in entries]
                    value = bind(reinterpret("uint16x32", self._averaged(found)))
                    low.set(k, low.get(k) + value)
                    high.set(k, high.get(k) + (value >> eight))

        fix = splat(correction, "int32")
        if wide is None:
            scan(i64(0), steps)
        else:
            for slot in range(count * 4):
                wide.set(slot, splat(0, "int32"))
            with loop(flushes) as f:
                begin = bind(f * FLUSH)
                left = i64(steps) - begin
                scan(begin, bind(select(left < i64(FLUSH), left, i64(FLUSH))))
                for k in range(count):
                    for p, value in enumerate(sums(k)):
                        wide.set(k * 4 + p, wide.get(k * 4 + p) + value)
        for k in range(count):
            values = [wide.get(k * 4 + p) for p in range(4)] if wide else sums(k)
            for p, value in enumerate(values):
                finish((i64(block) + k) * 64 + p * 16, value - fix)


def _emit_row_float(
    ctx: StageContext, op: Operation, codes: View, finish: Callable[[Expr, Expr], None]
) -> None:
    """Float tables: sequential float32 sums in codebook order."""
    lut = op.operands[1].type
    codebooks, entries = lut.size(0), lut.size(1)
    columns = round_up(lut.size(2), CHUNK)
    table = ctx.blob.add("lut_rows_float", "float32", [ctx.ref(op.operands[1])])
    acc = registers(1, "float32", 16)
    with loop(columns // CHUNK) as chunk:
        acc.set(0, splat(0.0))
        with loop(codebooks) as c:
            code = minimum(cast("int64", codes.load(c)), entries - 1)
            where = (c * entries + code) * columns + chunk * CHUNK
            acc.set(0, acc.get(0) + table.load(where, 16))
        finish(chunk * CHUNK, acc.get(0))
