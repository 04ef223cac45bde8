"""Rows of x as products with codebook weights read them: quantised, rounded, padded, reordered."""

from __future__ import annotations

from dataclasses import dataclass

from lutcc.ir.codebooks import TABLE_LIMIT
from lutcc.schedules.x86.bfloat16 import halves, rounded
from lutcc.schedules.x86.context import External, Row, Scratch
from lutcc.schedules.x86.edges import copy_row_in
from lutcc.schedules.x86.emit import (
    LANES,
    Expr,
    View,
    bind,
    cast,
    const,
    hold,
    i64,
    local,
    loop,
    registers,
    reinterpret,
    shuffle,
    splat,
)
from lutcc.schedules.x86.gather_int8 import quantiser
from lutcc.schedules.x86.isa import Isa
from lutcc.schedules.x86.pack_codebooks import CodebookLayout

#: Columns whose integers are summed together, see :mod:`lutcc.schedules.x86.codebook_decode`.
PAIR_COLUMNS = 32


@dataclass(frozen=True)
class PreparedRows:
    """Some rows of x in the workspace, each padded with zeros to whole steps.

    Attributes
    ----------
    isa, layout, form
        The level; the weights' layout; the arithmetic, ``int8``, ``float32`` or ``bfloat16``.
    columns
        Columns of a row with its padding, a multiple of 32.
    values
        int8: [row][columns] int8. float32: [row][columns]. bfloat16: uint16 where ``vdpbf16ps`` is
        there; else float32, of each 8 columns the even ones before the odd ones.
    offsets
        int8 without ``vpdpbusd``: [row][columns / 32][8] int16, 64 times the sum of the four
        integers that share 16 bits.
    totals, units
        int8: for each row, 64 times the sum of the integers (int32), and what 1 stands for.
    line
        Room for a row in float32.
    """

    isa: Isa
    layout: CodebookLayout
    form: str
    columns: int
    values: View
    offsets: View
    totals: View
    units: View
    line: View

    @classmethod
    def take(
        cls, isa: Isa, layout: CodebookLayout, form: str, rows: int, scratch: Scratch
    ) -> PreparedRows:
        """Assign room for ``rows`` rows."""
        columns = layout.steps * layout.step_columns
        if columns % 1024 == 0:
            columns += 128  # else the same columns of all rows would share a set of the L1 cache
        dtype = {"int8": "int8", "float32": "float32"}.get(form)
        if dtype is None:
            dtype = "uint16" if isa.has_bf16 else "float32"
        return cls(
            isa,
            layout,
            form,
            columns,
            scratch.take(rows * columns, dtype),
            scratch.take(rows * columns // 4, "int16"),
            scratch.take(rows, "int32"),
            scratch.take(rows, "float32"),
            scratch.take(columns, "float32"),
        )

    def fill(self, x: External, first: Expr, count: Expr) -> None:
        """Prepare ``count`` rows of x from row ``first`` on."""
        with loop(count) as r:
            self.prepare(x, bind(first + r), r, self.line)

    def prepare(self, x: External, number: Expr, row: Expr, scratch: View) -> None:
        """Prepare row ``number`` of x as row ``row``; ``scratch`` is room for it in float32."""
        line = self.values.at(row * self.columns) if self.form == "float32" else scratch
        copy_row_in(x, number, line)
        with loop(self.columns - x.columns) as c:
            line.store(c + x.columns, hold(const(0.0, "float32")))
        if self.form == "int8":
            self._quantise(row, line)
        elif self.form == "bfloat16":
            self._round(row, line)

    def _quantise(self, row: Expr, line: View) -> None:
        scale = quantiser(Row(line, self.columns, "float32", self.columns), self.columns)
        self.units.store(row, scale.unit)
        total = registers(1, "int32", LANES)
        total.set(0, splat(0, "int32"))
        with loop(self.columns // PAIR_COLUMNS) as p:
            at = row * self.columns + p * PAIR_COLUMNS
            both = []
            for half in range(2):
                found = scale.apply(line.load(p * PAIR_COLUMNS + half * LANES, LANES))
                found = bind(reinterpret("int8x16", found))
                self.values.store(at + half * LANES, found, LANES)
                both.append(cast("int32x16", found))
            sums = bind(both[0] + both[1])
            total.set(0, total.get(0) + sums)
            pairs = shuffle([sums], range(0, 16, 2)) + shuffle([sums], range(1, 16, 2))
            scaled = cast("int16x8", pairs * splat(TABLE_LIMIT, "int32", 8))
            self.offsets.store(row * (self.columns // 4) + p * 8, scaled, 8)
        lanes = local(LANES, "int32")
        lanes.store(0, total.get(0), LANES)
        whole = lanes.load(0)
        for lane in range(1, LANES):
            whole = whole + lanes.load(lane)
        self.totals.store(row, whole * const(TABLE_LIMIT, "int32"))

    def _round(self, row: Expr, line: View) -> None:
        with loop(self.columns // LANES) as k:
            value = bind(line.load(k * LANES, LANES))
            if self.isa.has_bf16:
                result = halves(value)
            else:
                order = [8 * h + 2 * i + odd for h in (0, 1) for odd in (0, 1) for i in range(4)]
                result = shuffle([rounded(value)], order)
            self.values.store(row * self.columns + k * LANES, result, LANES)

    def broadcast(self, view: View, row: int, at: Expr, count: int) -> Expr:
        """Load ``count`` elements (16 bytes) of a row for all lanes."""
        width = self.columns // 4 if view is self.offsets else self.columns
        value = view.load(i64(row * width) + at, count)
        return bind(shuffle([value] * self.layout.lanes, [*range(count)] * self.layout.lanes))
