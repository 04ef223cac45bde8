"""``conv2d`` of integers in front of look-ups: from an image to the planes that trees read.

A *word* of 32 bits holds 4 integers (with VNNI; else 2, of 16 bits) of what a row of a window
takes in, channel by channel and column by column, and lies in a plane where the output that begins
there does: a row of the windows of 16 pixels is a load for each of its words, and their product
with an output's weights, words too, an instruction (or two). Sums are finished where they are, 16
pixels of an output, which is how planes take them: no row of channels is written, and nothing
transposed.

Count, 3x3 over 3 channels of 32x32 pixels to 32 outputs: 9 numbers in a row of a window, so 3 words
(5 without VNNI) and 9 (15) in all. 64 * 32 * 9 = 18 432 ``vpdpbusd``, one or two a cycle, with a
load of pixels for 16 of them; or 61 440 pairs of ``vpmaddwd`` and a sum. To finish takes 10 000
(20 000) instructions, and planes of float32 137 kB of stores; in 16 bits (:mod:`narrow_planes`)
4 000 and 69 kB.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lutcc.ir.module import Operation
from lutcc.schedules.intrinsics import streaming, x86
from lutcc.schedules.x86.activation import activated
from lutcc.schedules.x86.context import Constant, StageContext
from lutcc.schedules.x86.edges import store_partial
from lutcc.schedules.x86.emit import (
    LANES,
    Expr,
    View,
    bind,
    cast,
    i64,
    local,
    loop,
    minimum,
    registers,
    reinterpret,
    shuffle,
    splat,
)
from lutcc.schedules.x86.gather_int8 import Quantiser, quantiser_of
from lutcc.schedules.x86.images import SHIFT, Geometry, peak_of
from lutcc.schedules.x86.isa import Isa
from lutcc.schedules.x86.pack import round_up
from lutcc.schedules.x86.planes import SLACK, Planes

#: Channels of an image, at most: each column of a window has words of its own.
_MOST_CHANNELS = 15


def applies(op: Operation) -> bool:
    """Tell whether a convolution is computed in planes: integers, few channels, one group."""
    shape = Geometry.of(op)
    return op.attr("compute") == "int8" and shape.groups == 1 and shape.channels <= _MOST_CHANNELS


@dataclass(frozen=True)
class PlaneConvolution:
    """A convolution of one image at a time.

    Attributes
    ----------
    op, shape, isa
        The operation.
    channels_first
        How its images lie.
    line
        The integers of a row of the image, with its padding: [channel][:attr:`columns`].
    words
        [word][row of the padded image][column of the result].
    factors
        Of the image: what the sums of each output are multiplied with.
    weights
        [outputs / tile][word][row of the kernel][tile] words.
    units, bias, shifts
        By output; ``shifts``, with VNNI, is what sums are too small by.
    tile
        Outputs that are summed together.
    """

    op: Operation
    shape: Geometry
    isa: Isa
    channels_first: bool
    line: View
    words: View
    factors: View
    weights: View
    units: View
    bias: View
    shifts: View | None
    tile: int

    @classmethod
    def take(cls, ctx: StageContext, op: Operation, channels_first: bool) -> PlaneConvolution:
        """Pack the constants, assign room for an image, and write its padding."""
        shape, isa = Geometry.of(op), ctx.isa
        dot = isa.has_vbmi_vnni
        tile = min(16 if isa.has_avx512 else 4, shape.outputs)
        weight, units, bias = (Constant(ctx.blob, ctx.ref(v)) for v in op.operands[1:])
        length = round_up(shape.outputs, LANES)
        shifts = None
        if dot:
            shifts = Constant.pack("conv2d_shifts", "int32", [weight], length=length, shift=-SHIFT)
        per_word = 4 if dot else 2
        found = cls(
            op,
            shape,
            isa,
            channels_first,
            ctx.scratch.take(shape.channels * cls._columns(shape) + SLACK, "int32"),
            ctx.scratch.take(
                cls._count(shape, per_word) * shape.padded[0] * shape.out_width + SLACK, "int32"
            ),
            ctx.scratch.take(length, "float32"),
            Constant.pack("conv2d_words", "int32", [weight], per_word=per_word, tile=tile),
            Constant.pack("vector", "float32", [units], multiple=LANES),
            Constant.pack("vector", "float32", [bias], multiple=LANES),
            shifts,
            tile,
        )
        found._clear()
        return found

    @staticmethod
    def _columns(shape: Geometry) -> int:
        """Return how many numbers of :attr:`line` a channel takes, whole vectors."""
        return round_up(shape.padded[1], LANES)

    @staticmethod
    def _count(shape: Geometry, per_word: int) -> int:
        """Return the words of a row of a window."""
        return -(-shape.kernel[1] * shape.channels // per_word)

    @property
    def per_word(self) -> int:
        """Numbers of a word."""
        return 2 if self.shifts is None else 4

    @property
    def count(self) -> int:
        """Words of a row of a window."""
        return self._count(self.shape, self.per_word)

    @property
    def wide(self) -> bool:
        """Whether 16 numbers of 32 bits are one register."""
        return self.isa.has_avx512 and not self.isa.emulated

    @property
    def plane(self) -> int:
        """Words from one plane to the next."""
        return self.shape.padded[0] * self.shape.out_width

    def read(self, image: View) -> Expr:
        """Emit what turns an image into integers; return what each of them stands for."""
        scale = quantiser_of(peak_of(image, self.shape.image_numbers))
        with loop(self.shape.height) as y:
            self._read(image, y, scale)
            self._combine(bind(y + self.shape.padding[0]))
        return scale.unit

    def emit(self, unit: Expr, target: Planes) -> None:
        """Emit the products of an image, whose pixels become channels of ``target`` (float32)."""
        with loop(-(-self.shape.outputs // LANES)) as k:
            factor = splat(unit) * self.units.load(k * LANES, LANES)
            self.factors.store(k * LANES, factor, LANES)
        self.products(target, self.shifts, self._finished)

    def products(
        self, target: Planes, starts: View | None, finish: Callable[[Expr, Expr], Expr]
    ) -> None:
        """Emit the products of an image.

        Parameters
        ----------
        target
            Takes what ``finish`` makes of an output's number and 16 sums.
        starts
            What the sums of each output begin with, int32; None: with 0.
        """
        whole, left = divmod(self.shape.outputs, self.tile)
        with loop(whole) as t:
            self._outputs(bind(t * self.tile), self.tile, target, starts, finish)
        if left:
            self._outputs(i64(whole * self.tile), left, target, starts, finish)

    # The image ------------------------------------------------------------------------------

    def _stored(self, integers: Expr) -> Expr:
        """Return integers as words hold them: unsigned, their bits alone."""
        if self.shifts is not None:
            return integers + splat(SHIFT, "int32")
        return integers & splat(0xFFFF, "int32")

    def _clear(self) -> None:
        """Write what is outside the image."""
        number = 0 if self.shifts is None else SHIFT
        with loop(self.shape.channels * self._columns(self.shape) // LANES) as k:
            self.line.store(k * LANES, splat(number, "int32"), LANES)
        word = number * 0x01010101
        with loop(round_up(self.count * self.plane, LANES) // LANES) as k:
            self.words.store(k * LANES, splat(word - (word >> 31 << 32), "int32"), LANES)

    def _read(self, image: View, y: Expr, scale: Quantiser) -> None:
        """Turn a row of the image into integers."""
        shape = self.shape
        columns, left = self._columns(shape), shape.padding[1]
        with loop(shape.channels) as c, loop(-(-shape.width // LANES)) as block:
            x = bind(minimum(block * LANES, i64(max(shape.width - LANES, 0))))
            pixel, step = bind(y * shape.width + x), 1
            if self.channels_first:
                pixel = bind(pixel + c * (shape.height * shape.width))
            else:
                step = shape.channels
                pixel = bind(pixel * step + c)
            numbers = self._gather(image, pixel, step, min(LANES, shape.width))
            integers = bind(self._stored(scale.integers(numbers)))
            self._put(self.line, bind(c * columns + x + left), integers, shape.width)

    def _combine(self, row: Expr) -> None:
        """Write the words of a row of the padded image."""
        shape, bits = self.shape, 32 // self.per_word
        step = shape.stride[1]
        places = [
            c * self._columns(shape) + j * shape.dilation[1]
            for j in range(shape.kernel[1])
            for c in range(shape.channels)
        ]
        with loop(-(-shape.out_width // LANES)) as block:
            x = bind(minimum(block * LANES, i64(max(shape.out_width - LANES, 0))))
            for word in range(self.count):
                value = None
                for k, place in enumerate(places[word * self.per_word :][: self.per_word]):
                    at = bind(x * step + place)
                    part = self._gather(self.line, at, step, min(LANES, shape.out_width))
                    part = part << splat(bits * k, "int32") if k else part
                    value = part if value is None else value | part
                at = bind(row * shape.out_width + x + word * self.plane)
                self._put(self.words, at, bind(value), shape.out_width)

    @staticmethod
    def _gather(view: View, at: Expr, step: int, count: int) -> Expr:
        """Return 16 numbers ``step`` apart, of which ``count`` are there."""
        if step == 1 and count == LANES:
            return bind(view.load(at, LANES))
        lanes = local(LANES, view.dtype)
        with loop(count) as k:
            lanes.store(k, view.load(at + k * step))
        return bind(lanes.load(0, LANES))

    @staticmethod
    def _put(view: View, at: Expr, value: Expr, width: int) -> None:
        """Store 16 numbers, or as many as a row has."""
        if width >= LANES:
            view.store(at, value, LANES)
        else:
            store_partial(view, at, value, width)

    # The products ---------------------------------------------------------------------------

    def _finished(self, output: Expr, sums: Expr) -> Expr:
        """Return the results of 16 pixels."""
        factor, bias = splat(self.factors.load(output)), splat(self.bias.load(output))
        result = self.scaled(cast("float32x16", bind(sums)), factor, bias, wide=self.wide)
        return bind(activated(str(self.op.attr("activation")), result))

    @staticmethod
    def scaled(sums: Expr, factor: Expr, bias: Expr, *, wide: bool) -> Expr:
        """Return ``sums * factor + bias``, rounded twice, of float32x16."""
        return bind(bind(streaming.rounded(sums * factor, LANES, wide=wide)) + bias)

    def _outputs(
        self,
        first: Expr,
        count: int,
        target: Planes,
        starts: View | None,
        finish: Callable[[Expr, Expr], Expr],
    ) -> None:
        """Compute all pixels of some outputs."""
        shape = self.shape
        with loop(shape.out_height) as y, loop(-(-shape.out_width // LANES)) as block:
            x = bind(minimum(block * LANES, i64(max(shape.out_width - LANES, 0))))
            for k, sums in enumerate(self._sums(first, count, y, x, starts)):
                output = bind(first + k)
                value = finish(output, sums)
                target.put(output, y, x, bind(value), min(LANES, shape.out_width))

    def _sums(self, first: Expr, count: int, y: Expr, x: Expr, starts: View | None) -> list[Expr]:
        """Return the sums (int32x16) of some outputs for 16 pixels of a row."""
        shape = self.shape
        lanes, rows = self.isa.vector_bytes // 4, shape.kernel[0]
        parts = LANES // lanes
        acc = registers(count * parts, "int32", lanes)
        for slot in range(count * parts):
            begin = 0 if starts is None else starts.load(first + slot // parts)
            acc.set(slot, splat(begin, "int32", lanes))
        start = bind(y * (shape.stride[0] * shape.out_width) + x)
        table = self.weights.at(bind(first * (self.count * rows)))
        with loop(self.count) as word:
            pixels = self.words.at(bind(word * self.plane + start))
            here = table.at(bind(word * (rows * self.tile)))
            for i in range(rows):
                below = i * shape.dilation[0] * shape.out_width
                found = [bind(pixels.load(below + p * lanes, lanes)) for p in range(parts)]
                for k in range(count):
                    weights = bind(splat(here.load(i * self.tile + k), "int32", lanes))
                    for p in range(parts):
                        slot = k * parts + p
                        acc.set(slot, self._added(acc.get(slot), found[p], weights))
        if parts == 1:
            return [bind(acc.get(k)) for k in range(count)]
        return [
            bind(shuffle([acc.get(k * parts + p) for p in range(parts)], range(LANES)))
            for k in range(count)
        ]

    def _added(self, acc: Expr, pixels: Expr, weights: Expr) -> Expr:
        """Return sums with the products of words added."""
        lanes = self.isa.vector_bytes // 4
        if self.shifts is not None:
            integers = reinterpret(f"uint8x{4 * lanes}", pixels)
            return bind(x86.VPDPBUSD_512(acc, integers, reinterpret(f"int8x{4 * lanes}", weights)))
        pairs = x86.PMADDWD_512 if self.isa.has_avx512 else x86.PMADDWD_256
        kind = f"int16x{2 * lanes}"
        return bind(acc + pairs(reinterpret(kind, pixels), reinterpret(kind, weights)))
