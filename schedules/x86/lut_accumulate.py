"""``lut_accumulate``: register look-ups, 64 (or 32) table entries an instruction.

Two ways to sum:

* *dot* (exact, K <= 32, VBMI+VNNI): the codes of four codebooks lie beside each other, one
  ``vpermb`` (``vpermi2b`` for K > 16) looks up all four in one register of tables, ``vpdpbusd``
  with ones adds them into 32 bits. Limit: 2 instructions per 64 look-ups.
* *widen* (any level, any K <= 128, exact or mean): one codebook at a time for 64 (32) rows;
  bytes are added to 16-bit sums of even and odd rows by ``lo += v; hi += v >> 8`` (exact for up
  to 257 additions, then flushed to 32 bits). In mean mode, ``upcast_every`` codebooks are first
  averaged in a tree of ``vpavgb``.

Tables lie in chunks of 16 columns (16 KiB for C = 64, K = 16), so that a chunk stays in L1 for
all rows of a block and the whole table is read once a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lutcc.ir.module import Operation
from lutcc.schedules.intrinsics import x86 as machine
from lutcc.schedules.x86.context import Codes, Columns, External, StageContext
from lutcc.schedules.x86.edges import clamped_rows
from lutcc.schedules.x86.emit import (
    Expr,
    Registers,
    View,
    bind,
    cast,
    const,
    i64,
    loop,
    minimum,
    registers,
    reinterpret,
    select,
    shuffle,
    splat,
)
from lutcc.schedules.x86.isa import Isa
from lutcc.schedules.x86.pack import CHUNK, round_up
from lutcc.schedules.x86.tree_encode import store_codes

#: 257 * 255 = 65535: so many bytes fit a 16-bit sum.
FLUSH = 257


def is_mean(op: Operation) -> bool:
    """Whether groups of codebooks are averaged."""
    return op.attr("accumulate") == "mean"


def group_size(op: Operation) -> int:
    """Codebooks averaged before they are widened (1 in exact mode)."""
    return int(op.attr("upcast_every")) if is_mean(op) else 1


def uses_dot(isa: Isa, op: Operation) -> bool:
    """Whether the scan runs as dot products of bytes."""
    return isa.has_vbmi_vnni and not is_mean(op) and op.operands[1].type.shape[1] <= 32


def bound(lut: np.ndarray) -> int:
    """Return the largest magnitude that a sum of entries of a table (C, K, M) can have."""
    return int(np.abs(lut.astype(np.int64)).max(axis=1).sum(axis=0).max(initial=0))


def gives_words(isa: Isa, op: Operation, lut: np.ndarray) -> bool:
    """Whether a scan can give its sums in 16 bits: AVX2 or dot products, and none is larger."""
    few = op.operands[1].type.size(0) <= FLUSH
    ways = uses_dot(isa, op) or (not isa.has_avx512 and few and not is_mean(op))
    return ways and bound(lut) < 1 << 15


def needs_rows(op: Operation) -> bool:
    """Whether only the row kernel can do it: float tables, or more than 128 entries."""
    lut = op.operands[1].type
    return lut.dtype == "float32" or lut.shape[1] > 128


def padded_entries(entries: int) -> int:
    """Table entries as stored: 16, 32, 64 or 128."""
    size = 16
    while size < entries:
        size *= 2
    return size


def code_layout(ctx: StageContext, op: Operation, codebooks: int, view: View) -> Codes:
    """Return the layout in which this scan wants its codes, over the memory ``view``."""
    entries = padded_entries(op.operands[1].type.shape[1])
    dot = uses_dot(ctx.isa, op)
    return Codes(
        view,
        round_up(codebooks, 4) if dot else codebooks,
        16 if dot else ctx.isa.vector_bytes,
        dot,
        entries,
    )


def sign_correction(op: Operation) -> int:
    """Return what to subtract because int8 tables are stored with the sign bit flipped."""
    lut = op.operands[1].type
    return 128 * lut.size(0) if lut.dtype == "int8" else 0


class DotTile:
    """Exact scan by ``vpermb`` and ``vpdpbusd``; row groups of 16."""

    rows = 16

    def __init__(self, ctx: StageContext, op: Operation, codes: Codes) -> None:
        self.codes = codes
        self.groups = codes.codebooks // 4
        self.entries = codes.entries
        self.correction = sign_correction(op)
        self.table = ctx.blob.add(
            "lut_dot", "uint8", [ctx.ref(op.operands[1])], entries=codes.entries
        )

    def tile(self, chunk: Expr, first: Expr, count: int, groups: Sequence[Expr]) -> Any:
        """Scan ``count`` columns from ``first`` of a chunk for some row groups.

        Returns a function (column in tile, index of row group) -> list of one int32x16.
        """
        width = 4 * self.entries
        acc = registers(count * len(groups), "int32", 16)
        for slot in range(count * len(groups)):
            acc.set(slot, splat(-self.correction, "int32"))
        ones = splat(1, "int8", 64)
        chunk_size = self.groups * CHUNK * width
        base = bind(i64(chunk) * chunk_size + i64(first) * width)
        rows = [bind(i64(g) * self.groups * 64) for g in groups]
        with loop(self.groups) as g:
            codes = [bind(self.codes.view.load(r + g * 64, 64)) for r in rows]
            for j in range(count):
                at = base + g * (CHUNK * width) + j * width
                low = bind(self.table.load(at, 64))
                high = bind(self.table.load(at + 64, 64)) if self.entries == 32 else None
                for r, code in enumerate(codes):
                    if high is None:
                        found = machine.VPERMB_512(low, code)
                    else:
                        found = machine.VPERMI2B_512(low, code, high)
                    slot = j * len(groups) + r
                    acc.set(slot, machine.VPDPBUSD_512(acc.get(slot), found, ones))
        return lambda j, r: [acc.get(j * len(groups) + r)]


class WidenTile:
    """Exact or averaged scan with 16-bit sums; row groups of 32 or 64.

    ``sums``: "int16" where all sums fit 16 bits, so that those of 32 rows come as int16x16.
    """

    def __init__(self, ctx: StageContext, op: Operation, codes: Codes, sums: str = "int32") -> None:
        self.isa = ctx.isa
        self.codes = codes
        self.rows = codes.rows
        self.entries = codes.entries
        self.average = group_size(op)
        self.correction = sign_correction(op)
        self.codebooks = round_up(codes.codebooks, self.average)
        few = self.codebooks // self.average <= FLUSH
        self.words = sums == "int16" and codes.rows == 32 and few
        self.table = ctx.blob.add(
            "lut_widen",
            "uint8",
            [ctx.ref(op.operands[1])],
            entries=codes.entries,
            codebooks=self.codebooks,
        )

    def tables(self, at: Expr) -> list[Expr]:
        """Load the registers that hold the table at ``at``."""
        if self.isa.has_vbmi_vnni and self.entries >= 64:
            return [self.table.load(at + 64 * k, 64) for k in range(self.entries // 64)]
        if self.isa.has_vbmi_vnni and self.entries == 32:
            return [self._spread(at, 32)]
        return [self._spread(at + 16 * k, 16) for k in range(self.entries // 16)]

    def look_up(self, tables: Sequence[Expr], index: Sequence[Expr]) -> Expr:
        """Look up ``rows`` codes, prepared by :meth:`prepare`, in a table."""
        if self.isa.has_vbmi_vnni and self.entries >= 32:
            if len(tables) == 1:
                return machine.VPERMB_512(tables[0], index[0])
            return machine.VPERMI2B_512(tables[0], index[0], tables[1])
        found = [self._pshufb()(t, i) for t, i in zip(tables, index, strict=True)]
        result = found[0]
        for part in found[1:]:
            result = result | part
        return result

    def _spread(self, at: Expr, width: int) -> Expr:
        part = self.table.load(at, width)
        return shuffle([part] * (self.rows // width), range(self.rows))

    def _pshufb(self) -> machine.Intrinsic:
        return machine.PSHUFB_512 if self.rows == 64 else machine.PSHUFB_256

    def prepare(self, codes: Expr) -> list[Expr]:
        """Return the index registers of a code vector.

        Without byte permutes over 64 entries, table ``k`` of 16 entries is read with
        ``(code ^ 16 k) +sat 0x70``: ``vpshufb`` gives 0 where the code belongs to another table.
        """
        if self.entries == 16 or (self.isa.has_vbmi_vnni and self.entries >= 32):
            return [codes]
        add = machine.PADDUSB_512 if self.rows == 64 else machine.PADDUSB_256
        high = splat(0x70, "uint8", self.rows)
        parts = []
        for k in range(self.entries // 16):
            flipped = codes ^ splat(16 * k, "uint8", self.rows) if k else codes
            parts.append(bind(add(flipped, high)))
        return parts

    def tile(self, chunk: Expr, first: Expr, count: int, groups: Sequence[Expr]) -> Any:
        """See :meth:`DotTile.tile`; the function returns ``rows / 16`` vectors."""
        lanes, cells = self.rows // 2, count * len(groups)
        low, high = registers(cells, "uint16", lanes), registers(cells, "uint16", lanes)
        parts = self.rows // 16
        steps = self.codebooks // self.average
        flushes = -(-steps // FLUSH)
        wide = registers(cells * parts, "int32", 16) if flushes > 1 else None
        chunk_base = bind(i64(chunk) * (self.codebooks * CHUNK * self.entries))
        zero = splat(0, "uint16", lanes)

        def clear() -> None:
            for slot in range(cells):
                low.set(slot, zero)
                high.set(slot, zero)

        def scan(begin: Expr, extent: int | Expr) -> None:
            with loop(extent) as s:
                self._step(begin + s, chunk_base, first, count, groups, low, high)

        def sums(slot: int) -> list[Expr]:
            return self._rows_in_order(low.get(slot), high.get(slot))

        clear()
        if wide is None:
            scan(i64(0), steps)
            fix = splat(self.correction, "int32")
            if self.words:
                wrapped = (self.correction + (1 << 15)) % (1 << 16) - (1 << 15)
                fix = splat(wrapped, "int16")
            return lambda j, r: [v - fix for v in sums(j * len(groups) + r)]
        for slot in range(cells * parts):
            wide.set(slot, splat(-self.correction, "int32"))
        with loop(flushes) as f:
            begin = bind(f * FLUSH)
            left = i64(steps) - begin
            scan(begin, bind(select(left < i64(FLUSH), left, i64(FLUSH))))
            for slot in range(cells):
                for p, value in enumerate(sums(slot)):
                    wide.set(slot * parts + p, wide.get(slot * parts + p) + value)
            clear()
        return lambda j, r: [wide.get((j * len(groups) + r) * parts + p) for p in range(parts)]

    def _step(
        self,
        step: Expr,
        base: Expr,
        first: Expr,
        count: int,
        groups: Sequence[Expr],
        low: Registers,
        high: Registers,
    ) -> None:
        """Look up one codebook (or one averaged group) for all cells of a tile."""
        real = self.codes.codebooks
        cells = [(j, r) for j in range(count) for r in range(len(groups))]
        pending: dict[tuple[int, int], dict[int, Expr]] = {cell: {} for cell in cells}
        for u in range(self.average):
            codebook = step * self.average + u
            at = base + codebook * (CHUNK * self.entries) + i64(first) * self.entries
            if self.codebooks != real:  # padding tables are zero: any code will do
                codebook = select(codebook < i64(real), codebook, i64(real - 1))
            indices = [
                self.prepare(
                    bind(self.codes.view.load((g * real + codebook) * self.rows, self.rows))
                )
                for g in groups
            ]
            for j in range(count):
                tables = [bind(t) for t in self.tables(at + j * self.entries)]
                for r, index in enumerate(indices):
                    self._carry(pending[j, r], bind(self.look_up(tables, index)))
        eight = splat(8, "uint16", self.rows // 2)
        for (j, r), finished in pending.items():
            (value,) = finished.values()
            widened = bind(reinterpret(f"uint16x{self.rows // 2}", value))
            slot = j * len(groups) + r
            low.set(slot, low.get(slot) + widened)
            high.set(slot, high.get(slot) + (widened >> eight))

    def _carry(self, pending: dict[int, Expr], value: Expr) -> None:
        """Add a leaf to a tree of averages, like one to a binary counter.

        At most ``log2(upcast_every)`` partial averages are alive, which fit the registers.
        """
        average = machine.PAVGB_512 if self.rows == 64 else machine.PAVGB_256
        level = 0
        while level in pending:
            value = bind(average(pending.pop(level), value))
            level += 1
        pending[level] = value

    def _rows_in_order(self, low: Expr, high: Expr) -> list[Expr]:
        """Turn sums of (even + 256 odd) and odd bytes into int32x16, one per 16-row part.

        Codes of part ``s`` lie at bytes ``s, s + parts, s + 2 parts, ...`` (see ``store_codes``),
        so that each part comes out in row order by masks and shifts alone.
        """
        lanes = self.rows // 2
        odd = bind(high)
        even = bind(low - (odd << splat(8, "uint16", lanes)))
        if self.words:
            return [bind(reinterpret("int16x16", v)) for v in (even, odd)]
        if self.rows == 32:
            return [bind(cast("int32x16", even)), bind(cast("int32x16", odd))]
        mask, sixteen = splat(0xFFFF, "uint32"), splat(16, "uint32")
        pairs = [bind(reinterpret("uint32x16", v)) for v in (even, odd)]
        first = [reinterpret("int32x16", p & mask) for p in pairs]
        second = [reinterpret("int32x16", p >> sixteen) for p in pairs]
        return [bind(v) for v in (*first, *second)]


def load_column_codes(ctx: StageContext, source: Columns, target: Codes, entries: int) -> None:
    """Bring codes that were computed as float32 columns into the layout of a scan.

    Codes that no encoder made may be too large: they count as ``entries - 1``, the last one.
    """
    step = 4 if target.dot else 1
    last = splat(entries - 1, "int32")
    with loop(ctx.groups) as group, loop(target.codebooks // step) as c:
        parts = []
        for j in range(step):
            column = bind(minimum(c * step + j, source.columns - 1))
            code = bind(cast("int32x16", source.view.load(source.index(group, column), 16)))
            parts.append(select(code < last, code, last))
        store_codes(target, group, c, parts)


def load_external_codes(ctx: StageContext, source: External, target: Codes, entries: int) -> None:
    """Bring row-major codes into the layout of a scan; see :func:`load_column_codes`."""
    last = const(entries - 1, "uint8")
    with loop(ctx.groups) as group:
        rows = clamped_rows(ctx, group)
        per_group = target.rows // 16
        with loop(target.codebooks) as c:
            column = bind(select(c < i64(source.columns), c, i64(source.columns - 1)))
            for lane, row in enumerate(rows):
                raw = source.view.load(source.index(row, column))
                code = bind(select(raw < last, raw, last))
                if target.dot:
                    offset = cast("uint8", (c % i64(4)) * target.entries)
                    where = (
                        i64(group) * target.codebooks * 16
                        + c // i64(4) * 64
                        + lane * 4
                        + c % i64(4)
                    )
                    target.view.store(where, code + offset)
                else:
                    where = (
                        (i64(group) // per_group * target.codebooks + c) * target.rows
                        + lane * per_group
                        + i64(group) % per_group
                    )
                    target.view.store(where, code)
