"""The integer mode of ``weighted_gather``: quantised scores times int8 table rows.

Four looked-up rows are interleaved so that each 32-bit lane holds one output's entry of four
tables; an instruction or two multiply them by four weights and add. Per 128 multiply-adds that is
20 instructions with AVX2 (of 32 bytes) and 12 with VNNI (of 64 bytes, for 256 of them), besides
four loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lutcc.schedules.intrinsics import streaming, x86
from lutcc.schedules.x86.context import Row, StageContext
from lutcc.schedules.x86.emit import (
    LANES,
    Expr,
    View,
    bind,
    both,
    cast,
    const,
    i64,
    local,
    loop,
    registers,
    reinterpret,
    rint,
    select,
    shuffle,
    splat,
)
from lutcc.schedules.x86.isa import Isa
from lutcc.schedules.x86.pack import CHUNK, round_up

_FLOAT_MAX = 3.4028234663852886e38


@dataclass(frozen=True)
class Quantiser:
    """What turns a row's scores into integers.

    Attributes
    ----------
    inverse
        127 over the largest magnitude, or 0 where that is not finite.
    unit
        What one weight stands for.
    """

    inverse: Expr
    unit: Expr

    def apply(self, scores: Expr) -> Expr:
        """Return 16 weights as uint8 (of the two's complement)."""
        return cast("uint8x16", self.integers(scores))

    def integers(self, scores: Expr) -> Expr:
        """Return 16 weights as int32."""
        factor = splat(self.inverse)
        rounded = rint(scores * factor)
        usable = select(factor > splat(0.0), rounded, splat(0.0))
        return cast("int32x16", usable)


def quantiser(scores: Row, count: int) -> Quantiser:
    """Look at a row of ``count`` scores, with room for 16 more, whose padding is cleared."""
    padded = round_up(count, CHUNK)
    for lane in range(count, padded):
        scores.view.store(lane, const(0.0, "float32"))
    return quantiser_of(largest_bits(scores.view, padded))


def largest_bits(values: View, count: int) -> Expr:
    """Return the largest magnitude of ``count`` numbers, a multiple of 16, as the bits it has.

    Magnitudes compare as integers; NaN is above infinity, so it wins.
    """
    largest = registers(1, "int32", LANES)
    largest.set(0, splat(0, "int32"))
    with loop(count // CHUNK) as k:
        bits = reinterpret("int32x16", values.load(k * CHUNK, LANES))
        bits = bind(bits & splat(0x7FFFFFFF, "int32"))
        most = largest.get(0)
        largest.set(0, select(bits > most, bits, most))
    value = largest.get(0)
    for half in (8, 4, 2, 1):
        other = bind(shuffle([value], [lane ^ half for lane in range(LANES)]))
        value = bind(select(other > value, other, value))
    lanes = local(LANES, "int32")
    lanes.store(0, value, LANES)
    return lanes.load(0)


def quantiser_of(bits: Expr) -> Quantiser:
    """Return what turns numbers into integers whose largest magnitude has these bits."""
    most = bind(reinterpret("float32", bits))
    inverse = bind(const(127.0, "float32") / most)
    limit = const(_FLOAT_MAX, "float32")
    finite = both(most <= limit, inverse <= limit)
    usable = bind(select(finite, inverse, const(0.0, "float32")))
    return Quantiser(usable, bind(most / const(127.0, "float32")))


def unpack(lanes: int, size: int, *, high: bool) -> list[int]:
    """Return the bytes that interleave halves of 16-byte lanes of two vectors by ``size`` bytes.

    Examples
    --------
    >>> unpack(16, 4, high=False)
    [0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23]
    """
    picks = []
    for lane in range(0, lanes, 16):
        for piece in range(8 // size):
            start = lane + 8 * high + piece * size
            picks += [*range(start, start + size), *range(lanes + start, lanes + start + size)]
    return picks


class Int8Kernel:
    """Sums of one row's slice in int32 registers."""

    def __init__(self, ctx: StageContext, queue: Any) -> None:
        self.queue, self.gather, self.isa = queue, queue.gather, ctx.isa
        self.acc = registers(self.gather.chunks, "int32", LANES)
        self.parts = self.gather.columns // ctx.isa.vector_bytes

    def start(self, row: Expr, *, first: bool) -> None:
        """Begin with zeros, or with what earlier groups summed."""
        for k in range(self.gather.chunks):
            at = row * self.gather.columns + k * LANES
            value = splat(0, "int32") if first else self.queue.partial.load(at, LANES)
            self.acc.set(k, value)

    def add(self, base: Expr, slot: Expr, size: int) -> None:
        """Add ``size`` weighted table rows."""
        if self.gather.signed:
            self._add_signed(base, slot, size)
            return
        vector, width = self.isa.vector_bytes, self.gather.columns
        sums = [self._split(self.acc.get(k)) for k in range(self.gather.chunks)]
        flat = [part for pair in sums for part in pair]
        for quad in range(0, size, 4):  # codes past the last one have weight 0
            four = self.queue.weights.as_dtype("int32").load((slot + quad) // i64(4))
            weights = bind(reinterpret(f"uint8x{vector}", splat(four, "int32", vector // 4)))
            rows = [
                bind((base + cast("int64", self.queue.rows.load(slot + quad + k))) * width)
                for k in range(4)
            ]
            for part in range(self.parts):
                found = [bind(self.gather.table.load(row + part * vector, vector)) for row in rows]
                for a, entries in enumerate(interleaved(found, vector)):
                    index = part * 4 + a
                    flat[index] = dot(self.isa, flat[index], weights, entries)
        for k in range(self.gather.chunks):
            self.acc.set(k, self._joined(flat, k))

    def _split(self, value: Expr) -> list[Expr]:
        """Return 16 sums as the vectors that one instruction handles."""
        if self.isa.has_avx512:
            return [value]
        return [bind(shuffle([value], range(s, s + 8))) for s in (0, 8)]

    def _joined(self, flat: Sequence[Expr], k: int) -> Expr:
        if self.isa.has_avx512:
            return flat[k]
        return shuffle([flat[2 * k], flat[2 * k + 1]], range(16))

    def _add_signed(self, base: Expr, slot: Expr, size: int) -> None:
        """Weights of either sign: plain products, for scores of unknown origin."""
        width = self.gather.columns
        for k in range(size):
            weight = splat(
                cast("int32", self.queue.weights.as_dtype("int8").load(slot + k)), "int32"
            )
            number = cast("int64", self.queue.rows.load(slot + k))
            row = bind((base + number) * width)
            for c in range(self.gather.chunks):
                entries = self.gather.table.as_dtype("int8").load(row + c * LANES, LANES)
                product = cast("int32x16", entries) * weight
                self.acc.set(c, self.acc.get(c) + product)

    def keep(self, row: Expr) -> None:
        """Leave the sums for the next group."""
        for k in range(self.gather.chunks):
            at = row * self.gather.columns + k * LANES
            self.queue.partial.store(at, self.acc.get(k), LANES)

    def results(self, row: Expr) -> list[Expr]:
        """Return the sums times the row's unit, 16 outputs each."""
        unit = bind(splat(self.queue.units.load(row)))
        return [cast("float32x16", self.acc.get(k)) * unit for k in range(self.gather.chunks)]


def interleaved(rows: Sequence[Expr], vector: int) -> list[Expr]:
    """Return four vectors whose 32-bit lanes hold one byte of each of four rows."""
    pairs = [
        bind(shuffle([rows[i], rows[i + 1]], unpack(vector, 1, high=high)))
        for high in (False, True)
        for i in (0, 2)
    ]
    return [
        bind(shuffle([pairs[half], pairs[half + 1]], unpack(vector, 2, high=high)))
        for half in (0, 2)
        for high in (False, True)
    ]


def dot(isa: Isa, acc: Expr, weights: Expr, entries: Expr) -> Expr:
    """Return ``acc`` plus, in each 32-bit lane, the sum of four products of bytes."""
    signed = reinterpret(f"int8x{isa.vector_bytes}", entries)
    if isa.has_vbmi_vnni:
        return bind(x86.VPDPBUSD_512(acc, weights, signed))
    ones = splat(1, "int16", isa.vector_bytes // 2)
    if isa.has_avx512:
        pairs = x86.PMADDUBSW_512(weights, signed)
        return bind(streaming.keep(acc + x86.PMADDWD_512(pairs, ones), 16))
    pairs = x86.PMADDUBSW_256(weights, signed)
    return bind(streaming.keep(acc + x86.PMADDWD_256(pairs, ones), 8))
