"""An exact convolution's channels in 16 bits: what trees compare of its integer sums.

A tree asks whether ``y = activation(fl(fl(acc) * factor) + bias) > t``. The factor belongs to the
image, so that thresholds among the sums are found for each image: T, the last sum whose y is not
above t, is guessed by a division and made sure of by evaluating y at four sums around it. The
thresholds of a channel mostly lie within a fraction of the range of its sums. Where they are less
than 2**16 apart, sums less the channel's center, saturated to 16 bits, give the same answers: trees
take 32 pixels at a time, planes half of the bytes, and no sum is scaled. Images where they are not,
or where rounding hides T, take the way through float32.

Count, 32 codebooks of 16 entries: 2700 instructions an image to find the thresholds, and 1200 to
write the padding, where finishing 32 channels of 32x32 pixels in float32 takes 14 000. Of 8x8
pixels that takes 900: float32 it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lutcc.ir.module import Operation
from lutcc.schedules.intrinsics import words
from lutcc.schedules.x86 import lut_conv2d, word_trees
from lutcc.schedules.x86.context import StageContext
from lutcc.schedules.x86.emit import (
    LANES,
    Expr,
    View,
    bind,
    cast,
    equal,
    local,
    loop,
    select,
    shuffle,
    splat,
)
from lutcc.schedules.x86.images import Geometry
from lutcc.schedules.x86.pack import round_up
from lutcc.schedules.x86.pack_images import NARROW_ROWS
from lutcc.schedules.x86.pack_words import WORD_THRESHOLDS, word_slots
from lutcc.schedules.x86.plane_conv2d import PlaneConvolution
from lutcc.schedules.x86.planes import Planes, Window

_LEAST, _MOST = -(1 << 15), (1 << 15) - 1
#: Instructions to find 16 thresholds, and to finish 16 sums in float32.
_TO_FIND, _TO_FINISH = 84, 7
_WIDTH = WORD_THRESHOLDS  # of a codebook; as many as a permute of words takes


def applies(ctx: StageContext, conv: Operation, trees: Operation) -> bool:
    """Tell whether the trees of a ``lut_conv2d`` may compare a convolution's sums in 16 bits."""
    depth, activation = trees.operands[1].type.size(1), str(conv.attr("activation"))
    numbers = [ctx.array(trees.operands[2])[:, 1:], ctx.array(trees.operands[4])]
    if not _pays(conv, trees):
        return False
    finite = all(bool(np.isfinite(array).all()) for array in numbers)
    if not finite or 2**depth > _WIDTH or not lut_conv2d.in_words(ctx, trees):
        return False
    units, bias = (ctx.array(value) for value in conv.operands[2:])
    usable = bool((units > 0).all() and np.isfinite(units).all() and np.isfinite(bias).all())
    if activation == "relu":
        return usable and bool((ctx.array(trees.operands[4]) >= 0).all())
    return usable and activation == "none"


def _pays(conv: Operation, trees: Operation) -> bool:
    """Whether finding thresholds takes less than finishing the sums, by counts of instructions."""
    shape, entries = Geometry.of(conv), trees.operands[2].type.size(1)
    found = trees.operands[2].type.size(0) * -(-entries // LANES) * _TO_FIND
    return found < shape.pixels * -(-shape.outputs // LANES) * _TO_FINISH


@dataclass(frozen=True)
class NarrowPlanes:
    """Planes of a convolution's sums in 16 bits, and thresholds among them, for each image.

    Attributes
    ----------
    conv
        Gives the sums.
    planes
        Of int16, what the trees read.
    nodes, channels
        What is known of each node and channel: 16 numbers for each of ``NARROW_ROWS``.
    vectors
        How many vectors of nodes a codebook has.
    codebooks
        Of trees.
    thresholds
        (codebooks, 32) int16, found.
    starts, outside
        By channel, found: what sums begin with, int32, and what stands outside the image, int16.
    floor
        Whether some node is above every sum: then no number is the least of int16.
    slots
        Which node each threshold is of, where they are not in heap order.
    """

    conv: PlaneConvolution
    planes: Planes
    nodes: View
    channels: View
    vectors: int
    codebooks: int
    thresholds: View
    starts: View
    outside: View
    floor: bool
    slots: tuple[int, ...] | None

    @classmethod
    def take(cls, ctx: StageContext, conv: PlaneConvolution, trees: Operation) -> NarrowPlanes:
        """Pack the constants and assign room."""
        _, dims, vals, tables, outside = trees.operands
        window, relu = Window.of(trees), conv.op.attr("activation") == "relu"
        sources = [ctx.ref(value) for value in (dims, vals, *conv.op.operands[1:], outside)]
        as_words = word_trees.fit(ctx.isa, vals.type.size(1))
        codebooks = tables.type.size(0) if as_words else round_up(tables.type.size(0), 4)
        vectors = -(-vals.type.size(1) // LANES)
        taps = len(window.taps)
        nodes = ctx.blob.add(
            "narrow_nodes", "float32", sources, taps=taps, codebooks=codebooks, relu=relu
        )
        channels = ctx.blob.add("narrow_channels", "float32", sources, taps=taps, relu=relu)
        length = round_up(conv.shape.outputs, LANES)
        return cls(
            conv,
            Planes.take(window, "int16", ctx.scratch),
            nodes,
            channels,
            vectors,
            codebooks,
            ctx.scratch.take(codebooks * _WIDTH, "int16"),
            ctx.scratch.take(length, "int32"),
            ctx.scratch.take(length, "int16"),
            relu and bool((ctx.array(vals)[:, 1:] < 0).any()),
            tuple(word_slots(dims.type.size(1))) if as_words else None,
        )

    def find(self, unit: Expr) -> Expr:
        """Find thresholds and centers of an image whose integers stand for ``unit`` each.

        Returns
        -------
        Expr
            Whether 16 bits will do.
        """
        bad = local(LANES, "int32")
        bad.store(0, splat(0, "int32"), LANES)
        with loop(self.codebooks) as c:
            for part in range(self.vectors):
                rows = self._rows(self.nodes, bind(c * self.vectors + part), unit)
                value, wrong = rows.threshold()
                bad.store(0, bad.load(0, LANES) | wrong, LANES)
                self._put(c, part, bind(cast("int16x16", value)))
        with loop(round_up(self.conv.shape.outputs, LANES) // LANES) as k:
            rows = self._rows(self.channels, k, unit)
            center, out, wrong = rows.channel()
            bad.store(0, bad.load(0, LANES) | wrong, LANES)
            shifts = self.conv.shifts
            begin = splat(0, "int32") if shifts is None else shifts.load(k * LANES, LANES)
            self.starts.store(k * LANES, begin - center, LANES)
            self.outside.store(k * LANES, cast("int16x16", out), LANES)
        found = local(1, "int32")
        found.store(0, bad.load(0))
        with loop(LANES - 1) as k:
            found.store(0, found.load(0) | bad.load(k + 1))
        return equal(found.load(0), 0)

    def _put(self, codebook: Expr, part: int, value: Expr) -> None:
        """Store 16 thresholds of a codebook, in heap order, as its trees read them."""
        at = bind(codebook * _WIDTH)
        if self.slots is None:
            self.thresholds.store(at + part * LANES, value, LANES)
        else:
            self.thresholds.store(at, shuffle([value, value], self.slots), _WIDTH)

    def emit(self) -> None:
        """Emit the products of an image, into the planes."""
        if self.planes.window.stride == (1, 1):
            self.planes.frame(self.outside, top=True)
        else:
            self.planes.clear(self.outside)
        self.conv.products(self.planes, self.starts, self._narrowed)

    def _narrowed(self, _: Expr, sums: Expr) -> Expr:
        """Return 16 sums, from their channel's center, as int16."""
        if self.floor:
            least = splat(_LEAST + 1, "int32")
            sums = bind(select(sums > least, sums, least))
        return words.narrow(sums)

    def _rows(self, table: View, index: Expr, unit: Expr) -> _Rows:
        here = table.at(bind(index * (len(NARROW_ROWS) * LANES)))
        rows = {name: bind(here.load(i * LANES, LANES)) for i, name in enumerate(NARROW_ROWS)}
        factor = bind(splat(unit) * rows.pop("unit"))
        return _Rows(factor, **rows, wide=self.conv.wide)


@dataclass(frozen=True)
class _Rows:
    """16 thresholds, and the channels that they are compared with.

    Attributes
    ----------
    factor, bias
        What sums are multiplied with, and then raised by.
    level
        What results are compared with; -infinity: always below.
    reach
        No sum is larger in magnitude.
    middle
        The result at the channel's center, about.
    outside
        Of the channel: the number outside the image.
    wide
        Whether 16 numbers are one register.
    """

    factor: Expr
    bias: Expr
    level: Expr
    reach: Expr
    middle: Expr
    outside: Expr
    wide: bool

    def threshold(self) -> tuple[Expr, Expr]:
        """Return thresholds from their centers on, and -1 where they do not fit."""
        last, valid, after = self._last_below(self.level)
        most = splat(_MOST, "int32")
        never = last >= cast("int32x16", self.reach)
        away = bind(last - self.center())
        fits = _flag(away >= splat(_LEAST, "int32")) & _flag(away < most)
        fits = bind((fits | _flag(never)) & valid)
        # What is outside the image must be a sum of its own, between two thresholds.
        hidden = _flag(self.level < self.outside) & _none(_flag(after <= self.outside))
        always = _flag(equal(self.level, splat(-np.inf)))
        value = bind(select(never, most, away))
        value = select(equal(always, splat(-1, "int32")), splat(_LEAST, "int32"), value)
        return bind(value), bind((_none(fits) | hidden) & _none(always))

    def channel(self) -> tuple[Expr, Expr, Expr]:
        """Return centers, what stands outside the image in 16 bits, and -1 where there is none."""
        last, valid, _ = self._last_below(self.level)
        center = self.center()
        away = bind(last - center)
        away = bind(select(away < splat(_MOST, "int32"), away, splat(_MOST, "int32")))
        least = splat(_LEAST + 1, "int32")
        return center, bind(select(away > least, away, least)), bind(_none(valid))

    def center(self) -> Expr:
        """Return the sums about which the thresholds of channels lie."""
        return bind(cast("int32x16", self._guess(self.middle)))

    def _guess(self, result: Expr) -> Expr:
        """Return about which sum gives a result, within one of those that can be."""
        most = bind(self.reach + splat(1.0))
        sums = bind((result - self.bias) / self.factor)
        sums = bind(select(sums < most, sums, most))
        least = bind(splat(0.0) - most)
        return bind(select(sums > least, sums, least))

    def _last_below(self, level: Expr) -> tuple[Expr, Expr, Expr]:
        """Return the last sum whose result is not above a level, how sure that is, what follows.

        -1 where it is sure; what follows is the result of the next sum, or infinity.
        """
        guess = bind(cast("int32x16", self._guess(level)))
        results = []
        for step in (-1, 0, 1, 2):
            sums = cast("float32x16", bind(guess + splat(step, "int32")))
            results.append(self._result(sums))
        below = [bind(_flag(result <= level)) for result in results]
        above = [bind(_flag(result > level)) for result in results]
        last = guess - splat(2, "int32")
        for flag in below:
            last = last - flag
        after = splat(np.inf)
        for flag, result in zip(reversed(above), reversed(results), strict=True):
            after = bind(select(equal(flag, splat(-1, "int32")), result, after))
        number = bind(cast("float32x16", guess))
        first = _flag(number - splat(1.0) <= splat(0.0) - self.reach)
        end = _flag(number + splat(2.0) >= self.reach)
        valid = (below[0] | (first & above[0])) & (above[3] | (end & below[3]))
        return bind(last), bind(valid), after

    def _result(self, sums: Expr) -> Expr:
        """Return what a convolution makes of sums, before its activation."""
        return PlaneConvolution.scaled(sums, self.factor, self.bias, wide=self.wide)


def _flag(condition: Expr) -> Expr:
    """Return -1 where a condition holds, else 0."""
    return bind(select(condition, splat(-1, "int32"), splat(0, "int32")))


def _none(flag: Expr) -> Expr:
    """Return 0 for -1, and -1 for 0."""
    return splat(-1, "int32") - flag
