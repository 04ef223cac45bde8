"""Operations between stages: gather patches, pool, reorder, elementwise on whole tensors.

Channels go to the back, or to the front, in blocks of 16 x 16 numbers; patches are gathered one
number at a time.
"""

from __future__ import annotations

import math

from lutcc.ir.module import Operation
from lutcc.schedules.x86.emit import (
    LANES,
    Expr,
    View,
    bind,
    both,
    const,
    either,
    i64,
    local,
    loop,
    minimum,
    reinterpret,
    select,
    shuffle,
    splat,
    transpose16,
    when,
)

#: Up to so many channels are interleaved by shuffles.
_FEW = 4


def _pair(op: Operation, name: str) -> tuple[int, int]:
    value = op.attr(name)
    assert isinstance(value, tuple)
    return int(value[0]), int(value[1])


def emit_im2col(op: Operation, source: View, target: View, image: Expr) -> None:
    """Write the patches of one image as rows (N*OH*OW, C*kh*kw), zeros outside."""
    channels, height, width = op.operands[0].type.sizes(1)
    (kh, kw), (sh, sw) = _pair(op, "kernel"), _pair(op, "stride")
    (ph, pw), (dh, dw) = _pair(op, "padding"), _pair(op, "dilation")
    if (kh, kw, sh, sw, ph, pw) == (1, 1, 1, 1, 0, 0):
        base = bind(i64(image) * (channels * height * width))
        _transpose(source.at(base), target.at(base), channels, height * width)
        return
    oh = (height + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    ow = (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    patch = channels * kh * kw
    with loop(oh) as y, loop(ow) as x:
        row = bind(((i64(image) * oh + y) * ow + x) * patch)
        with loop(channels) as c, loop(kh) as i:
            py = bind(y * sh + i * dh - ph)
            inside_y = both(py >= i64(0), py < i64(height))
            base = bind(((i64(image) * channels + c) * height + py) * width)
            with loop(kw) as j:
                px = bind(x * sw + j * dw - pw)
                inside = both(inside_y, both(px >= i64(0), px < i64(width)))
                # an address that is always valid: the load may run before the choice
                at = select(inside, base + px, i64(0))
                value = select(inside, source.load(at), const(0.0, "float32"))
                target.store(row + (c * kh + i) * kw + j, value)


def emit_rows_to_nchw(op: Operation, source: View, target: View, image: Expr) -> None:
    """Write one image: rows (OH*OW, M) become (M, OH, OW)."""
    columns = op.operands[0].type.size(1)
    pixels = int(op.attr("oh")) * int(op.attr("ow"))  # type: ignore[arg-type]
    base = bind(i64(image) * (columns * pixels))
    _transpose(source.at(base), target.at(base), pixels, columns)


def emit_max_pool2d(op: Operation, source: View, target: View, image: Expr) -> None:
    """Write the largest numbers of the windows of one image, channels last."""
    height, width, channels = op.operands[0].type.sizes(1)
    (kh, kw), (sh, sw) = _pair(op, "kernel"), _pair(op, "stride")
    (ph, pw), (dh, dw) = _pair(op, "padding"), _pair(op, "dilation")
    oh = (height + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    ow = (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    here = source.at(bind(i64(image) * (height * width * channels)))
    there = target.at(bind(i64(image) * (oh * ow * channels)))
    dtype = op.operands[0].type.dtype
    least = -math.inf if dtype == "float32" else -(2**31)

    def pool(y: Expr, x: Expr, channel: Expr, lanes: int) -> None:
        best = local(lanes, dtype)
        best.store(0, splat(least, dtype, lanes) if lanes > 1 else const(least, dtype), lanes)
        with loop(kh) as i, loop(kw) as j:
            row, column = bind(y * sh + i * dh - ph), bind(x * sw + j * dw - pw)
            inside = both(
                both(row >= i64(0), row < i64(height)), both(column >= i64(0), column < i64(width))
            )
            with when(inside):
                value = bind(here.load((row * width + column) * channels + channel, lanes))
                most = best.load(0, lanes)
                # the first of equal numbers, or the first NaN, as torch has it
                larger = value > most
                if dtype == "float32":
                    larger = either(larger, _is_nan(value, lanes))
                best.store(0, select(larger, value, most), lanes)
        there.store((y * ow + x) * channels + channel, best.load(0, lanes), lanes)

    with loop(oh) as y, loop(ow) as x:
        if channels >= LANES:
            with loop(-(-channels // LANES)) as k:
                pool(y, x, _last(k, channels), LANES)
        else:
            with loop(channels) as k:
                pool(y, x, k, 1)


def _is_nan(value: Expr, lanes: int) -> Expr:
    """Return where numbers are NaN, by their bits: TVM takes ``value != value`` for false."""
    wide = f"int32x{lanes}" if lanes > 1 else "int32"
    bits = reinterpret(wide, value)

    def number(n: int) -> Expr:
        return splat(n, "int32", lanes) if lanes > 1 else const(n, "int32")

    return (bits & number(0x7FFFFFFF)) > number(0x7F800000)


def _transpose(source: View, target: View, rows: int, columns: int) -> None:
    """Write [rows][columns] float32 numbers as [columns][rows]."""
    if rows >= LANES and columns >= LANES:
        with loop(-(-columns // LANES)) as j, loop(-(-rows // LANES)) as i:
            first, column = _last(i, rows), _last(j, columns)

            def quarter(row: int, q: int) -> Expr:
                return source.load((first + row) * columns + (column + 4 * q), 4)

            for c, value in enumerate(transpose16(quarter)):
                target.store((column + c) * rows + first, value, LANES)
    elif rows <= _FEW and columns >= LANES:
        with loop(-(-columns // LANES)) as j:
            column = _last(j, columns)
            lines = [bind(source.load(column + r * columns, LANES)) for r in range(rows)]
            numbers = [k % rows * LANES + k // rows for k in range(rows * LANES)]
            for part in range(rows):
                value = shuffle(lines, numbers[part * LANES : (part + 1) * LANES])
                target.store(column * rows + part * LANES, value, LANES)
    elif columns <= _FEW and rows >= LANES:
        with loop(-(-rows // LANES)) as i:
            first = _last(i, rows)
            lines = [
                bind(source.load(first * columns + part * LANES, LANES)) for part in range(columns)
            ]
            for c in range(columns):
                value = shuffle(lines, range(c, columns * LANES, columns))
                target.store(first + c * rows, value, LANES)
    else:
        with loop(columns) as j, loop(rows) as i:
            target.store(j * rows + i, source.load(i * columns + j))


def _last(block: Expr, size: int) -> Expr:
    """Return where a block of 16 begins; the last one may overlap the one before."""
    return bind(minimum(block * LANES, i64(size - LANES)))


def emit_elementwise(op: Operation, sources: list[View], target: View, first: Expr, count: int):
    """Apply ``relu`` or ``add`` to ``count`` contiguous elements from ``first`` on."""

    def compute(at: Expr, lanes: int) -> None:
        values = [bind(s.load(at, lanes)) for s in sources]
        if op.opcode == "add":
            result = values[0] + values[1]
        else:
            zero = splat(0.0, lanes=lanes) if lanes > 1 else const(0.0, "float32")
            result = select(zero > values[0], zero, values[0])
        target.store(at, result, lanes)

    if count >= 16:
        with loop(count // 16) as k:
            compute(i64(first) + k * 16, 16)
    if count % 16:
        with loop(count % 16) as k:
            compute(i64(first) + count - count % 16 + k, 1)
