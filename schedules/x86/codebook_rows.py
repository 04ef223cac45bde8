"""Rows of x as products read them: quantised, rounded, padded, reordered."""

from __future__ import annotations

from dataclasses import dataclass, fields

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
    minimum,
    registers,
    reinterpret,
    shuffle,
    splat,
)
from lutcc.schedules.x86.gather_int8 import quantiser
from lutcc.schedules.x86.granules import Granules
from lutcc.schedules.x86.pack_rows import RowLayout

#: Columns whose integers are summed together, see :mod:`lutcc.schedules.x86.codebook_decode`.
PAIR_COLUMNS = 32


@dataclass(frozen=True)
class PreparedRows:
    """Some rows of x in the workspace, each padded with zeros to whole steps.

    Attributes
    ----------
    granules, layout
        The arithmetic; the weights' layout.
    columns
        Columns of a row with its padding, a multiple of 32.
    values
        [row][columns], of the granules' type. Where weights are widened: of each 8 columns of
        float32, or 16 of int16, the even ones before the odd ones.
    offsets
        Of pairs: [row][columns / 32][8] int16, 64 times the sum of the four integers that share 16
        bits.
    totals, units
        int8: for each row, the weights' offset times the sum of the integers (int32), and what 1
        stands for.
    line
        Room for a row in float32.
    """

    granules: Granules
    layout: RowLayout
    columns: int
    values: View
    offsets: View
    totals: View
    units: View
    line: View

    @classmethod
    def take(
        cls, granules: Granules, layout: RowLayout, rows: int, scratch: Scratch
    ) -> PreparedRows:
        """Assign room for ``rows`` rows."""
        columns = layout.steps * layout.step_columns
        if columns % 1024 == 0:
            columns += 128  # else the same columns of all rows would share a set of the L1 cache
        pairs = granules.kind == "pairs"
        return cls(
            granules,
            layout,
            columns,
            scratch.take(rows * columns, granules.values),
            scratch.take(rows * columns // 4 if pairs else 0, "int16"),
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
        given = self.as_given(x)
        line = self.values.at(row * self.columns) if given else scratch
        copy_row_in(x, number, line)
        with loop(self.columns - x.columns) as c:
            line.store(c + x.columns, hold(const(0, line.dtype)))
        if self.granules.integers:
            self._quantise(row, line)
        elif not given:
            self._round(row, line)

    def as_given(self, x: External) -> bool:
        """Tell whether numbers of x are multiplied as they are, or in float32 of their values."""
        if self.granules.kind == "bfloats":
            return x.dtype == "bfloat16"
        return self.granules.form == "float32"

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
                self.values.store(at + half * LANES, self._ordered(found), LANES)
                both.append(cast("int32x16", found))
            sums = bind(both[0] + both[1])
            total.set(0, total.get(0) + sums)
            if self.granules.kind == "pairs":
                pairs = shuffle([sums], range(0, 16, 2)) + shuffle([sums], range(1, 16, 2))
                scaled = cast("int16x8", pairs * splat(self.granules.offset, "int32", 8))
                self.offsets.store(row * (self.columns // 4) + p * 8, scaled, 8)
        if self.granules.kind != "dpbusd":
            return
        lanes = local(LANES, "int32")
        lanes.store(0, total.get(0), LANES)
        whole = lanes.load(0)
        for lane in range(1, LANES):
            whole = whole + lanes.load(lane)
        self.totals.store(row, whole * const(self.granules.offset, "int32"))

    def _ordered(self, integers: Expr) -> Expr:
        """Return 16 integers as they are stored."""
        if not self.granules.widened:
            return integers
        return cast("int16x16", shuffle([integers], [*range(0, 16, 2), *range(1, 16, 2)]))

    def _round(self, row: Expr, line: View) -> None:
        with loop(self.columns // LANES) as k:
            value = bind(line.load(k * LANES, LANES))
            if self.granules.widened:
                order = [8 * h + 2 * i + odd for h in (0, 1) for odd in (0, 1) for i in range(4)]
                result = shuffle([rounded(value)], order)
            else:
                result = halves(value)
            self.values.store(row * self.columns + k * LANES, result, LANES)

    @property
    def scattered(self) -> bool:
        """Whether rows lie here and there: code to load from them leaves nothing to load ahead."""
        return False

    def start(self, row: Expr, step: Expr) -> Expr:
        """Return the number of the first value of a row at a step of the weights."""
        return row * self.columns + step * self.layout.step_columns

    def column(self, step: Expr, number: Expr) -> Expr:
        """Return how far after :meth:`start` of ``step`` the step ``number`` steps later lies."""
        del step
        return number * self.layout.step_columns

    def parts(self, start: Expr) -> list[Expr]:
        """Load what is multiplied together, for all lanes.

        Parameters
        ----------
        start
            Number of the first value; of pairs, a multiple of 32.

        Returns
        -------
        list
            As many granules as are multiplied together, and, of pairs, their offsets.
        """
        granules = self.granules
        count = granules.columns
        lanes = self.layout.lanes
        parts = [
            broadcast(self.values, start + k * count, count, lanes)
            for k in range(granules.together)
        ]
        if granules.kind == "pairs":
            parts.append(broadcast(self.offsets, start // i64(4), 8, lanes))
        return parts


@dataclass(frozen=True)
class RowsInPlace(PreparedRows):
    """Rows of numbers that are multiplied as they lie in x, where they are neighbours.

    Attributes
    ----------
    source
        x.
    first, count
        The rows of a block; those past its end repeat its last one.
    """

    source: External
    first: Expr
    count: Expr

    @classmethod
    def of(cls, prepared: PreparedRows, source: External, first: Expr, count: Expr) -> RowsInPlace:
        """Return the rows of a block that are not prepared."""
        own = {field.name: getattr(prepared, field.name) for field in fields(prepared)}
        return cls(**own, source=source, first=first, count=count)

    @staticmethod
    def possible(prepared: PreparedRows, source: External) -> bool:
        """Tell whether numbers are multiplied as they are, and rows are whole steps."""
        layout = prepared.layout
        kind = {"floats": "float32", "bfloats": "bfloat16"}.get(prepared.granules.kind)
        same = prepared.as_given(source) and source.dtype == kind
        return same and layout.columns % layout.step_columns == 0

    def start(self, row: Expr, step: Expr) -> Expr:
        """Return the number of the first value of a row at a step of the weights."""
        line = bind(self.first + minimum(row, self.count - 1))
        return line * self.source.row_stride + step * self.layout.step_columns

    def parts(self, start: Expr) -> list[Expr]:
        """Load what is multiplied together, for all lanes."""
        return [broadcast(self.source.view, start, self.granules.columns, self.layout.lanes)]


def broadcast(view: View, at: Expr, count: int, lanes: int) -> Expr:
    """Load 16 bytes, ``count`` numbers, for all lanes."""
    return bind(shuffle([view.load(at, count)] * lanes, [*range(count)] * lanes))
