"""Packs pixels of images for a product over panels: the patches of a convolution, never written.

The pixels of all images are one sequence, row after row of the result, so that only the last panel
is not whole. For a chunk of 16 pixels and a tap of the kernel there are three ways, each a loop
over channels:

* the 16 numbers lie end to end: one load;
* else, at a stride of 1 or 2, each row of the result that the chunk touches is a *run* in an image:
  one masked load (two at stride 2) for each run, which gives 0 outside the image;
* else one number after the other, through a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lutcc.ir.module import Operation
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
    equal,
    i64,
    loop,
    minimum,
    reinterpret,
    select,
    shuffle,
    splat,
)

#: More runs than this in a chunk are not worth a load each.
MOST_RUNS = 4


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
    def image_numbers(self) -> int:
        """Numbers of an image of x."""
        return self.channels * self.height * self.width

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
class Chunk:
    """16 pixels: where the first and the last begin, and whether they are one piece.

    Attributes
    ----------
    row
        Row of the first pixel, counted through all images.
    image
        Image of the first pixel.
    top, left
        First tap of the first pixel, in its image.
    bottom, right
        The same of the last pixel.
    lowest, highest
        Least and greatest first column of all pixels.
    whole
        Whether all are pixels of one image.
    """

    row: Expr
    image: Expr
    top: Expr
    left: Expr
    bottom: Expr
    right: Expr
    lowest: Expr
    highest: Expr
    whole: Expr


class PixelPacker:
    """Packs panels of pixels: [panel][tap][channel][column].

    Parameters
    ----------
    shape, x
        The convolution and its images.
    total
        Pixels of all results.
    width
        Columns of a panel.
    packed
        Where to.
    scratch
        Takes room for what is known of 16 pixels.
    """

    def __init__(
        self, shape: Geometry, x: View, total: Expr, width: int, packed: View, scratch: Scratch
    ) -> None:
        self.shape, self.x, self.total, self.width, self.packed = shape, x, total, width, packed
        self.runs = scratch.take(LANES, "int32")
        self.rows = scratch.take(LANES, "int32")
        self.columns = scratch.take(LANES, "int32")
        self.images = scratch.take(LANES, "int64")
        self.offsets = scratch.take(LANES, "int32")
        self.masks = scratch.take(LANES, "int32")
        most = (LANES - 1 + shape.out_width - 1) // shape.out_width + 1
        self.by_runs = most if most <= MOST_RUNS and shape.stride[1] <= 2 else 0

    def pack(self, panel: Expr, slot: Expr, channels: View, count: Expr) -> None:
        """Pack ``count`` channels of one panel."""
        where = self.packed.at(bind(slot * (count * (self.shape.taps * self.width))))
        with loop(self.width // LANES) as k:
            chunk = self._chunk(bind(panel * self.width + k * LANES))
            with loop(self.shape.kernel[0]) as i, loop(self.shape.kernel[1]) as j:
                tap = i * self.shape.kernel[1] + j
                to = where.at(bind(tap * (count * self.width) + k * LANES))
                down = bind(i * self.shape.dilation[0])
                along = bind(j * self.shape.dilation[1])
                self._tap(chunk, down, along, to, channels, count)

    def _chunk(self, first: Expr) -> Chunk:
        """Find out where 16 pixels lie, and write it down lane by lane."""
        shape = self.shape
        end = bind(self.total - 1)
        begin, last = bind(minimum(first, end)), bind(minimum(first + (LANES - 1), end))
        row, last_row = (bind(p // i64(shape.out_width)) for p in (begin, last))
        image, last_image = (bind(r // i64(shape.out_height)) for r in (row, last_row))
        with loop(LANES) as lane:
            pixel = bind(minimum(first + lane, end))
            own = bind(pixel // i64(shape.out_width))
            own_image = bind(own // i64(shape.out_height))
            here = first + lane < self.total
            self.runs.store(lane, cast("int32", select(here, own - row, i64(-1))))
            self.rows.store(lane, cast("int32", self._top(own, own_image)))
            self.columns.store(lane, cast("int32", self._left(pixel, own)))
            self.images.store(lane, (own_image - image) * shape.image_numbers)
        left, right = bind(self._left(begin, row)), bind(self._left(last, last_row))
        one = bind(equal(row, last_row))
        padding, step = shape.padding[1], shape.stride[1]
        return Chunk(
            row,
            image,
            bind(self._top(row, image)),
            left,
            bind(self._top(last_row, last_image)),
            right,
            bind(select(one, left, i64(-padding))),
            bind(select(one, right, i64((shape.out_width - 1) * step - padding))),
            bind(both(equal(image, last_image), first + LANES <= self.total)),
        )

    def _top(self, row: Expr, image: Expr) -> Expr:
        shape = self.shape
        return (row - image * shape.out_height) * shape.stride[0] - shape.padding[0]

    def _left(self, pixel: Expr, row: Expr) -> Expr:
        shape = self.shape
        return (pixel - row * shape.out_width) * shape.stride[1] - shape.padding[1]

    def _tap(
        self, chunk: Chunk, down: Expr, along: Expr, to: View, channels: View, count: Expr
    ) -> None:
        shape = self.shape
        base = bind(chunk.image * shape.image_numbers)
        begin = bind((chunk.top + down) * shape.width + chunk.left + along)
        end = (chunk.bottom + down) * shape.width + chunk.right + along
        rows = both(chunk.top + down >= i64(0), chunk.bottom + down < i64(shape.height))
        columns = both(chunk.lowest + along >= i64(0), chunk.highest + along < i64(shape.width))
        lying = both(both(chunk.whole, equal(end - begin, i64(LANES - 1))), both(rows, columns))

        def every(load: Callable[[Expr], Expr]) -> None:
            with loop(count) as c:
                channel = bind(cast("int64", channels.load(c)) * (shape.height * shape.width))
                to.store(c * self.width, load(channel), LANES)

        with branch(lying) as (line, scattered):
            with line:
                every(lambda channel: self.x.load(bind(base + channel + begin), LANES))
            with scattered:
                if self.by_runs:
                    every(self._runs(chunk, down, along))
                else:
                    self._numbers(base, down, along, to, channels, count)

    def _runs(self, chunk: Chunk, down: Expr, along: Expr) -> Callable[[Expr], Expr]:
        """Return a function that loads one channel of one tap, run by run."""
        shape, none = self.shape, splat(0, "int32")
        column = bind(self.columns.load(0, LANES) + splat(cast("int32", along)))
        inside = bind(_within(column, shape.width))
        step, starts, masks = shape.stride[1], [], []
        begin = bind(chunk.left + along)
        for r in range(self.by_runs):
            row = bind(chunk.row + r)
            image = bind(row // i64(shape.out_height))
            top = bind(self._top(row, image) + down)
            there = bind(both(top >= i64(0), top < i64(shape.height)))
            skipped = r * shape.out_width * step
            starts.append(bind(image * shape.image_numbers + top * shape.width + begin - skipped))
            mask = select(equal(self.runs.load(0, LANES), splat(r, "int32")), inside, none)
            masks.append(bind(mask & splat(select(there, const(-1, "int32"), const(0, "int32")))))

        def spread(mask: Expr, first: int) -> Expr:
            """Give 8 lanes to every second of 16."""
            lanes = [first + k // 2 if k % 2 == 0 else LANES for k in range(LANES)]
            return bind(shuffle([mask, none], lanes))

        if step == 2:
            halves = [(spread(m, 0), spread(m, LANES // 2)) for m in masks]

        def load(channel: Expr) -> Expr:
            found = []
            for part in range(step):
                total = None
                for start, mask in zip(starts, halves if step == 2 else masks, strict=True):
                    here = mask[part] if step == 2 else mask
                    value = self.x.load_masked(channel + start + part * LANES, here)
                    bits = reinterpret("int32x16", value)
                    total = bits if total is None else total | bits
                found.append(bind(total))
            if step == 2:
                found = [shuffle(found, range(0, 2 * LANES, 2))]
            return reinterpret("float32x16", found[0])

        return load

    def _numbers(
        self, base: Expr, down: Expr, along: Expr, to: View, channels: View, count: Expr
    ) -> None:
        """Copy one number after the other; outside the image, what is at its start, masked."""
        shape = self.shape
        row = bind(self.rows.load(0, LANES) + splat(cast("int32", down)))
        column = bind(self.columns.load(0, LANES) + splat(cast("int32", along)))
        mask = bind(_within(row, shape.height) & _within(column, shape.width))
        self.masks.store(0, mask, LANES)
        self.offsets.store(0, (row * splat(shape.width, "int32") + column) & mask, LANES)
        with loop(count) as c:
            channel = bind(base + cast("int64", channels.load(c)) * (shape.height * shape.width))
            for lane in range(LANES):
                at = channel + self.images.load(lane) + cast("int64", self.offsets.load(lane))
                bits = reinterpret("int32", self.x.load(at)) & self.masks.load(lane)
                to.store(c * self.width + lane, reinterpret("float32", bits))


def _within(value: Expr, size: int) -> Expr:
    """Return -1 in the lanes that are in ``range(size)``, else 0."""
    none, all_ = splat(0, "int32"), splat(-1, "int32")
    low = select(value >= none, all_, none)
    return low & select(value < splat(size, "int32"), all_, none)
