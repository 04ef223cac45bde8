"""Images for convolutions: channels last, with their padding, in the type that is multiplied.

Some images are converted at a time, once for all taps and outputs: a window is then a matter of
addresses. float32 without padding is read where it lies.
"""

from __future__ import annotations

from dataclasses import dataclass

from lutcc.ir.module import Operation
from lutcc.ir.ops.im2col import output_size
from lutcc.schedules.x86 import edges
from lutcc.schedules.x86.bfloat16 import halves, rounded
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
    hold,
    i64,
    local,
    loop,
    select,
    splat,
)
from lutcc.schedules.x86.gather_int8 import Quantiser, largest_bits, quantiser_of
from lutcc.schedules.x86.granules import Granules
from lutcc.schedules.x86.panels import ThreadLoop, share

#: What is added to integers that must be unsigned.
SHIFT = 128
#: Numbers that may be read, or written, after the last one.
SLACK = 64


@dataclass(frozen=True)
class Geometry:
    """Sizes and attributes of a convolution of images whose channels come last.

    Attributes
    ----------
    height, width, channels
        Of x.
    outputs, kernel
        Of the weights.
    stride, padding, dilation, groups
        The attributes.
    out_height, out_width
        Of the result.
    """

    height: int
    width: int
    channels: int
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    out_height: int
    out_width: int

    @classmethod
    def of(cls, op: Operation) -> Geometry:
        """Return the geometry of a ``conv2d``."""
        height, width, channels = op.operands[0].type.sizes(1)
        outputs, _, kh, kw = op.operands[1].type.sizes()
        stride, padding, dilation = (_pair(op, n) for n in ("stride", "padding", "dilation"))
        sizes = (
            output_size(*axis)
            for axis in zip((height, width), (kh, kw), stride, padding, dilation, strict=True)
        )
        groups = int(op.attr("groups"))  # type: ignore[arg-type]
        return cls(
            height, width, channels, outputs, (kh, kw), stride, padding, dilation, groups, *sizes
        )

    @property
    def group_channels(self) -> int:
        """Channels of a group."""
        return self.channels // self.groups

    @property
    def group_outputs(self) -> int:
        """Outputs of a group."""
        return self.outputs // self.groups

    @property
    def taps(self) -> int:
        """Weights of an output and channel."""
        return self.kernel[0] * self.kernel[1]

    @property
    def terms(self) -> int:
        """Weights of an output."""
        return self.taps * self.group_channels

    @property
    def pixels(self) -> int:
        """Pixels of a result."""
        return self.out_height * self.out_width

    @property
    def image_numbers(self) -> int:
        """Numbers of an image of x."""
        return self.height * self.width * self.channels

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of an image with its padding."""
        return self.height + 2 * self.padding[0], self.width + 2 * self.padding[1]

    @property
    def line(self) -> int:
        """Numbers of a row of a padded image."""
        return self.padded[1] * self.channels

    @property
    def numbers(self) -> int:
        """Numbers of a padded image."""
        return self.padded[0] * self.line

    def offset(self, image: Expr, y: Expr, x: Expr) -> Expr:
        """Return where the window of a pixel begins."""
        column = x * (self.stride[1] * self.channels)
        return image * self.numbers + (y * (self.stride[0] * self.line) + column)

    def tap(self, i: int, j: int) -> int:
        """Return how far after the beginning of its window a tap lies."""
        return i * self.dilation[0] * self.line + j * self.dilation[1] * self.channels


def _pair(op: Operation, name: str) -> tuple[int, int]:
    value = op.attr(name)
    assert isinstance(value, tuple)
    return int(value[0]), int(value[1])


@dataclass(frozen=True)
class Images:
    """Some images with their padding.

    Attributes
    ----------
    shape, granules
        The convolution; its arithmetic.
    together
        How many images.
    values
        [image][row][column][channel]; None where x is read itself.
    peaks
        int8: the largest magnitude of each row of x, as bits.
    units
        int8: what 1 stands for in each image.
    """

    shape: Geometry
    granules: Granules
    together: int
    values: View | None
    peaks: View
    units: View

    @classmethod
    def take(
        cls, shape: Geometry, granules: Granules, together: int, copied: bool, scratch: Scratch
    ) -> Images:
        """Assign room for ``together`` images."""
        integers = granules.integers
        values = None
        if copied:
            values = scratch.take(together * shape.numbers + SLACK, granules.values)
        peaks = scratch.take(together * shape.height if integers else 0, "int32")
        units = scratch.take(together if integers else 0, "float32")
        return cls(shape, granules, together, values, peaks, units)

    def fill(self, x: View, first: Expr, count: Expr, thread_loop: ThreadLoop) -> None:
        """Convert ``count`` images of x from image ``first`` on."""
        if self.values is None:
            return
        shape = self.shape
        row_numbers = shape.width * shape.channels
        start = bind(first * (shape.height * row_numbers))
        if self.granules.integers:
            with thread_loop() as (thread, threads):
                begin, own = share(bind(count * shape.height), thread, threads)
                with loop(own) as r:
                    row = bind(begin + r)
                    line = x.at(bind(start + row * row_numbers))
                    self.peaks.store(row, peak_of(line, row_numbers))
        with thread_loop() as (thread, threads), loop(count) as image:
            scale = None
            if self.granules.integers:
                scale = quantiser_of(self._most(image))
                self.units.store(image, scale.unit)
            begin, own = share(i64(shape.padded[0]), thread, threads)
            with loop(own) as r:
                row = bind(begin + r)
                self._row(x, start, image, row, scale)

    def _most(self, image: Expr) -> Expr:
        """Return the largest of the peaks of an image's rows."""
        most = local(1, "int32")
        most.store(0, hold(const(0, "int32")))
        with loop(self.shape.height) as row:
            found = bind(self.peaks.load(image * self.shape.height + row))
            most.store(0, select(found > most.load(0), found, most.load(0)))
        return bind(most.load(0))

    def _row(self, x: View, start: Expr, image: Expr, row: Expr, scale: Quantiser | None) -> None:
        """Write a row of a padded image."""
        shape, values = self.shape, self.values
        assert values is not None
        numbers = shape.width * shape.channels
        target = values.at(bind(image * shape.numbers + row * shape.line))
        source = bind(row - shape.padding[0])

        def copy() -> None:
            line = x.at(bind(start + (image * shape.height + source) * numbers))
            margin = shape.padding[1] * shape.channels
            self._clear(target, margin)
            inner = target.at(margin)
            if numbers >= LANES:
                with loop(numbers // LANES) as k:
                    at = k * LANES
                    inner.store(at, self._converted(line.load(at, LANES), scale), LANES)
            tail = numbers % LANES
            if tail:
                value = self._converted(_tail(line, numbers).load(0, LANES), scale)
                edges.store_partial(inner, i64(numbers - tail), value, tail)
            self._clear(inner.at(numbers), margin)

        if not shape.padding[0]:
            copy()
            return
        inside = both(source >= i64(0), source < i64(shape.height))
        with branch(inside) as (within, outside):
            with within:
                copy()
            with outside:
                self._clear(target, shape.line)

    def _converted(self, value: Expr, scale: Quantiser | None) -> Expr:
        """Return 16 float32 values in the type that is multiplied."""
        if scale is not None:
            integers = scale.integers(bind(value))
            if self.granules.kind == "shifted":
                return bind(cast("uint8x16", integers + splat(SHIFT, "int32")))
            return bind(cast(f"{self.granules.values}x16", integers))
        if self.granules.form == "float32":
            return bind(value)
        convert = rounded if self.granules.kind == "floats" else halves
        return bind(convert(bind(value)))

    def _clear(self, target: View, count: int) -> None:
        """Write ``count`` zeros."""
        zeros = zero_of(self.granules)
        if count >= LANES:
            with loop(count // LANES) as k:
                target.store(k * LANES, zeros, LANES)
        if count % LANES:
            edges.store_partial(target, i64(count - count % LANES), bind(zeros), count % LANES)


def zero_of(granules: Granules) -> Expr:
    """Return 16 zeros as they are multiplied."""
    if granules.kind == "shifted":
        return splat(SHIFT, "uint8")
    return splat(0.0 if granules.values == "float32" else 0, granules.values)


def _tail(line: View, numbers: int) -> View:
    """Return what is left of a row after whole vectors, and zeros: 16 numbers."""
    count = numbers % LANES
    found = local(LANES, "float32")
    found.store(0, splat(0.0), LANES)
    with loop(count) as k:
        found.store(k, line.load(k + (numbers - count)))
    return found


def peak_of(line: View, numbers: int) -> Expr:
    """Return the largest magnitude of a row, as bits."""
    found = [largest_bits(line, numbers // LANES * LANES)] if numbers >= LANES else []
    if numbers % LANES:
        found.append(largest_bits(_tail(line, numbers), LANES))
    first, last = bind(found[0]), bind(found[-1])
    return select(first > last, first, last)
