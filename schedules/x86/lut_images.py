"""A stage of convolutions by look-ups: one image after the other goes through all of them.

Images are turned into planes as they come in (:mod:`lutcc.schedules.x86.planes`); between layers
sums are copied into the planes of the next one, where poolings take the largest of them; results
are turned back into rows, and finished on the way. All that an image needs stays in L2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lutcc.ir.module import Function, Operation
from lutcc.schedules.x86 import lut_conv2d
from lutcc.schedules.x86.context import StageContext
from lutcc.schedules.x86.edges import store_partial
from lutcc.schedules.x86.emit import (
    LANES,
    Expr,
    View,
    bind,
    both,
    cast,
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
from lutcc.schedules.x86.image_lead import Lead, Padding
from lutcc.schedules.x86.lut_conv2d import Layer
from lutcc.schedules.x86.pack import CHUNK, chunk_starts
from lutcc.schedules.x86.planes import Planes, Window
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


def _types(ctx: StageContext, parts: Sequence[_Part]) -> list[tuple[str, str]]:
    """Return the types of the planes that each convolution reads, and of its sums."""
    types: list[tuple[str, str]] = []
    for index, part in enumerate(parts):
        dtype = part.conv.operands[0].type.dtype
        if index and types[-1][1] == "int16":
            dtype = "int16"
        after = parts[index + 1].conv if index + 1 < len(parts) else None
        small = lut_conv2d.narrow_sums(ctx, part.conv)
        small = small and (after is None or lut_conv2d.narrow(ctx, after))
        types.append((dtype, "int16" if small else "int32"))
    return types


def emit(
    ctx: StageContext, function: Function, source: View, target: View, begin: Expr, end: Expr
) -> None:
    """Emit images ``begin .. end - 1`` of a stage, row-major, channels last, in and out."""
    parts = _parts(function)
    lead, outside = Lead.take(ctx, function, parts[0].conv), list[View]()
    types = _types(ctx, parts)
    planes = []
    for index, (part, (dtype, _)) in enumerate(zip(parts, types, strict=True)):
        ordered = lut_conv2d.by_signs(ctx, part.conv, dtype, first=index == 0)
        planes.append(Planes.take(Window.of(part.conv), dtype, ctx.scratch, ordered))
        refs = [ctx.ref(part.conv.operands[4])]
        outside.append(ctx.blob.add("image_outside", dtype, refs, kind=dtype))
        if index == 0 and lead.narrow is not None:
            lead = replace(lead, padding=Padding(planes[0], outside[0]))
        else:
            planes[index].clear(outside[index])
    layers = []
    for index, (part, (dtype, sums)) in enumerate(zip(parts, types, strict=True)):
        pairs = dtype == "int16" or (index == 0 and lead.narrow is not None)
        follows = part.pool is None and index + 1 < len(parts)
        into = planes[index + 1] if follows else None
        layers.append(Layer.take(ctx, part.conv, planes[index], sums, pairs=pairs, into=into))
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
            if layer.into is not None:
                if not layer.by_lines:
                    layer.into.frame(outside[index + 1], top=False)
            elif index + 1 < len(layers):
                _pass_on(layer, parts[index].pool, layers[index + 1].source)
        result = _Result(last.sums, last.plane, last.window.pitch, *last.window.out)
        if pooled is not None:
            _pass_on(last, parts[-1].pool, pooled)
            window = pooled.window
            result = _Result(pooled.view, window.plane, window.pitch, window.height, window.width)
        outputs = parts[-1].conv.results[0].type.size(1)
        there = target.at(bind(image * (result.height * result.width * outputs)))
        _write(ctx, result, outputs, parts[-1].finish, there)


@dataclass(frozen=True)
class _Result:
    """Planes of sums that become rows."""

    sums: View
    plane: int
    pitch: int
    height: int
    width: int


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
