"""Convolutions whose outputs have a channel each: 16 channels of a pixel side by side.

Count, for a tap of 8 pixels and 16 channels: 9 loads and 8 multiply-adds, 4.5 cycles. Integers are
multiplied as floats, which hold their sums exactly up to 2**24.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lutcc.schedules.x86 import edges
from lutcc.schedules.x86.context import Constant
from lutcc.schedules.x86.emit import (
    LANES,
    Expr,
    View,
    bind,
    fma,
    i64,
    loop,
    minimum,
    registers,
    splat,
)
from lutcc.schedules.x86.granules import Granules
from lutcc.schedules.x86.images import Geometry, Images
from lutcc.schedules.x86.isa import Isa
from lutcc.schedules.x86.pack import round_up
from lutcc.schedules.x86.panels import ThreadLoop, share

#: Pixels of a row that are done together.
PIXELS = 8
#: Largest magnitude of integers.
_LIMIT = 127


def applies(shape: Geometry, form: str) -> bool:
    """Tell whether each output has a channel of its own, and floats hold its sums."""
    own = shape.group_channels == 1 and shape.outputs == shape.channels and shape.groups > 1
    return own and (form != "int8" or shape.taps * _LIMIT**2 <= 1 << 24)


def arithmetic(isa: Isa, form: str) -> Granules:
    """Return the arithmetic: multiply-adds of floats."""
    return Granules(isa, form, "floats")


def in_place(shape: Geometry) -> bool:
    """Tell whether no load passes the end of an image."""
    return shape.channels >= LANES


@dataclass(frozen=True)
class Taps:
    """Packed weights: [tap][channel]."""

    table: View
    columns: int


def pack(shape: Geometry, granules: Granules, weight: Constant) -> Taps:
    """Pack the weights."""
    columns = round_up(shape.channels, LANES)
    table = Constant.pack(
        "depthwise",
        "float32",
        [weight],
        taps=shape.taps,
        columns=columns,
        rounded=granules.form == "bfloat16",
    )
    return Taps(table, columns)


def emit(
    weights: Any,
    images: Images,
    source: View,
    target: View,
    count: Expr,
    thread_loop: ThreadLoop,
) -> None:
    """Emit the rows of the results of ``count`` images.

    Parameters
    ----------
    weights
        A :class:`lutcc.schedules.x86.product_weights.Weights` with packed :class:`Taps`.
    images
        What is known of the images.
    source, target
        Their numbers, and the results.
    """
    shape = images.shape
    with thread_loop() as (thread, threads):
        begin, own = share(bind(count * shape.out_height), thread, threads)
        with loop(own) as r:
            row = bind(begin + r)
            image = bind(row // i64(shape.out_height))
            y = bind(row - image * shape.out_height)
            with loop(-(-shape.channels // LANES)) as c:
                channel = c * LANES
                if shape.channels >= LANES:  # the last ones are done again
                    channel = minimum(channel, i64(shape.channels - LANES))
                _row(weights, images, source, target, (row, image, y), bind(channel))


def _row(
    weights: Any,
    images: Images,
    source: View,
    target: View,
    place: tuple[Expr, Expr, Expr],
    channel: Expr,
) -> None:
    """Do 16 channels of a row, some pixels at a time; the last ones are done again."""
    shape, taps = images.shape, weights.packed
    row, image, y = place
    together = min(PIXELS, shape.out_width)
    with loop(-(-shape.out_width // together)) as k:
        x = bind(minimum(k * together, i64(shape.out_width - together)))
        first = bind(shape.offset(image, y, x) + channel)
        acc = registers(together, "float32", LANES)
        for p in range(together):
            acc.set(p, splat(0.0))
        step = shape.stride[1] * shape.channels
        with loop(shape.kernel[0]) as i, loop(shape.kernel[1]) as j:
            tap = bind(taps.table.load((i * shape.kernel[1] + j) * taps.columns + channel, LANES))
            at = i * (shape.dilation[0] * shape.line) + j * (shape.dilation[1] * shape.channels)
            here = bind(first + at)
            for p in range(together):
                value = bind(source.load(here + p * step, LANES))
                acc.set(p, fma(value, tap, acc.get(p)))
        for p in range(together):
            result = weights.results(images, image, channel, acc.get(p), LANES)
            pixel = row * shape.out_width + x + p
            at = bind(pixel * shape.channels + channel)
            edges.store_partial(target, at, result, min(LANES, shape.channels))
