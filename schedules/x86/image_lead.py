"""What leads from an image to the sums of the first look-ups of a stage of convolutions."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace

from lutcc.ir.module import Function, Operation
from lutcc.schedules.x86 import conv2d, narrow_planes, plane_conv2d
from lutcc.schedules.x86.config import DenseConfig
from lutcc.schedules.x86.context import Constant, StageContext
from lutcc.schedules.x86.data_movement import emit_im2col
from lutcc.schedules.x86.emit import (
    LANES,
    Expr,
    View,
    bind,
    branch,
    const,
    equal,
    i64,
    local,
    loop,
    minimum,
    splat,
    transpose16,
    when,
)
from lutcc.schedules.x86.images import Geometry
from lutcc.schedules.x86.lut_conv2d import Layer
from lutcc.schedules.x86.narrow_planes import NarrowPlanes
from lutcc.schedules.x86.pack import CHUNK
from lutcc.schedules.x86.plane_conv2d import PlaneConvolution
from lutcc.schedules.x86.planes import SLACK, Planes


class Padding:
    """What is outside an image in planes that few images need: written when the first one does."""

    def __init__(self, planes: Planes, outside: View) -> None:
        self._planes, self._outside = planes, outside
        self._missing = local(1, "int32")
        self._missing.store(0, const(1, "int32"))

    def write(self) -> None:
        """Emit it, unless it is there."""
        with when(equal(self._missing.load(0), const(1, "int32"))):
            self._planes.clear(self._outside)
            self._missing.store(0, const(0, "int32"))


@dataclass(frozen=True)
class Lead:
    """What leads from an image to the sums of the first look-ups.

    Attributes
    ----------
    pixels
        Puts channels last; None where they are.
    conv
        An exact convolution; None if there is none.
    image, rows
        Memory for the image with its channels last, and for the convolution's results.
    config, shared
        Of the convolution.
    planar
        The convolution, where it goes from the image to the planes.
    narrow
        Its sums in 16 bits, where trees may compare those.
    padding
        With ``narrow``: of the planes for images that do not fit them.
    """

    pixels: Operation | None
    conv: Operation | None
    image: View
    rows: View
    config: DenseConfig | None
    shared: conv2d.Shared | None
    planar: PlaneConvolution | None = None
    narrow: NarrowPlanes | None = None
    padding: Padding | None = None

    @classmethod
    def take(cls, ctx: StageContext, function: Function, trees: Operation) -> Lead:
        """Assign room for what comes before the first planes."""
        by_opcode = {op.opcode: op for op in function.body}
        pixels, conv = by_opcode.get("im2col"), by_opcode.get("conv2d")
        config, shared, numbers, results = None, None, 0, 0
        if conv is not None and plane_conv2d.applies(conv):
            planar = PlaneConvolution.take(ctx, conv, pixels is not None)
            none, narrow = ctx.scratch.take(0, "float32"), None
            if narrow_planes.applies(ctx, conv, trees):
                narrow = NarrowPlanes.take(ctx, planar, trees)
            return cls(pixels, conv, none, none, None, None, planar, narrow)
        if conv is not None:
            numbers = math.prod(conv.operands[0].type.sizes(1)) if pixels is not None else 0
            results = Geometry.of(conv).pixels * Geometry.of(conv).outputs
            config = conv2d.default_config(conv, ctx.isa)
            shared = conv2d.take_shared(conv, ctx.isa, config, ctx.scratch)
        image = ctx.scratch.take(numbers + SLACK, "float32")
        return cls(
            pixels, conv, image, ctx.scratch.take(results + SLACK, "float32"), config, shared
        )

    def emit(self, ctx: StageContext, image: View, layer: Layer) -> None:
        """Emit all from an image to the sums of the first layer."""
        if self.narrow is None:
            self._fill(ctx, image, layer.source)
            layer.emit(ctx)
            return
        assert self.planar is not None
        assert self.padding is not None
        unit, narrow = self.planar.read(image), self.narrow
        with branch(narrow.find(unit)) as (fits, wide):
            with fits:
                narrow.emit()
                replace(layer, source=narrow.planes, thresholds=narrow.thresholds).emit(ctx)
            with wide:
                self.padding.write()
                self.planar.emit(unit, layer.source)
                layer.emit(ctx)

    def _fill(self, ctx: StageContext, image: View, planes: Planes) -> None:
        """Turn an image into planes."""
        if self.planar is not None:
            self.planar.emit(self.planar.read(image), planes)
            return
        if self.conv is None:
            (_read if self.pixels is None else _read_planes)(planes, image)
            return
        if self.pixels is not None:
            emit_im2col(self.pixels, image, self.image, i64(0))
            image = self.image
        constants = [Constant(ctx.blob, ctx.ref(v)) for v in self.conv.operands[1:]]
        conv2d.emit(
            self.conv,
            self.config,
            [image, *constants],
            self.rows,
            i64(1),
            self.shared,
            lambda: nullcontext((i64(0), i64(1))),
            lambda _: ctx.scratch,
        )
        _read(planes, self.rows)


def _read_planes(planes: Planes, image: View) -> None:
    """Copy an image whose channels come first."""
    window = planes.window
    width = window.width
    with loop(window.channels) as c, loop(window.height) as y:
        line = image.at(bind((c * window.height + y) * width))
        if width >= LANES:
            with loop(-(-width // LANES)) as block:
                x = bind(minimum(block * LANES, i64(width - LANES)))
                planes.put(c, y, x, line.load(x, LANES), LANES)
        else:
            with loop(width) as x:
                planes.put(c, y, x, splat(line.load(x), planes.dtype, LANES), 1)


def _read(planes: Planes, image: View) -> None:
    """Turn an image, channels last, into planes."""
    window = planes.window
    channels, width = window.channels, window.width
    if channels < CHUNK:
        with loop(window.height) as y, loop(channels) as c, loop(-(-width // LANES)) as block:
            lanes = local(LANES, planes.dtype)
            x = bind(minimum(block * LANES, i64(max(width - LANES, 0))))
            with loop(min(LANES, width)) as k:
                lanes.store(k, image.load(((y * width) + x + k) * channels + c))
            planes.put(c, y, x, lanes.load(0, LANES), min(LANES, width))
        return
    with loop(window.height) as y, loop(-(-channels // CHUNK)) as chunk:
        first = bind(minimum(chunk * CHUNK, i64(channels - CHUNK)))
        with loop(-(-width // LANES)) as block:
            x = bind(minimum(block * LANES, i64(max(width - LANES, 0))))

            def quarter(pixel: int, q: int) -> Expr:
                column = x + min(pixel, width - 1)
                return image.load((y * width + column) * channels + first + 4 * q, 4)

            for j, value in enumerate(transpose16(quarter)):
                planes.put(first + j, y, x, value, min(LANES, width))
