"""Images inside a kernel: a plane for each channel, pixels side by side.

A scan gives 16 pixels of a channel at a time, and a tree compares 16 or 32 pixels of a channel: as
planes, neither moves a number. Around the pixels lies the padding, which is written once a call.

A convolution with strides splits a plane into phases: rows and columns ``s`` apart lie together,
so that what neighbouring outputs read is contiguous whatever the stride. Output (y, x) has the
number ``q = y * pitch + x``, and each tap of its window lies ``q`` after the tap of output 0: the
pixels between the end of one row of outputs and the next are computed as well, and not read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lutcc.ir.module import Operation
from lutcc.ir.ops.im2col import output_size
from lutcc.schedules.x86.context import Scratch
from lutcc.schedules.x86.edges import store_partial
from lutcc.schedules.x86.emit import (
    ITEMSIZE,
    Expr,
    View,
    bind,
    cast,
    i64,
    local,
    loop,
    select,
    splat,
)
from lutcc.schedules.x86.pack import round_up

#: Numbers that may be read or written past the end of a plane.
SLACK = 128


def _pair(op: Operation, name: str) -> tuple[int, int]:
    value = op.attr(name)
    assert isinstance(value, tuple)
    return int(value[0]), int(value[1])


@dataclass(frozen=True)
class Window:
    """Images and the windows that an operation reads of them."""

    height: int
    width: int
    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @classmethod
    def of(cls, op: Operation) -> Window:
        """Return the windows of a ``lut_conv2d`` or a ``max_pool2d``."""
        names = ("kernel", "stride", "padding", "dilation")
        return cls(*op.operands[0].type.sizes(1), *(_pair(op, name) for name in names))

    @property
    def out(self) -> tuple[int, int]:
        """Height and width of the result."""
        axes = zip(
            (self.height, self.width),
            self.kernel,
            self.stride,
            self.padding,
            self.dilation,
            strict=True,
        )
        height, width = (output_size(*axis) for axis in axes)
        return height, width

    @property
    def rows(self) -> int:
        """Rows of a phase of a padded plane."""
        return -(-(self.height + 2 * self.padding[0]) // self.stride[0])

    @property
    def pitch(self) -> int:
        """Columns of a phase of a padded plane."""
        return -(-(self.width + 2 * self.padding[1]) // self.stride[1])

    @property
    def phase(self) -> int:
        """Numbers from one phase to the next."""
        return self.rows * self.pitch

    @property
    def plane(self) -> int:
        """Numbers from one channel to the next."""
        return round_up(self.stride[0] * self.stride[1] * self.phase, 32)

    @property
    def taps(self) -> list[int]:
        """How far from output 0 each tap of its window lies, within a channel."""
        (kh, kw), (dh, dw) = self.kernel, self.dilation
        return [self.place(i * dh, j * dw) for i in range(kh) for j in range(kw)]

    def place(self, row: int, column: int) -> int:
        """Return where a row and a column of a padded plane lie."""
        (sh, sw) = self.stride
        phase = (row % sh) * sw + column % sw
        return phase * self.phase + row // sh * self.pitch + column // sw

    @property
    def outputs(self) -> int:
        """Numbers from the first output to the last, with what is between the rows."""
        height, width = self.out
        return (height - 1) * self.pitch + width


@dataclass(frozen=True)
class Planes:
    """The planes of an image in scratch, as the windows of a convolution read them.

    Attributes
    ----------
    window
        What reads them.
    view
        [channel][:attr:`Window.plane`].
    ordered
        No number is NaN: -infinity, which is above nothing either, stands in its place.
    """

    window: Window
    view: View
    ordered: bool = False

    @classmethod
    def take(cls, window: Window, dtype: str, scratch: Scratch, ordered: bool = False) -> Planes:
        """Assign room for an image."""
        view = scratch.take(window.channels * window.plane + SLACK, dtype)
        return cls(window, view, ordered)

    @property
    def dtype(self) -> str:
        """Type of the numbers."""
        return self.view.dtype

    def clear(self, outside: View) -> None:
        """Write what each channel is outside the image, everywhere."""
        lanes = 64 // ITEMSIZE[self.dtype]
        with loop(self.window.channels) as c:
            value = splat(outside.load(c), self.dtype, lanes)
            with loop(self.window.plane // lanes) as k:
                self.view.store(c * self.window.plane + k * lanes, value, lanes)

    def takes(self, window: Window, pixels: int, dtype: str) -> bool:
        """Whether so many results of a window, with what is between its rows, may lie here."""
        own = self.window
        ends = own.place(*own.padding) + pixels <= own.plane
        alike = own.stride == (1, 1) and own.pitch == window.pitch and self.dtype == dtype
        return alike and ends

    def frame(self, outside: View, *, top: bool) -> None:
        """Write what each channel is around the image, with strides of 1.

        Parameters
        ----------
        outside
            By channel.
        top
            Whether above the image, too; some numbers of the image are overwritten then.
        """
        window, lanes = self.window, 64 // ITEMSIZE[self.dtype]
        begin = window.place(*window.padding)
        beside = window.pitch - window.width
        end = begin + (window.height - 1) * window.pitch + window.width
        with loop(window.channels) as c:
            value = bind(splat(outside.load(c), self.dtype, lanes))
            at = bind(c * window.plane)
            if top:
                with loop(-(-begin // lanes)) as k:
                    self.view.store(at + k * lanes, value, lanes)
            if beside:
                few = bind(splat(outside.load(c), self.dtype, beside))
                with loop(window.height - 1) as y:
                    self.view.store(at + (y * window.pitch + begin + window.width), few, beside)
            whole, rest = divmod(window.plane - end, lanes)
            with loop(whole) as k:
                self.view.store(at + (k * lanes + end), value, lanes)
            if rest:
                few = bind(splat(outside.load(c), self.dtype, rest))
                self.view.store(at + (window.plane - rest), few, rest)

    def put(self, channel: Expr, y: Expr, x: Expr, value: Expr, count: int) -> None:
        """Store the first ``count`` of 16 or 32 pixels of a row, in any integer or float type.

        Parameters
        ----------
        channel, y, x
            Of the first pixel, without padding.
        """
        (sh, sw), (top, left) = self.window.stride, self.window.padding
        kind, lanes = str(value.ty.dtype).split("x")
        if kind != self.dtype:
            value = cast(f"{self.dtype}x{lanes}", value)
        if self.ordered and self.dtype == "float32":
            least = splat(-np.inf, "float32", int(lanes))
            value = bind(select(value > least, value, least))
        row = bind(y + top)
        line = (row % sh) * sw * self.window.phase + row // i64(sh) * self.window.pitch
        target = self.view.at(bind(channel * self.window.plane + line))
        if sw == 1:
            if count == int(lanes):
                target.store(x + left, value, count)
            else:
                store_partial(target, x + left, value, count)
            return
        held = hold_lanes(value, self.dtype, int(lanes))
        with loop(count) as k:
            column = bind(x + left + k)
            place = (column % sw) * self.window.phase + column // i64(sw)
            target.store(place, held.load(k))


def hold_lanes(value: Expr, dtype: str, lanes: int) -> View:
    """Return memory that holds the lanes of a vector."""
    held = local(lanes, dtype)
    held.store(0, value, lanes)
    return held
