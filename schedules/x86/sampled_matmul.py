"""``sampled_matmul``: a product whose packing takes the sampled pairs.

Work: 2 N k M FLOPs for k taken columns, see :mod:`lutcc.schedules.x86.panels`. Both factors have to
be packed for a fast product anyway, so gathering columns of a and rows of b while packing costs
next to nothing: k M + N k numbers are moved once, against N k M multiply-adds. b is scaled on
the way (and rounded, in bfloat16), by threads together, and waits in memory that all of them share;
each thread packs its own rows of a, a block at a time.

How many pairs are taken is counted at run time: one kernel serves every k up to S.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lutcc.ir.module import Operation
from lutcc.schedules.x86 import edges
from lutcc.schedules.x86.bfloat16 import narrowed, rounded, widened
from lutcc.schedules.x86.config import ProductConfig
from lutcc.schedules.x86.context import External, Scratch
from lutcc.schedules.x86.emit import (
    LANES,
    Expr,
    View,
    bind,
    branch,
    cast,
    const,
    differs,
    equal,
    hold,
    i64,
    loop,
    minimum,
    select,
    splat,
    when,
)
from lutcc.schedules.x86.pack import round_up
from lutcc.schedules.x86.panels import (
    Block,
    Depth,
    ThreadLoop,
    Tile,
    ceiling,
    partial_sums,
    share,
)

#: Packed panels of b take about this much at most; wider products are done piece by piece.
SHARED_BYTES = 8 << 20
#: Lines of memory that are read side by side: lines a power of two apart share a set of the L1
#: cache, which holds 8 of them.
LINES = 8


@dataclass(frozen=True)
class Shared:
    """What all threads read, in the workspace.

    Attributes
    ----------
    count
        One number: how many columns are taken.
    columns, factors
        Which, and the scale of each.
    bias
        Padded to whole panels.
    panels
        Packed b.
    most
        Most columns that can be taken.
    together
        Panels of b that are packed at a time.
    """

    count: View
    columns: View
    factors: View
    bias: View
    panels: View
    most: int
    together: int


def take_shared(op: Operation, config: ProductConfig, scratch: Scratch) -> Shared:
    """Assign the shared part of the workspace."""
    depth, outputs = op.operands[1].type.sizes()
    width = config.tile_chunks * LANES
    group = int(op.attr("group_size"))  # type: ignore[arg-type]
    most = min(op.operands[2].type.size(0) * group, depth)
    panels = -(-outputs // width)
    together = max(1, min(panels, SHARED_BYTES // (4 * width * max(most, 1))))
    return Shared(
        scratch.take(1, "int32"),
        scratch.take(max(most, 1), "int32"),
        scratch.take(max(most, 1), "float32"),
        scratch.take(panels * width, "float32"),
        scratch.take(together * width * most, "float32"),
        most,
        together,
    )


@dataclass(frozen=True)
class Product:
    """A product with all that its parts need.

    Attributes
    ----------
    config, tile
        The chosen blocks.
    a, b
        The factors, of any strides.
    target
        The result.
    rows
        N.
    inner, outputs
        K and M.
    bfloat16
        Whether factors and result are.
    shared
        The shared part of the workspace.
    """

    config: ProductConfig
    tile: Tile
    a: External
    b: External
    target: External
    rows: Expr
    inner: int
    outputs: int
    bfloat16: bool
    shared: Shared


def emit(
    op: Operation,
    config: ProductConfig,
    operands: list[Any],
    target: External,
    rows: Expr,
    shared: Shared,
    thread_loop: ThreadLoop,
    private: Callable[[Expr], Scratch],
) -> None:
    """Emit the product.

    Parameters
    ----------
    op, config
        What is computed, in which blocks.
    operands
        a and b as they lie, views of the others.
    target, rows
        The result, and N.
    shared
        See :func:`take_shared`.
    thread_loop, private
        Opens a loop over threads; the scratch of one.
    """
    a, b, indices, scales, bias = operands
    inner, outputs = op.operands[1].type.sizes()
    group = int(op.attr("group_size"))  # type: ignore[arg-type]
    tile = Tile(config.tile_rows, config.tile_chunks)
    half = op.operands[0].type.dtype == "bfloat16"
    product = Product(
        config, tile, _stored(a), _stored(b), _stored(target), rows, inner, outputs, half, shared
    )
    list_taken(shared, indices, scales, op.operands[2].type.size(0), group, inner)
    pad(bias, shared.bias, outputs, round_up(outputs, tile.columns))
    live = bind(cast("int64", shared.count.load(0)))
    depth = Depth.cut(live, shared.most, config)
    panels = -(-outputs // tile.columns)
    with loop(-(-panels // shared.together)) as piece:
        first = bind(piece * shared.together)
        now = bind(minimum(i64(shared.together), i64(panels) - first))
        with thread_loop() as (thread, threads):
            begin, count = share(now, thread, threads)
            with loop(count) as p:
                _pack_columns(product, bind(begin + p), bind(first + begin + p), live)
        with thread_loop() as (thread, threads):
            part = Part.of(bind(ceiling(rows, tile.rows)), now, thread, threads)
            _multiply(product, depth, part, first, private(thread))


@dataclass(frozen=True)
class Part:
    """What a thread does: some panels of rows with all of columns, or, of few rows, the reverse.

    Attributes
    ----------
    row, rows
        First panel of rows, and how many.
    column, columns
        First packed panel of columns, and how many.
    """

    row: Expr
    rows: Expr
    column: Expr
    columns: Expr

    @classmethod
    def of(cls, rows: Expr, columns: Expr, thread: Expr, threads: Expr) -> Part:
        """Share out panels."""
        by_rows = rows >= threads
        row, row_count = share(rows, thread, threads)
        column, column_count = share(columns, thread, threads)
        return cls(
            bind(select(by_rows, row, i64(0))),
            bind(select(by_rows, row_count, rows)),
            bind(select(by_rows, i64(0), column)),
            bind(select(by_rows, columns, column_count)),
        )


def _stored(external: External) -> External:
    """Read bfloat16 as 16-bit integers: nothing computes with that type itself."""
    if external.view.dtype != "bfloat16":
        return external
    return replace(external, view=external.view.as_dtype("uint16"))


def list_taken(
    shared: Any, indices: View, scales: View, places: int, group: int, columns: int
) -> None:
    """Write which columns are taken, and what each counts."""
    shared.count.store(0, hold(const(0, "int32")))
    with loop(places) as s:
        factor = bind(scales.load(s))
        with when(differs(factor, const(0.0, "float32"))):
            pair = bind(cast("int64", indices.load(s)) * group)
            with loop(minimum(i64(group), columns - pair)) as c:
                at = bind(shared.count.load(0))
                shared.columns.store(cast("int64", at), cast("int32", pair + c))
                shared.factors.store(cast("int64", at), factor)
                shared.count.store(0, at + const(1, "int32"))


def pad(source: View, target: View, count: int, padded: int) -> None:
    """Copy ``count`` numbers and put zeros behind them."""
    with loop(count) as m:
        target.store(m, source.load(m))
    if padded > count:
        with loop(padded - count) as m:
            target.store(m + count, const(0.0, "float32"))


def _pack_columns(product: Product, slot: Expr, panel: Expr, live: Expr) -> None:
    """Pack the taken rows of one panel of b, times their scales."""
    shared, width = product.shared, product.tile.columns
    where = shared.panels.at(bind(slot * (live * width)))
    column = bind(panel * width)
    b = product.b

    def scaled(value: Expr, factor: Expr) -> Expr:
        value = bind(value * factor)
        return rounded(value) if product.bfloat16 else value

    def lines() -> None:
        """Lines of b lie end to end."""
        with loop(live) as d:
            row = bind(b.index(cast("int64", shared.columns.load(d)), 0) + column)
            factor = bind(splat(shared.factors.load(d)))
            for c in range(0, width, LANES):
                value = bind(widened(b.view.load(row + c, LANES), product.bfloat16))
                where.store(d * width + c, scaled(value, factor), LANES)

    def numbers(valid: int) -> None:
        """One number after the other, a few lines of memory at a time."""
        for part in range(0, valid, LINES):
            with loop(live) as d:
                row = bind(b.index(cast("int64", shared.columns.load(d)), column))
                for c in range(part, min(part + LINES, valid)):
                    value = widened(b.view.load(row + b.column_stride * c), product.bfloat16)
                    where.store(d * width + c, value)
        with loop(live if valid < width else 0) as d:
            for c in range(valid, width):
                where.store(d * width + c, const(0.0, "float32"))
        with loop(live) as d:
            factor = bind(splat(shared.factors.load(d)))
            for c in range(0, width, LANES):
                value = bind(where.load(d * width + c, LANES))
                where.store(d * width + c, scaled(value, factor), LANES)

    def whole() -> None:
        with branch(equal(b.column_stride, i64(1))) as (lying, strided):
            with lying:
                lines()
            with strided:
                numbers(width)

    tail = product.outputs % width
    if not tail:
        whole()
        return
    if product.outputs < width:
        numbers(tail)
        return
    with branch(equal(panel, i64(product.outputs // width))) as (last, other):
        with last:
            numbers(tail)
        with other:
            whole()


def _multiply(
    product: Product, depth: Depth, part: Part, first_panel: Expr, scratch: Scratch
) -> None:
    """Multiply a thread's panels; ``first_panel`` is the first of the packed panels of b."""
    tile, config, shared = product.tile, product.config, product.shared
    numbers = config.row_panels * tile.rows
    packed = scratch.take(numbers * min(config.depth, max(shared.most, 1)), "float32")
    partial = partial_sums(scratch, depth, numbers * shared.together * tile.columns)
    first_panel = bind(first_panel + part.column)
    with loop(ceiling(part.rows, config.row_panels)) as number:
        first = bind(part.row + number * config.row_panels)
        now = bind(minimum(i64(config.row_panels), part.row + part.rows - first))
        with loop(depth.passes) as k:
            start, terms = depth.block(k)
            with loop(now) as i:
                _pack_rows(product, packed, i, bind((first + i) * tile.rows), start, terms)
            block = Block(
                tile,
                packed,
                shared.panels.at(bind((part.column * depth.terms + start) * tile.columns)),
                bind(depth.terms * tile.columns),
                terms,
                partial,
                k,
                depth.passes,
            )

            def from_bias(i: Expr, j: Expr) -> Callable[[int, int], Expr]:
                column = bind((first_panel + j) * tile.columns)
                return lambda r, c: shared.bias.load(column + c * LANES, LANES)

            def put(i: Expr, j: Expr) -> Callable[[Callable[[int, int], Expr]], None]:
                row = bind((first + i) * tile.rows)
                return lambda result: _store(product, row, bind(first_panel + j), result)

            block.multiply(now, part.columns, from_bias, put)


def _pack_rows(
    product: Product, packed: View, slot: Expr, row: Expr, start: Expr, terms: Expr
) -> None:
    """Pack the taken columns of one panel of rows of a; rows past the end repeat the last."""
    rows, a = product.tile.rows, product.a
    where = packed.at(bind(slot * terms * rows))
    bases = [
        bind(minimum(row + r, product.rows - 1) * a.row_stride if r else row * a.row_stride)
        for r in range(rows)
    ]
    for part in range(0, rows, LINES):
        with loop(terms) as d:
            column = bind(cast("int64", product.shared.columns.load(start + d)) * a.column_stride)
            for r in range(part, min(part + LINES, rows)):
                value = a.view.load(bases[r] + column)
                where.store(d * rows + r, widened(value, product.bfloat16))


def _store(product: Product, row: Expr, panel: Expr, result: Callable[[int, int], Expr]) -> None:
    """Store a tile as far as it lies in the result."""
    tile, target = product.tile, product.target
    column = bind(panel * tile.columns)

    def line(r: int, valid: int) -> None:
        at = bind(target.index(row + r, column))
        for c in range(-(-valid // LANES)):
            value = result(r, c)
            value = narrowed(value) if product.bfloat16 else value
            lanes = min(LANES, valid - c * LANES)
            edges.store_partial(target.view, at + c * LANES, value, lanes)

    def lines(valid: int) -> None:
        with branch(row + tile.rows <= product.rows) as (whole, part):
            with whole:
                for r in range(tile.rows):
                    line(r, valid)
            with part:
                for r in range(tile.rows):
                    with when(row + r < product.rows):
                        line(r, valid)

    tail = product.outputs % tile.columns
    if not tail:
        lines(tile.columns)
    elif product.outputs < tile.columns:
        lines(tail)
    else:
        with branch(equal(panel, i64(product.outputs // tile.columns))) as (last, other):
            with last:
                lines(tail)
            with other:
                lines(tile.columns)
