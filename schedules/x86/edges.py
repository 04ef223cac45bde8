"""The edges of a fused group: row-major memory in, 16-row columns inside, row-major out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lutcc.schedules.x86.bfloat16 import widened
from lutcc.schedules.x86.context import Columns, External, StageContext
from lutcc.schedules.x86.emit import (
    Expr,
    View,
    bind,
    both,
    branch,
    cast,
    equal,
    i64,
    local,
    loop,
    minimum,
    reinterpret,
    shuffle,
    transpose16,
    when,
)
from lutcc.schedules.x86.pack import CHUNK, chunk_starts


def clamped_rows(ctx: StageContext, group: Expr) -> list[Expr]:
    """Return the 16 row numbers of a group; rows past the end repeat the last one."""
    first = bind(ctx.first_row + i64(group) * 16)
    return [bind(minimum(first + i, ctx.last_row)) for i in range(16)]


def load_chunks(
    ctx: StageContext,
    source: External,
    group: Expr,
    starts: Sequence[int],
    target: View,
    slots: Sequence[int] | None = None,
    *,
    bits: bool = False,
) -> None:
    """Transpose chunks of 16 columns of one row group into ``target`` [slot][16 rows].

    Row-major sources (column stride 1) take 16x16 transposes; column-major ones (row stride 1)
    contiguous loads; others, and fewer than 16 columns, scalar loads. ``slots`` says where each
    column of each chunk goes (default: one after the other); columns that nobody reads share one.
    With ``bits``, int32 keeps its bits; else all become float32.
    """
    rows = clamped_rows(ctx, group)
    where = ctx.blob.add("ints", "int32", [], values=list(starts))
    width = min(CHUNK, source.columns)
    places = None if slots is None else ctx.blob.add("ints", "int32", [], values=list(slots))

    def put(chunk: Expr, column: Expr | int, value: Expr) -> None:
        target.store(place(chunk, column), value, 16)

    def place(chunk: Expr, column: Expr | int) -> Expr:
        index = chunk * 16 + column
        return (index if places is None else cast("int64", places.load(index))) * 16

    def scalar() -> None:
        with loop(len(starts)) as k:
            first = bind(cast("int64", where.load(k)))
            with loop(width) as j:
                for lane, row in enumerate(rows):
                    value = source.view.load(source.index(row, first + j))
                    target.store(place(k, j) + lane, _float(source, value, 1, bits))

    def contiguous_columns() -> None:
        with loop(len(starts)) as k:
            first = bind(cast("int64", where.load(k)))
            with loop(width) as j:
                value = source.view.load(source.index(rows[0], first + j), 16)
                put(k, j, _float(source, value, 16, bits))

    def transposed() -> None:
        with loop(len(starts)) as k:
            first = bind(cast("int64", where.load(k)))
            starts_of_rows = [bind(row * source.row_stride + first) for row in rows]

            def quarter(row: int, q: int) -> Expr:
                value = source.view.load(starts_of_rows[row] + 4 * q, 4)
                return _float(source, value, 4, bits)

            for j, column in enumerate(transpose16(quarter)):
                put(k, j, column)

    full = ctx.first_row + i64(group) * 16 + 15 <= ctx.last_row
    if width < CHUNK:
        with branch(both(equal(source.row_stride, i64(1)), full)) as (then, otherwise):
            with then:
                contiguous_columns()
            with otherwise:
                scalar()
        return
    with branch(equal(source.column_stride, i64(1))) as (then, otherwise):
        with then:
            transposed()
        with (
            otherwise,
            branch(both(equal(source.row_stride, i64(1)), full)) as (inner, rest),
        ):
            with inner:
                contiguous_columns()
            with rest:
                scalar()


def _float(source: External, value: Expr, lanes: int, bits: bool) -> Expr:
    """Return loaded lanes as float32: their value, or the bits of int32."""
    if source.dtype == "float32":
        return value
    dtype = f"float32x{lanes}" if lanes > 1 else "float32"
    return reinterpret(dtype, value) if bits and source.dtype == "int32" else cast(dtype, value)


def load_singles(
    ctx: StageContext,
    source: External,
    group: Expr,
    columns: Sequence[int],
    target: View,
    slots: Sequence[int],
    *,
    bits: bool = False,
) -> None:
    """Load some columns of one row group, one by one, into ``target`` [slot][16 rows].

    ``bits`` as in :func:`load_chunks`.
    """
    rows = clamped_rows(ctx, group)
    lines = [bind(row * source.row_stride) for row in rows]
    where = ctx.blob.add("ints", "int32", [], values=list(columns))
    places = ctx.blob.add("ints", "int32", [], values=list(slots))
    with loop(len(columns)) as k:
        across = bind(cast("int64", where.load(k)) * source.column_stride)
        place = bind(cast("int64", places.load(k)) * 16)
        for lane, line in enumerate(lines):
            value = source.view.load(line + across)
            target.store(place + lane, _float(source, value, 1, bits))


def materialise(ctx: StageContext, source: External) -> Columns:
    """Bring a whole block of an external value into 16-row columns."""
    starts = chunk_starts(source.columns)
    width = max(source.columns, 1)
    target = Columns(
        ctx.scratch.take(Columns.size(ctx.block_rows, width), "float32"), width, "float32"
    )
    if source.columns >= CHUNK and len(starts) * CHUNK == width:
        with loop(ctx.groups) as group:
            load_chunks(ctx, source, group, starts, target.view.at(target.index(group, 0)))
        return target
    bounce = ctx.scratch.take(len(starts) * 16 * 16, "float32")
    with loop(ctx.groups) as group:
        load_chunks(ctx, source, group, starts, bounce)
        for k, start in enumerate(starts):
            with loop(min(CHUNK, width)) as j:
                value = bounce.load((k * 16 + j) * 16, 16)
                target.view.store(target.index(group, start + j), value, 16)
    return target


def store_partial(view: View, index: Expr, vector: Expr, count: int) -> None:
    """Store the first ``count`` of 8 or 16 lanes by at most two overlapping power-of-two stores."""
    size = 1 << (count.bit_length() - 1)
    for start in {0, count - size}:
        part = shuffle([vector], range(start, start + size))
        view.store(i64(index) + start, part, size)


@dataclass
class ColumnsSink:
    """Receives finished columns and leaves them in block scratch."""

    target: Columns

    def open(self, tile_groups: int) -> None:
        """Nothing to prepare."""

    def put(self, column: Expr, start: Expr, group: Expr, slot: int, value: Expr) -> None:
        """Store rows of column ``start + column``: 16, or as many as are together."""
        where = self.target.index(group, start + column)
        self.target.view.store(where, value, self.target.together)

    def advance(self, part: Expr, parts: int) -> None:
        """Nothing is held back."""

    def commit(self, start: Expr, first_group: Expr, groups: int) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing is held back."""


class RowMajorSink:
    """Receives finished columns, transposes them and stores rows, a tile behind.

    A tile's columns wait in one half of a small buffer while the next tile is computed into the
    other half; its rows are stored a few at a time between the parts of that computation. All at
    once, the stores would fill the core's line buffers and stall it.

    Parameters
    ----------
    ctx, target
        The stage, and the row-major value; uint8 values arrive as float32 and are narrowed.
    """

    def __init__(self, ctx: StageContext, target: External) -> None:
        self.ctx, self.target = ctx, target

    def open(self, tile_groups: int) -> None:
        """Take stack for two chunks of 16 columns by ``tile_groups`` row groups."""
        dtype = "int32" if self.target.dtype == "int32" else "float32"
        self._stride = tile_groups
        self._half = 16 * 16 * tile_groups
        self._bounce = local(2 * self._half, dtype)
        self._state = local(4, "int64")
        for slot in range(4):
            self._state.store(slot, i64(0))

    @property
    def _filling(self) -> Expr:
        """Offset of the half that is being filled."""
        return self._state.load(3)

    def put(self, column: Expr, start: Expr, group: Expr, slot: int, value: Expr) -> None:
        """Keep 16 rows of a column; ``slot`` numbers the row group within the tile."""
        where = self._filling + (i64(column) * self._stride + slot) * 16
        self._bounce.store(where, value, 16)

    def commit(self, start: Expr, first_group: Expr, groups: int) -> None:
        """Hand the filled half over to be stored, and fill the other."""
        for slot, value in enumerate((i64(groups), start, first_group)):
            self._state.store(slot, value)
        self._state.store(3, i64(self._half) - self._filling)

    def advance(self, part: Expr, parts: int) -> None:
        """Store part ``part`` of ``parts`` of the tile that waits."""
        each = -(-self._stride // parts)
        for i in range(each):
            slot = bind(i64(part) * each + i)
            with when(slot < self._state.load(0)):
                self._store(slot)

    def close(self) -> None:
        """Store the last tile."""
        with loop(self._state.load(0)) as slot:
            self._store(slot)

    def _store(self, slot: Expr) -> None:
        if self.target.stream is None:
            self._store_rows(slot, stream=False)
            return
        with branch(self.target.stream) as (large, small):
            with large:
                self._store_rows(slot, stream=True)
            with small:
                self._store_rows(slot, stream=False)

    def _store_rows(self, slot: Expr, *, stream: bool) -> None:
        valid = min(CHUNK, self.target.columns)
        start = bind(self._state.load(1))
        rows = clamped_rows(self.ctx, self._state.load(2) + slot)
        base = bind(i64(self._half) - self._filling + slot * 16)

        def quarter(column: int, q: int) -> Expr:
            return self._bounce.load(base + column * self._stride * 16 + 4 * q, 4)

        for row, vector in zip(rows, transpose16(quarter), strict=True):
            value = cast("uint8x16", vector) if self.target.dtype == "uint8" else vector
            where = i64(row) * self.target.columns + start
            if stream:
                self.target.view.store_stream(where, value)
            else:
                store_partial(self.target.view, where, value, valid)


def copy_row_out(source: View, target: External, row: Expr) -> None:
    """Copy one contiguous row of float32 or int32 to a row-major value."""
    base = i64(row) * target.columns
    whole = target.columns // 16
    tail = target.columns - whole * 16

    def vector(index: Expr) -> Expr:
        value = source.load(index, 16)
        return cast("uint8x16", value) if target.dtype == "uint8" else value

    if whole:
        with loop(whole) as k:
            target.view.store(base + k * 16, vector(k * 16), 16)
    if tail:
        store_partial(target.view, base + whole * 16, vector(i64(whole * 16)), tail)


def copy_row_in(source: External, row: Expr, target: View) -> None:
    """Copy one row of any strides into contiguous elements of ``target``'s type.

    bfloat16 becomes float32, or stays as it is in uint16.
    """

    def copy(first: Expr, lanes: int) -> None:
        value = source.view.load(source.index(row, first), lanes)
        if source.dtype == "bfloat16":
            value = widened(value, half=target.dtype != "uint16")
        elif source.dtype != target.dtype:
            value = cast(target.dtype + (f"x{lanes}" if lanes > 1 else ""), value)
        target.store(first, value, lanes)

    whole = source.columns // 16
    with branch(equal(source.column_stride, i64(1))) as (contiguous, strided):
        with contiguous:
            if whole:
                with loop(whole) as k:
                    copy(k * 16, 16)
            if source.columns % 16:
                with loop(source.columns % 16) as j:
                    copy(j + whole * 16, 1)
        with strided, loop(source.columns) as j:
            copy(j, 1)
