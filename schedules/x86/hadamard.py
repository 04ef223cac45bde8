"""``hadamard``: rows as they lie, in passes of radix 16 over vectors of 16 columns.

Work: n log2(n) additions a row; a pass reads and writes n floats for up to four of the log2(n)
steps. The first four steps stay inside a vector: each exchanges lanes and is one fused multiply-add
with a vector of signs. So a row of 512 takes three passes in the L1 cache, and memory traffic is
the limit: a Hadamard transform should cost what a memcpy of the same bytes costs.
"""

from __future__ import annotations

from collections.abc import Callable

from lutcc.ir.module import Operation
from lutcc.schedules.x86.context import Row, StageContext
from lutcc.schedules.x86.emit import (
    LANES,
    Expr,
    View,
    bind,
    const,
    fma,
    i64,
    local,
    loop,
    shuffle,
    splat,
)

#: log2 of the vectors that one pass holds in registers; AVX2 has half as many, of half the width.
_RADIX = {True: 4, False: 3}


def emit_row(
    ctx: StageContext, op: Operation, row: Row, finish: Callable[[Expr, Expr], None]
) -> None:
    """Transform a contiguous row; ``finish(first column, 16 values)`` takes the result.

    ``row`` is overwritten; past its columns it has room for the padded row.
    """
    width = op.results[0].type.size(1)
    scale = float(op.attr("scale"))  # type: ignore[arg-type]
    if width < LANES:
        _small(row, width, scale, finish)
        return
    clear_padding(row, width)
    _steps(ctx, row.view, width, LANES, scale, finish)


def mix(ctx: StageContext, view: View, width: int, stride: int) -> None:
    """Apply H_{width / stride} (x) I_stride in place; ``stride`` is a multiple of 16.

    H_width is this and then H_stride on every ``stride`` columns, which a block-diagonal product
    that follows can hold in its blocks.
    """
    if width == stride:
        return
    _steps(ctx, view, width, stride, 1.0, None)


def clear_padding(row: Row, width: int) -> None:
    """Set columns ``row.columns .. width - 1`` to zero."""
    start = row.columns
    while start < width and start % LANES:
        row.view.store(start, const(0.0, "float32"))
        start += 1
    if start < width:
        with loop((width - start) // LANES) as k:
            row.view.store(i64(start) + k * LANES, splat(0.0), LANES)


def _steps(
    ctx: StageContext,
    view: View,
    width: int,
    stride: int,
    scale: float,
    finish: Callable[[Expr, Expr], None] | None,
) -> None:
    """Do the steps between vectors, ``stride`` columns apart and more.

    With ``finish``, the first pass also does the steps inside vectors, and the last one hands its
    results over instead of storing them in place.
    """
    levels = (width // stride).bit_length() - 1
    done = 0
    passes = _passes(levels, _RADIX[ctx.isa.has_avx512])
    for number, steps in enumerate(passes):
        put = finish if number == len(passes) - 1 else None
        _pass(
            view, width, stride << done, steps, scale, put, inside=finish is not None and not done
        )
        done += steps


def _passes(levels: int, radix: int) -> list[int]:
    """Cut the steps between vectors into passes of about equal size, at least one."""
    count = max(1, -(-levels // radix))
    return [levels // count + (k < levels % count) for k in range(count)]


def _pass(
    view: View,
    width: int,
    stride: int,
    steps: int,
    scale: float,
    finish: Callable[[Expr, Expr], None] | None,
    *,
    inside: bool,
) -> None:
    """Do ``steps`` steps between vectors ``stride`` apart, after those inside if ``inside``."""
    size = 1 << steps
    with loop(width // (stride * size)) as block, loop(stride // LANES) as k:
        first = bind(block * (stride * size) + k * LANES)
        values = [bind(view.load(first + i * stride, LANES)) for i in range(size)]
        if inside:
            values = [_inside(value) for value in values]
        half = 1
        while half < size:
            for i in range(size):
                if not i & half:
                    a, b = values[i], values[i + half]
                    values[i], values[i + half] = bind(a + b), bind(a - b)
            half *= 2
        for i, value in enumerate(values):
            if finish is not None:
                finish(bind(first + i * stride), value * splat(scale) if scale != 1 else value)
            else:
                view.store(first + i * stride, value, LANES)


def _inside(value: Expr) -> Expr:
    """Apply H_16 to the lanes of a vector."""
    for half in (1, 2, 4, 8):
        partner = shuffle([value], [lane ^ half for lane in range(LANES)])
        value = bind(fma(value, _signs(half), partner))
    return value


def _signs(half: int) -> Expr:
    """Return a vector of 1 where bit ``half`` of the lane is clear, else -1."""
    both = [splat(1.0), splat(-1.0)]
    return shuffle(both, [lane + LANES if lane & half else lane for lane in range(LANES)])


def _small(row: Row, width: int, scale: float, finish: Callable[[Expr, Expr], None]) -> None:
    """Transform fewer than 16 columns, one value at a time."""
    values: list[Expr] = [
        bind(row.view.load(i)) if i < row.columns else const(0.0, "float32") for i in range(width)
    ]
    half = 1
    while half < width:
        for i in range(width):
            if not i & half:
                a, b = values[i], values[i + half]
                values[i], values[i + half] = bind(a + b), bind(a - b)
        half *= 2
    lanes = local(LANES, "float32")
    lanes.store(0, splat(0.0), LANES)
    for i, value in enumerate(values):
        lanes.store(i, value * const(scale, "float32") if scale != 1 else value)
    finish(i64(0), lanes.load(0, LANES))
