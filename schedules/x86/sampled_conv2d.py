"""``sampled_conv2d``: a convolution over the taken channels, packed straight from the images.

Work: 2 O k KH KW FLOPs a pixel for k taken channels, see :mod:`lutcc.schedules.x86.panels`. Outputs
are the rows of the tile, 16 pixels of an image its columns, so that results are stored along the
rows of the image. No patches are written to memory: panels of pixels are packed from the taken
channels as they are needed, zeros where the padding is. Each packed number serves all O outputs;
16 neighbours that lie end to end are moved at once, others one by one through a mask.

Terms are ordered channel block, tap, channel: where a tap of 16 pixels lies is found once for all
channels of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lutcc.ir.module import Operation
from lutcc.schedules.x86 import edges
from lutcc.schedules.x86.config import ProductConfig
from lutcc.schedules.x86.context import Scratch
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
    reinterpret,
    select,
    splat,
    when,
)
from lutcc.schedules.x86.panels import Block, ThreadLoop, Tile, ceiling, share


@dataclass(frozen=True)
class Geometry:
    """Sizes and attributes of a convolution.

    Attributes
    ----------
    channels, height, width
        Of x.
    outputs, kernel
        Of the weights.
    stride, padding, dilation, groups
        The attributes.
    places
        Channels that each group can take.
    """

    channels: int
    height: int
    width: int
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    places: int
    out_height: int
    out_width: int

    @classmethod
    def of(cls, op: Operation) -> Geometry:
        """Return the geometry of an operation."""
        channels, height, width = op.operands[0].type.sizes(1)
        outputs, _, kh, kw = op.operands[1].type.sizes()
        groups = int(op.attr("groups"))  # type: ignore[arg-type]
        places = op.operands[2].type.size(0) // groups
        out_height, out_width = op.results[0].type.sizes(2)
        pairs = (_pair(op, name) for name in ("stride", "padding", "dilation"))
        return cls(
            channels,
            height,
            width,
            outputs,
            (kh, kw),
            *pairs,
            groups,
            places,
            out_height,
            out_width,
        )

    @property
    def taps(self) -> int:
        """Weights of a channel and output."""
        return self.kernel[0] * self.kernel[1]

    @property
    def pixels(self) -> int:
        """Pixels of an image of the result."""
        return self.out_height * self.out_width

    @property
    def group_channels(self) -> int:
        """Channels of a group."""
        return self.channels // self.groups

    @property
    def group_outputs(self) -> int:
        """Outputs of a group."""
        return self.outputs // self.groups


def _pair(op: Operation, name: str) -> tuple[int, int]:
    value = op.attr(name)
    assert isinstance(value, tuple)
    return int(value[0]), int(value[1])


@dataclass(frozen=True)
class Cut:
    """How a convolution is cut: panels, and how many of them are done together.

    Attributes
    ----------
    row_panels, rows_together
        Panels of outputs in a group; in a block.
    column_panels, columns_together
        Panels of pixels in an image; in a block.
    channels
        Most channels of a block of terms.
    """

    row_panels: int
    rows_together: int
    column_panels: int
    columns_together: int
    channels: int

    @classmethod
    def of(cls, shape: Geometry, config: ProductConfig) -> Cut:
        """Cut a convolution as the config says."""
        rows = -(-shape.group_outputs // config.tile_rows)
        columns = -(-shape.pixels // (config.tile_chunks * LANES))
        channels = max(1, min(config.depth // shape.taps, shape.places))
        return cls(
            rows,
            _even(rows, config.row_panels),
            columns,
            _even(columns, COLUMN_PANELS),
            channels,
        )


#: Panels of pixels that are packed together.
COLUMN_PANELS = 16


def _even(count: int, most: int) -> int:
    """Return the size of equal blocks of at most ``most``."""
    return -(-count // -(-count // most))


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


def take_shared(op: Operation, config: ProductConfig, scratch: Scratch) -> Shared:
    """Assign the shared part of the workspace."""
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
    with thread_loop() as (thread, threads):
        pieces = -(-cut.column_panels // cut.columns_together)
        begin, count = share(bind(images * pieces), thread, threads)
        scratch = private(thread)
        packed = scratch.take(
            cut.columns_together * tile.columns * cut.channels * shape.taps, "float32"
        )
        partial = None
        if shape.places > cut.channels:
            numbers = cut.columns_together * cut.row_panels * tile.rows * tile.columns
            partial = scratch.take(numbers, "float32")
        packer = Packer(conv, packed, *(scratch.take(LANES, "int32") for _ in range(4)))
        with loop(count) as u:
            image = bind((begin + u) // i64(pieces))
            first = bind((begin + u - image * pieces) * cut.columns_together)
            now = bind(minimum(i64(cut.columns_together), i64(cut.column_panels) - first))
            with loop(shape.groups) as group:
                _multiply(conv, packer, partial, group, image, first, now)


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


@dataclass(frozen=True)
class Packer:
    """Packs panels of pixels; four lines of scratch hold where the 16 pixels of a chunk lie.

    Attributes
    ----------
    conv
        The convolution.
    packed
        Where to: [panel][tap][channel][column].
    rows, columns
        Of the first tap of each pixel, in the image.
    offsets, masks
        Of one tap of each pixel: in the channel, and all bits or none.
    """

    conv: Convolution
    packed: View
    rows: View
    columns: View
    offsets: View
    masks: View

    def pack(self, image: Expr, panel: Expr, slot: Expr, channels: View, count: Expr) -> None:
        """Pack ``count`` channels of one panel of pixels."""
        shape, width = self.conv.shape, self.conv.tile.columns
        where = self.packed.at(bind(slot * (count * (shape.taps * width))))
        base = bind(image * shape.channels)
        with loop(self.conv.tile.chunks) as chunk:
            first = bind(panel * width + chunk * LANES)
            last = bind(minimum(first + (LANES - 1), i64(shape.pixels - 1)))
            start, end = self._place(minimum(first, i64(shape.pixels - 1))), self._place(last)
            with loop(LANES) as lane:
                row, column = self._place(minimum(first + lane, last))
                self.rows.store(lane, cast("int32", row))
                self.columns.store(lane, cast("int32", column))
            whole = bind(first + LANES <= i64(shape.pixels))
            edges_ = (-shape.padding[1], (shape.out_width - 1) * shape.stride[1] - shape.padding[1])
            one_row = bind(equal(start[0], end[0]))
            left = bind(select(one_row, start[1], i64(edges_[0])))
            right = bind(select(one_row, end[1], i64(edges_[1])))
            with loop(shape.kernel[0]) as i, loop(shape.kernel[1]) as j:
                down, along = bind(i * shape.dilation[0]), bind(j * shape.dilation[1])
                inside = both(
                    both(start[0] + down >= i64(0), end[0] + down < i64(shape.height)),
                    both(left + along >= i64(0), right + along < i64(shape.width)),
                )
                begin = bind((start[0] + down) * shape.width + start[1] + along)
                stop = bind((end[0] + down) * shape.width + end[1] + along)
                lying = both(both(inside, whole), equal(stop - begin, i64(LANES - 1)))
                to = where.at(bind((i * shape.kernel[1] + j) * (count * width) + chunk * LANES))
                with branch(lying) as (line, scattered):
                    with line, loop(count) as c:
                        at = bind(self._channel(base, channels, c) + begin)
                        to.store(c * width, self.conv.x.load(at, LANES), LANES)
                    with scattered:
                        self._find(down, along)
                        with loop(count) as c:
                            self._numbers(self._channel(base, channels, c), to.at(c * width))

    def _place(self, pixel: Expr) -> tuple[Expr, Expr]:
        """Return row and column of a pixel's first tap in the image."""
        shape = self.conv.shape
        row = bind(pixel // i64(shape.out_width))
        column = bind(pixel - row * shape.out_width)
        return (
            bind(row * shape.stride[0] - shape.padding[0]),
            bind(column * shape.stride[1] - shape.padding[1]),
        )

    def _channel(self, base: Expr, channels: View, c: Expr) -> Expr:
        shape = self.conv.shape
        return bind((base + cast("int64", channels.load(c))) * (shape.height * shape.width))

    def _find(self, down: Expr, along: Expr) -> None:
        """Write where one tap of the 16 pixels lies; outside, at 0 and masked."""
        shape = self.conv.shape
        zero = splat(0, "int32")

        def within(value: Expr, size: int) -> Expr:
            low = select(value >= zero, splat(-1, "int32"), zero)
            return low & select(value < splat(size, "int32"), splat(-1, "int32"), zero)

        row = bind(self.rows.load(0, LANES) + splat(cast("int32", down)))
        column = bind(self.columns.load(0, LANES) + splat(cast("int32", along)))
        mask = bind(within(row, shape.height) & within(column, shape.width))
        self.masks.store(0, mask, LANES)
        offset = row * splat(shape.width, "int32") + column
        self.offsets.store(0, offset & mask, LANES)

    def _numbers(self, base: Expr, to: View) -> None:
        for lane in range(LANES):
            offset = cast("int64", self.offsets.load(lane))
            bits = reinterpret("int32", self.conv.x.load(base + offset)) & self.masks.load(lane)
            to.store(lane, reinterpret("float32", bits))


def _multiply(
    conv: Convolution,
    packer: Packer,
    partial: View | None,
    group: Expr,
    image: Expr,
    first_panel: Expr,
    panels: Expr,
) -> None:
    """Multiply the weights of a group with some panels of pixels of an image."""
    cut, tile, shape = conv.cut, conv.tile, conv.shape
    terms = conv.terms(group)
    with loop(terms.passes) as k:
        first, count = terms.block(k)
        depth = bind(count * shape.taps)
        channels = conv.shared.channels.at(bind(group * shape.places + first))
        with loop(panels) as j:
            packer.pack(image, bind(first_panel + j), j, channels, count)
        with loop(-(-cut.row_panels // cut.rows_together)) as b:
            row_panel = bind(b * cut.rows_together)
            now = bind(minimum(i64(cut.rows_together), i64(cut.row_panels) - row_panel))
            numbers = bind(row_panel * (cut.columns_together * tile.rows * tile.columns))
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
                row, column = bind(row_panel + i), bind(first_panel + j)
                return lambda result: _store(conv, group, image, row, column, result)

            block.multiply(now, panels, from_bias, put)


def _store(
    conv: Convolution,
    group: Expr,
    image: Expr,
    row_panel: Expr,
    panel: Expr,
    result: Callable[[int, int], Expr],
) -> None:
    """Store a tile as far as it lies in the result."""
    shape, tile = conv.shape, conv.tile
    first = image * shape.outputs + group * shape.group_outputs + row_panel * tile.rows
    base = bind(first * shape.pixels + panel * tile.columns)

    def lines(rows: int, columns: int) -> None:
        for r in range(rows):
            for c in range(-(-columns // LANES)):
                at = base + (r * shape.pixels + c * LANES)
                edges.store_partial(
                    conv.target, bind(at), result(r, c), min(LANES, columns - c * LANES)
                )

    def columns(rows: int) -> None:
        _whole_or_tail(panel, shape.pixels, tile.columns, lambda n: lines(rows, n))

    _whole_or_tail(row_panel, shape.group_outputs, tile.rows, columns)


def _whole_or_tail(panel: Expr, count: int, width: int, body: Callable[[int], None]) -> None:
    """Emit ``body`` for whole panels, and for the last one if it is not whole."""
    tail = count % width
    if not tail or count < width:
        body(min(count, width))
        return
    with branch(equal(panel, i64(count // width))) as (last, other):
        with last:
            body(tail)
        with other:
            body(width)
