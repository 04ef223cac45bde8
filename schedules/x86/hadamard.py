"""``hadamard``: rows as they lie, in passes over registers.

Work: n log2(n) additions a row. A pass reads and writes n floats for up to three (AVX2) or four
steps; the first log2(L) steps, inside vectors of L columns, each exchange lanes and are one fused
multiply-add with a vector of signs. So a row of 512 takes two or three passes in the L1 cache, and
memory traffic is the limit: a transform should cost what a memcpy of the same bytes costs.
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

#: Takes the first column and a vector of results.
Finish = Callable[[Expr, Expr], None]
#: Returns the vector that begins at a column.
Load = Callable[[Expr], Expr]


def lanes_of(ctx: StageContext) -> int:
    """Return the columns of one register, which the butterflies work on."""
    return ctx.isa.vector_bytes // 4


def emit_row(
    ctx: StageContext, op: Operation, row: Row, finish: Finish, load: Load | None = None
) -> None:
    """Transform one row; ``finish(first column, values)`` takes the result in vectors.

    The input is ``row``, contiguous, or what ``load`` returns; ``row`` is the memory between
    passes, with room for the padded row.
    """
    width = op.results[0].type.size(1)
    scale = float(op.attr("scale"))  # type: ignore[arg-type]
    if width < LANES:
        _small(row, width, scale, finish)
        return
    if load is None:
        clear_padding(row, width)
    _steps(ctx, row.view, width, lanes_of(ctx), scale, finish, load)


def mix(ctx: StageContext, view: View, width: int, stride: int) -> None:
    """Apply H_{width / stride} (x) I_stride in place; ``stride`` is a multiple of 16.

    H_width is this and then H_stride on every ``stride`` columns, which a block-diagonal product
    that follows can hold in its blocks.
    """
    if width > stride:
        _steps(ctx, view, width, stride, 1.0, None, None)


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
    finish: Finish | None,
    load: Load | None,
) -> None:
    """Do the steps between vectors, ``stride`` columns apart and more.

    With ``finish``, the first pass also does the steps inside vectors, and the last one hands its
    results over instead of storing them in place.
    """
    lanes = lanes_of(ctx)
    levels = (width // stride).bit_length() - 1
    done = 0
    passes = _passes(levels, 4 if ctx.isa.has_avx512 else 3)
    if finish is not None and lanes < LANES and levels > 1:
        # Two registers make a cache line. Results leave line by line, which four lines at a time
        # allow: half lines of eight, stored past the caches, may leave the core half empty.
        passes = [*(_passes(levels - 2, 3) if levels > 2 else []), 2]
    for number, steps in enumerate(passes):
        put = finish if number == len(passes) - 1 else None
        inside = finish is not None and number == 0
        source = load if load is not None and number == 0 else lambda i: view.load(i, lanes)
        _pass(view, width, stride << done, steps, lanes, scale, put, source, inside=inside)
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
    lanes: int,
    scale: float,
    finish: Finish | None,
    load: Load,
    *,
    inside: bool,
) -> None:
    """Do ``steps`` steps between vectors ``stride`` apart, after those inside if ``inside``."""
    size = 1 << steps
    whole = finish is not None and lanes < LANES and stride >= LANES and steps <= 2
    chunk = LANES if whole else lanes

    def transformed(first: Expr) -> list[Expr]:
        values = [bind(load(first + i * stride)) for i in range(size)]
        if inside:
            values = [_inside(value, lanes) for value in values]
        half = 1
        while half < size:
            for i in range(size):
                if not i & half:
                    a, b = values[i], values[i + half]
                    values[i], values[i + half] = bind(a + b), bind(a - b)
            half *= 2
        return values

    with loop(width // (stride * size)) as block, loop(stride // chunk) as k:
        first = bind(block * (stride * size) + k * chunk)
        values = transformed(first)
        if whole:
            others = transformed(bind(first + lanes))
            pairs = zip(values, others, strict=True)
            values = [shuffle(pair, range(LANES)) for pair in pairs]
        for i, value in enumerate(values):
            if finish is None:
                view.store(first + i * stride, value, lanes)
                continue
            scaled = value * splat(scale, lanes=chunk) if scale != 1 else value
            finish(bind(first + i * stride), scaled)


def _inside(value: Expr, lanes: int) -> Expr:
    """Apply H to the lanes of a vector."""
    half = 1
    while half < lanes:
        partner = shuffle([value], [lane ^ half for lane in range(lanes)])
        value = bind(fma(value, _signs(half, lanes), partner, lanes))
        half *= 2
    return value


def _signs(half: int, lanes: int) -> Expr:
    """Return a vector of 1 where bit ``half`` of the lane is clear, else -1."""
    both = [splat(1.0, lanes=lanes), splat(-1.0, lanes=lanes)]
    return shuffle(both, [lane + lanes if lane & half else lane for lane in range(lanes)])


def _small(row: Row, width: int, scale: float, finish: Finish) -> None:
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
