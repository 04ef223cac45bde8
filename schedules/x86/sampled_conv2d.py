"""``sampled_conv2d``: a convolution over the taken channels, packed straight from the images.

Work: 2 O k KH KW FLOPs a pixel for k taken channels, see :mod:`lutcc.schedules.x86.panels`. Outputs
are the rows of the tile, pixels its columns, so that results are stored along the rows of the
image. No patches are written to memory: panels of pixels are packed from the taken channels as they
are needed, see :mod:`lutcc.schedules.x86.pixels`, and each packed number serves all O outputs.

Terms are ordered channel block, tap, channel: where a tap of 16 pixels lies is found once for all
channels of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lutcc.ir.module import Operation
from lutcc.schedules.space import Space
from lutcc.schedules.x86.config import ProductConfig
from lutcc.schedules.x86.context import Scratch
from lutcc.schedules.x86.defaults import default_product
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
    equal,
    hold,
    i64,
    loop,
    maximum,
    minimum,
    splat,
    when,
)
from lutcc.schedules.x86.isa import Isa
from lutcc.schedules.x86.panels import Block, ThreadLoop, Tile, ceiling, share
from lutcc.schedules.x86.pixels import Geometry, PixelPacker
from lutcc.schedules.x86.product_space import panel_space

#: The part of a product's record that holds its config.
PART = "product"


@dataclass(frozen=True)
class Cut:
    """How a convolution is cut: panels, and how many of them are done together.

    Attributes
    ----------
    row_panels, rows_together
        Panels of outputs in a group; in a block.
    channels
        Most channels of a block of terms.
    """

    row_panels: int
    rows_together: int
    channels: int

    @classmethod
    def of(cls, shape: Geometry, config: ProductConfig) -> Cut:
        """Cut a convolution as the config says."""
        rows = -(-shape.group_outputs // config.tile_rows)
        blocks = -(-rows // config.row_panels)
        channels = max(1, min(config.depth // shape.taps, shape.places))
        return cls(rows, -(-rows // blocks), channels)


#: Panels of pixels that are packed together.
COLUMN_PANELS = 8


@dataclass(frozen=True)
class Shared:
    """What all threads read, in the workspace.

    Attributes
    ----------
    counts
        How many channels each group takes.
    channels, factors
        Which, group by group, and the scale of each.
    bias
        Padded to whole panels of each group.
    weights
        Packed: [group][block of channels][panel][tap][channel][row].
    """

    counts: View
    channels: View
    factors: View
    bias: View
    weights: View


def default_config(op: Operation, isa: Isa) -> ProductConfig:
    """Return the hand-picked config."""
    del op
    return default_product(isa)


def space(op: Operation, isa: Isa) -> Space:
    """Return the configs worth trying."""
    return panel_space(PART, default_config(op, isa), isa, Geometry.of(op).group_outputs)


def take_shared(op: Operation, isa: Isa, config: ProductConfig, scratch: Scratch) -> Shared:
    """Assign the shared part of the workspace; it is the same on every level."""
    shape = Geometry.of(op)
    rows = Cut.of(shape, config).row_panels * config.tile_rows * shape.groups
    places = max(1, shape.places * shape.groups)
    return Shared(
        scratch.take(shape.groups, "int32"),
        scratch.take(places, "int32"),
        scratch.take(places, "float32"),
        scratch.take(rows, "float32"),
        scratch.take(rows * shape.taps * shape.places, "float32"),
    )


@dataclass(frozen=True)
class Convolution:
    """A convolution with all that its parts need."""

    shape: Geometry
    cut: Cut
    tile: Tile
    x: View
    weight: View
    target: View
    shared: Shared

    def terms(self, group: Expr) -> Terms:
        """Return how the terms of a group are cut."""
        live = bind(cast("int64", self.shared.counts.load(group)))
        passes = bind(maximum(ceiling(live, self.cut.channels), 1))
        return Terms(self, group, live, passes, bind(ceiling(live, passes)))


@dataclass(frozen=True)
class Terms:
    """The taken channels of a group: ``passes`` blocks of ``step``, the last may be less."""

    conv: Convolution
    group: Expr
    live: Expr
    passes: Expr
    step: Expr

    def block(self, number: Expr) -> tuple[Expr, Expr]:
        """Return first channel and number of channels of a pass."""
        first = bind(number * self.step)
        return first, bind(maximum(minimum(self.step, self.live - first), 0))

    def weights(self, first: Expr) -> View:
        """Return the packed weights of the block of channels that begins with ``first``."""
        conv = self.conv
        per_channel = conv.shape.taps * conv.cut.row_panels * conv.tile.rows
        return conv.shared.weights.at(bind((self.group * conv.shape.places + first) * per_channel))


def emit(
    op: Operation,
    config: ProductConfig,
    operands: list[View],
    target: View,
    images: Expr,
    shared: Shared,
    thread_loop: ThreadLoop,
    private: Callable[[Expr], Scratch],
) -> None:
    """Emit the convolution; see :func:`lutcc.schedules.x86.sampled_matmul.emit`."""
    x, weight, indices, scales, bias = operands
    shape = Geometry.of(op)
    cut = Cut.of(shape, config)
    tile = Tile(config.tile_rows, config.tile_chunks)
    conv = Convolution(shape, cut, tile, x, weight, target, shared)
    _list_taken(conv, indices, scales)
    _pad_bias(conv, bias)
    with thread_loop() as (thread, threads):
        begin, count = share(i64(cut.row_panels * shape.groups), thread, threads)
        with loop(count) as p:
            group = bind((begin + p) // i64(cut.row_panels))
            _pack_weights(conv, group, bind(begin + p - group * cut.row_panels))
    total = bind(images * shape.pixels)
    panels = bind(ceiling(total, tile.columns))
    with thread_loop() as (thread, threads):
        begin, count = share(panels, thread, threads)
        scratch = private(thread)
        packed = scratch.take(COLUMN_PANELS * tile.columns * cut.channels * shape.taps, "float32")
        partial = None
        if shape.places > cut.channels:
            numbers = COLUMN_PANELS * cut.row_panels * tile.rows * tile.columns
            partial = scratch.take(numbers, "float32")
        packer = PixelPacker(shape, x, total, tile.columns, packed, scratch)
        line = scratch.take(LANES, "float32")
        with loop(ceiling(count, COLUMN_PANELS)) as u:
            first = bind(begin + u * COLUMN_PANELS)
            now = bind(minimum(i64(COLUMN_PANELS), begin + count - first))
            with loop(shape.groups) as group:
                _multiply(conv, packer, partial, line, total, group, first, now)


def _list_taken(conv: Convolution, indices: View, scales: View) -> None:
    """Write which channels each group takes, and what each counts."""
    shared, places = conv.shared, conv.shape.places
    with loop(conv.shape.groups) as group:
        shared.counts.store(group, hold(const(0, "int32")))
        with loop(places) as s:
            factor = bind(scales.load(group * places + s))
            with when(differs(factor, const(0.0, "float32"))):
                at = bind(shared.counts.load(group))
                where = bind(group * places + cast("int64", at))
                shared.channels.store(where, indices.load(group * places + s))
                shared.factors.store(where, factor)
                shared.counts.store(group, at + const(1, "int32"))


def _pad_bias(conv: Convolution, bias: View) -> None:
    """Copy the bias, each group's to a multiple of the tile."""
    outputs, padded = conv.shape.group_outputs, conv.cut.row_panels * conv.tile.rows
    with loop(conv.shape.groups) as group, loop(padded) as m:
        value = bias.load(group * outputs + minimum(m, i64(outputs - 1)))
        conv.shared.bias.store(group * padded + m, value)


def _pack_weights(conv: Convolution, group: Expr, panel: Expr) -> None:
    """Pack one panel of weights, times their scales; rows past the end repeat the last."""
    shape, shared, rows = conv.shape, conv.shared, conv.tile.rows
    terms = conv.terms(group)
    bases = []
    for r in range(rows):
        output = minimum(panel * rows + r, i64(shape.group_outputs - 1))
        row = (group * shape.group_outputs + output) * shape.group_channels
        bases.append(bind((row - group * shape.group_channels) * shape.taps))
    with loop(terms.passes) as k:
        first, count = terms.block(k)
        where = terms.weights(first).at(bind(panel * (count * (shape.taps * rows))))
        with loop(count) as c:
            place = bind(group * shape.places + first + c)
            channel = bind(cast("int64", shared.channels.load(place)) * shape.taps)
            factor = bind(shared.factors.load(place))
            with loop(shape.taps) as tap:
                to = bind((tap * count + c) * rows)
                for r, base in enumerate(bases):
                    value = conv.weight.load(base + channel + tap)
                    where.store(to + r, value * factor)


def _multiply(
    conv: Convolution,
    packer: PixelPacker,
    partial: View | None,
    line: View,
    total: Expr,
    group: Expr,
    first_panel: Expr,
    panels: Expr,
) -> None:
    """Multiply the weights of a group with some panels of pixels."""
    cut, tile, shape = conv.cut, conv.tile, conv.shape
    terms = conv.terms(group)
    with loop(terms.passes) as k:
        first, count = terms.block(k)
        depth = bind(count * shape.taps)
        channels = conv.shared.channels.at(bind(group * shape.places + first))
        with loop(panels) as j:
            packer.pack(bind(first_panel + j), j, channels, count)
        with loop(-(-cut.row_panels // cut.rows_together)) as b:
            row_panel = bind(b * cut.rows_together)
            now = bind(minimum(i64(cut.rows_together), i64(cut.row_panels) - row_panel))
            numbers = bind(row_panel * (COLUMN_PANELS * tile.rows * tile.columns))
            block = Block(
                tile,
                terms.weights(first).at(bind(row_panel * depth * tile.rows)),
                packer.packed,
                bind(depth * tile.columns),
                depth,
                None if partial is None else partial.at(numbers),
                k,
                terms.passes,
            )

            def from_bias(i: Expr, j: Expr) -> Callable[[int, int], Expr]:
                row = bind((group * cut.row_panels + row_panel + i) * tile.rows)
                return lambda r, c: splat(conv.shared.bias.load(row + r))

            def put(i: Expr, j: Expr) -> Callable[[Callable[[int, int], Expr]], None]:
                row = bind(row_panel + i)
                pixel = bind((first_panel + j) * tile.columns)
                return lambda result: _store(conv, line, total, group, row, pixel, result)

            block.multiply(now, panels, from_bias, put)


def _store(
    conv: Convolution,
    line: View,
    total: Expr,
    group: Expr,
    row_panel: Expr,
    pixel: Expr,
    result: Callable[[int, int], Expr],
) -> None:
    """Store a tile: 16 pixels of an image at once, those of several, or the last, one by one."""
    shape, tile, target = conv.shape, conv.tile, conv.target
    output = bind(group * shape.group_outputs + row_panel * tile.rows)

    def place(number: Expr) -> Expr:
        image = bind(number // i64(shape.pixels))
        inside = number - image * shape.pixels
        return bind((image * shape.outputs + output) * shape.pixels + inside)

    def chunk(first: Expr, c: int, rows: int) -> None:
        last = first + (LANES - 1)
        one = equal(first // i64(shape.pixels), last // i64(shape.pixels))
        with branch(both(one, last < total)) as (whole, parts):
            with whole:
                at = place(first)
                for r in range(rows):
                    target.store(at + r * shape.pixels, result(r, c), LANES)
            with parts:
                for r in range(rows):
                    line.store(0, result(r, c), LANES)
                    with loop(minimum(i64(LANES), total - first)) as lane:
                        target.store(place(first + lane) + r * shape.pixels, line.load(lane))

    def lines(rows: int) -> None:
        for c in range(tile.chunks):
            first = bind(pixel + c * LANES)
            with when(first < total):
                chunk(first, c, rows)

    tail = shape.group_outputs % tile.rows
    if not tail or shape.group_outputs < tile.rows:
        lines(min(shape.group_outputs, tile.rows))
        return
    with branch(equal(row_panel, i64(shape.group_outputs // tile.rows))) as (last, other):
        with last:
            lines(tail)
        with other:
            lines(tile.rows)
