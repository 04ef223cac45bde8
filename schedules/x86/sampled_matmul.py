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
from lutcc.schedules.space import Space
from lutcc.schedules.x86 import edges
from lutcc.schedules.x86.bfloat16 import narrowed
from lutcc.schedules.x86.config import ProductConfig
from lutcc.schedules.x86.context import External, Scratch
from lutcc.schedules.x86.defaults import default_product
from lutcc.schedules.x86.emit import (
    LANES,
    Expr,
    View,
    bind,
    branch,
    cast,
    const,
    equal,
    i64,
    loop,
    minimum,
    select,
    when,
)
from lutcc.schedules.x86.isa import Isa
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
from lutcc.schedules.x86.product_space import panel_space
from lutcc.schedules.x86.sampled_packing import Packing, list_taken

#: Packed panels of b take about this much at most; wider products are done piece by piece.
SHARED_BYTES = 16 << 20
#: The part of a product's record that holds its config.
PART = "product"


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
        Most steps of the product: columns that can be taken, or pairs of them.
    pairs
        Whether a step is a pair of bfloat16 columns.
    together
        Panels of b that are packed at a time.
    """

    count: View
    columns: View
    factors: View
    bias: View
    panels: View
    most: int
    pairs: bool
    together: int


def default_config(op: Operation, isa: Isa) -> ProductConfig:
    """Return the hand-picked config."""
    del op
    return default_product(isa)


def space(op: Operation, isa: Isa) -> Space:
    """Return the configs worth trying."""
    return panel_space(PART, default_config(op, isa), isa, op.operands[0].type.size(0))


def take_shared(op: Operation, isa: Isa, config: ProductConfig, scratch: Scratch) -> Shared:
    """Assign the shared part of the workspace."""
    depth, outputs = op.operands[1].type.sizes()
    width = config.tile_chunks * LANES
    group = int(op.attr("group_size"))  # type: ignore[arg-type]
    most = min(op.operands[2].type.size(0) * group, depth)
    panels = -(-outputs // width)
    pairs = isa.has_bf16 and op.operands[0].type.dtype == "bfloat16"
    steps = -(-most // 2) if pairs else most
    most_together = max(1, SHARED_BYTES // (4 * width * max(steps, 1)))
    pieces = -(-panels // most_together)
    together = -(-panels // pieces)
    return Shared(
        scratch.take(1, "int32"),
        scratch.take(most + 1, "int32"),
        scratch.take(most + 1, "float32"),
        scratch.take(panels * width, "float32"),
        scratch.take(together * width * steps, "uint32" if pairs else "float32"),
        steps,
        pairs,
        together,
    )


@dataclass(frozen=True)
class Product:
    """A product with all that its parts need.

    Attributes
    ----------
    config, packing
        The chosen blocks, and how factors are packed.
    target
        The result.
    shared
        The shared part of the workspace.
    """

    config: ProductConfig
    packing: Packing
    target: External
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
    tile = Tile(config.tile_rows, config.tile_chunks, shared.pairs)
    list_taken(shared, indices, scales, op.operands[2].type.size(0), group, inner)
    pad(bias, shared.bias, outputs, round_up(outputs, tile.columns))
    packing = Packing(
        tile,
        _stored(a),
        _stored(b),
        rows,
        outputs,
        op.operands[0].type.dtype == "bfloat16",
        shared.columns,
        shared.factors,
        bind(cast("int64", shared.count.load(0))),
    )
    product = Product(config, packing, _stored(target), shared)
    depth = Depth.cut(packing.steps, shared.most, config)
    panels = -(-outputs // tile.columns)
    with loop(-(-panels // shared.together)) as piece:
        first = bind(piece * shared.together)
        now = bind(minimum(i64(shared.together), i64(panels) - first))
        with thread_loop() as (thread, threads):
            begin, count = share(now, thread, threads)
            with loop(count) as p:
                slot = bind(begin + p)
                where = shared.panels.at(bind(slot * (depth.terms * tile.columns)))
                packing.pack_columns(where, bind(first + slot))
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


def pad(source: View, target: View, count: int, padded: int) -> None:
    """Copy ``count`` numbers and put zeros behind them."""
    with loop(count) as m:
        target.store(m, source.load(m))
    if padded > count:
        with loop(padded - count) as m:
            target.store(m + count, const(0.0, "float32"))


def _multiply(
    product: Product, depth: Depth, part: Part, first_panel: Expr, scratch: Scratch
) -> None:
    """Multiply a thread's panels; ``first_panel`` is the first of the packed panels of b."""
    packing, config, shared = product.packing, product.config, product.shared
    tile = packing.tile
    numbers = config.row_panels * tile.rows
    packed = scratch.take(numbers * min(config.depth, shared.most), shared.panels.dtype)
    partial = partial_sums(scratch, depth, numbers * shared.together * tile.columns)
    first_panel = bind(first_panel + part.column)
    with loop(ceiling(part.rows, config.row_panels)) as number:
        first = bind(part.row + number * config.row_panels)
        now = bind(minimum(i64(config.row_panels), part.row + part.rows - first))
        with loop(depth.passes) as k:
            start, terms = depth.block(k)
            with loop(now) as i:
                where = packed.at(bind(i * terms * tile.rows))
                packing.pack_rows(where, bind((first + i) * tile.rows), start, terms)
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


def _store(product: Product, row: Expr, panel: Expr, result: Callable[[int, int], Expr]) -> None:
    """Store a tile as far as it lies in the result."""
    packing, target = product.packing, product.target
    tile, outputs = packing.tile, packing.outputs
    column = bind(panel * tile.columns)

    def line(r: int, valid: int) -> None:
        at = bind(target.index(row + r, column))
        for c in range(-(-valid // LANES)):
            value = result(r, c)
            value = narrowed(value) if packing.bfloat16 else value
            lanes = min(LANES, valid - c * LANES)
            edges.store_partial(target.view, at + c * LANES, value, lanes)

    def lines(valid: int) -> None:
        with branch(row + tile.rows <= packing.rows) as (whole, part):
            with whole:
                for r in range(tile.rows):
                    line(r, valid)
            with part:
                for r in range(tile.rows):
                    with when(row + r < packing.rows):
                        line(r, valid)

    tail = outputs % tile.columns
    if not tail:
        lines(tile.columns)
    elif outputs < tile.columns:
        lines(tail)
    else:
        with branch(equal(panel, i64(outputs // tile.columns))) as (last, other):
            with last:
                lines(tail)
            with other:
                lines(tile.columns)
