"""A stage of convolutions by look-ups: one image after the other goes through all of them.

Images are turned into planes as they come in (:mod:`lutcc.schedules.x86.planes`); between layers
sums are copied into the planes of the next one, where poolings take the largest of them; results
are turned back into rows, and finished on the way. All that an image needs stays in L2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from lutcc.ir.module import Function, Operation
from lutcc.schedules.x86 import conv2d, lut_conv2d, plane_conv2d, plane_windows
from lutcc.schedules.x86.config import DenseConfig
from lutcc.schedules.x86.context import Constant, StageContext
from lutcc.schedules.x86.data_movement import emit_im2col
from lutcc.schedules.x86.edges import store_partial
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
    local,
    loop,
    minimum,
    select,
    shuffle,
    splat,
    transpose16,
    when,
)
from lutcc.schedules.x86.images import Geometry
from lutcc.schedules.x86.lut_conv2d import Layer
from lutcc.schedules.x86.pack import CHUNK, chunk_starts
from lutcc.schedules.x86.plane_conv2d import PlaneConvolution
from lutcc.schedules.x86.plane_windows import Windows
from lutcc.schedules.x86.planes import SLACK, Planes, Window
from lutcc.schedules.x86.row_passes import ELEMENTWISE


@dataclass(frozen=True)
class _Part:
    """A convolution, the pooling of its sums, and what finishes it."""

    conv: Operation
    pool: Operation | None = None
    finish: tuple[Operation, ...] = ()


def _parts(function: Function) -> list[_Part]:
    parts: list[_Part] = []
    for op in function.body:
        if op.opcode == "lut_conv2d":
            parts.append(_Part(op))
        elif op.opcode == "max_pool2d":
            parts[-1] = replace(parts[-1], pool=op)
        elif op.opcode in ELEMENTWISE:
            parts[-1] = replace(parts[-1], finish=(*parts[-1].finish, op))
    return parts


def emit(
    ctx: StageContext, function: Function, source: View, target: View, begin: Expr, end: Expr
) -> None:
    """Emit images ``begin .. end - 1`` of a stage, row-major, channels last, in and out."""
    parts = _parts(function)
    lead = _Lead.take(ctx, function, parts[0].conv)
    layers: list[Layer] = []
    for index, part in enumerate(parts):
        window = Window.of(part.conv)
        dtype = part.conv.operands[0].type.dtype
        if index and layers[-1].sums.dtype == "int16":
            dtype = "int16"
        ordered = lut_conv2d.by_signs(ctx, part.conv, dtype, first=index == 0)
        planes = Planes.take(window, dtype, ctx.scratch, ordered)
        after = parts[index + 1].conv if index + 1 < len(parts) else None
        dot = lut_conv2d.lut_accumulate.uses_dot(ctx.isa, lut_conv2d.scan_of(part.conv))
        small = dot and lut_conv2d.bound(ctx, part.conv) < 1 << 15
        small = small and (after is None or lut_conv2d.narrow(ctx, after))
        pairs = dtype == "int16" or (index == 0 and lead.windows is not None)
        sums = "int16" if small else "int32"
        layers.append(Layer.take(ctx, part.conv, planes, sums, pairs=pairs))
        refs = [ctx.ref(part.conv.operands[4])]
        outside = ctx.blob.add("image_outside", dtype, refs, kind=dtype)
        if index == 0 and lead.windows is not None:
            lead = replace(lead, padding=_Padding(planes, outside))
        else:
            planes.clear(outside)
    last, pooled = layers[-1], None
    if parts[-1].pool is not None:
        height, width = Window.of(parts[-1].pool).out
        channels = parts[-1].conv.results[0].type.size(1)
        whole = Window(height, width, channels, (1, 1), (1, 1), (0, 0), (1, 1))
        pooled = Planes.take(whole, last.sums.dtype, ctx.scratch)
    size = math.prod(function.params[0].type.sizes(1))
    with loop(end - begin) as number:
        image = bind(begin + number)
        lead.emit(ctx, source.at(bind(image * size)), layers[0])
        for index, layer in enumerate(layers):
            if index:
                layer.emit(ctx)
            if index + 1 < len(layers):
                _pass_on(layer, parts[index].pool, layers[index + 1].source)
        result = _Result(last.sums, last.plane, last.window.pitch, *last.window.out)
        if pooled is not None:
            _pass_on(last, parts[-1].pool, pooled)
            window = pooled.window
            result = _Result(pooled.view, window.plane, window.pitch, window.height, window.width)
        outputs = parts[-1].conv.results[0].type.size(1)
        there = target.at(bind(image * (result.height * result.width * outputs)))
        _write(ctx, result, outputs, parts[-1].finish, there)


class _Padding:
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
class _Lead:
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
    windows
        Its sums in 16 bits, where trees may compare those.
    padding
        With ``windows``: of the planes for images that do not fit them.
    """

    pixels: Operation | None
    conv: Operation | None
    image: View
    rows: View
    config: DenseConfig | None
    shared: conv2d.Shared | None
    planar: PlaneConvolution | None = None
    windows: Windows | None = None
    padding: _Padding | None = None

    @classmethod
    def take(cls, ctx: StageContext, function: Function, trees: Operation) -> _Lead:
        """Assign room for what comes before the first planes."""
        by_opcode = {op.opcode: op for op in function.body}
        pixels, conv = by_opcode.get("im2col"), by_opcode.get("conv2d")
        config, shared, numbers, results = None, None, 0, 0
        if conv is not None and plane_conv2d.applies(conv):
            planar = PlaneConvolution.take(ctx, conv, pixels is not None)
            none, windows = ctx.scratch.take(0, "float32"), None
            if plane_windows.applies(ctx, conv, trees):
                windows = Windows.take(ctx, planar, trees)
            return cls(pixels, conv, none, none, None, None, planar, windows)
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
        if self.windows is None:
            self._fill(ctx, image, layer.source)
            layer.emit(ctx)
            return
        assert self.planar is not None
        assert self.padding is not None
        unit, windows = self.planar.read(image), self.windows
        with branch(windows.find(unit)) as (narrow, wide):
            with narrow:
                windows.emit()
                replace(layer, source=windows.planes, thresholds=windows.thresholds).emit(ctx)
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


@dataclass(frozen=True)
class _Result:
    """Planes of sums that become rows."""

    sums: View
    plane: int
    pitch: int
    height: int
    width: int


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


def _pass_on(layer: Layer, pool: Operation | None, target: Planes) -> None:
    """Copy sums into the planes of the next layer, the largest of each window where they pool."""
    _, width = layer.window.out
    sums, pitch = layer.sums, layer.window.pitch
    lanes = 32 if sums.dtype == "int16" else 16
    out_height, out_width = target.window.height, target.window.width

    def line(channel: Expr, y: Expr) -> Expr:
        return bind(channel * layer.plane + y * pitch)

    with loop(target.window.channels) as c, loop(out_height) as y:
        if pool is None:
            whole, tail = divmod(width, lanes)
            at = line(c, y)
            with loop(whole) as k:
                target.put(c, y, k * lanes, sums.load(at + k * lanes, lanes), lanes)
            if tail:
                x = i64(whole * lanes)
                target.put(c, y, x, sums.load(at + whole * lanes, lanes), tail)
            return
        window = Window.of(pool)
        if _halves(window):
            whole, tail = divmod(out_width, lanes // 2)
            top, below = line(c, y * 2), line(c, y * 2 + 1)

            def pooled(x: Expr, count: int) -> None:
                rows = [sums.load(row + x * 2, lanes) for row in (top, below)]
                value = bind(_larger(bind(rows[0]), bind(rows[1])))
                even, odd = (shuffle([value], range(i, lanes, 2)) for i in (0, 1))
                target.put(c, y, x, bind(_larger(bind(even), bind(odd))), count)

            with loop(whole) as k:
                pooled(bind(k * (lanes // 2)), lanes // 2)
            if tail:
                pooled(i64(whole * (lanes // 2)), tail)
            return
        with loop(out_width) as x:
            value = _largest(layer, window, c, y, x)
            target.put(c, y, x, splat(value, sums.dtype, 16), 1)


def _halves(window: Window) -> bool:
    """Whether a pooling takes the largest of 2 x 2 pixels."""
    return (window.kernel, window.stride, window.padding) == ((2, 2), (2, 2), (0, 0)) and (
        window.dilation == (1, 1)
    )


def _larger(a: Expr, b: Expr) -> Expr:
    return select(a > b, a, b)


def _largest(layer: Layer, window: Window, channel: Expr, y: Expr, x: Expr) -> Expr:
    """Return the largest sum of one window of any kind."""
    sums = layer.sums
    (sh, sw), (top, left), (dh, dw) = window.stride, window.padding, window.dilation
    best = local(1, sums.dtype)
    least = -(1 << 15) if sums.dtype == "int16" else -(1 << 31)
    best.store(0, cast(sums.dtype, i64(least)))
    with loop(window.kernel[0]) as i, loop(window.kernel[1]) as j:
        row, column = bind(y * sh + i * dh - top), bind(x * sw + j * dw - left)
        inside = both(
            both(row >= i64(0), row < i64(window.height)),
            both(column >= i64(0), column < i64(window.width)),
        )
        with when(inside):
            value = bind(sums.load(channel * layer.plane + row * layer.window.pitch + column))
            best.store(0, _larger(value, best.load(0)))
    return best.load(0)


def _write(
    ctx: StageContext, layer: _Result, outputs: int, finish: Sequence[Operation], target: View
) -> None:
    """Turn sums into rows of pixels, 16 x 16 at a time, and finish them."""
    height, width = layer.height, layer.width
    starts = chunk_starts(outputs)
    where = ctx.blob.add("ints", "int32", [], values=starts)
    vectors = {
        value.name: ctx.blob.add("vector", "float32", [ctx.ref(value)])
        for op in finish
        for value in op.operands[1:]
    }
    with loop(height) as y, loop(len(starts)) as chunk, loop(-(-width // LANES)) as block:
        start = bind(cast("int64", where.load(chunk)))
        x = bind(minimum(block * LANES, i64(max(width - LANES, 0))))
        base = bind(start * layer.plane + y * layer.pitch + x)

        def quarter(channel: int, q: int) -> Expr:
            value = layer.sums.load(base + (channel * layer.plane + 4 * q), 4)
            return cast("int32x4", value) if layer.sums.dtype == "int16" else value

        for pixel, found in enumerate(transpose16(quarter)[: min(LANES, width)]):
            value = found
            for op in finish:
                value = ELEMENTWISE[op.opcode](
                    op, value, lambda i, op=op: vectors[op.operands[i].name].load(start, LANES)
                )
            at = bind((y * width + x + pixel) * outputs + start)
            if outputs >= CHUNK:
                target.store(at, value, CHUNK)
            else:
                store_partial(target, at, bind(value), outputs)
