"""``layer_norm``: one pass sums a row, one normalises it, from the L1 cache.

The sums are of x - a and (x - a)^2, a the mean of the first vector: by Cauchy and Schwarz (mean -
a)^2 is at most D / 16 times the variance, so that the difference of the two sums loses at most
log2(1 + D / 16) bits, and mostly none. A row of equal numbers gives a difference of 0.

Count, for a vector: 5 instructions and its loads for the sums, 3 and two loads (gamma and beta) and
a store for the result. For (128, 384) in L2, fused with a residual, 64 bytes of each of two inputs
are read and 64 written: at 64 bytes a cycle 3 cycles, which is the limit of a vector; loads from L1
(6, two a cycle) take the same 3. Measured on Zen 5: 6.6 cycles, 4.8 us, where an addition alone
takes 2.5 us; what is left is the latency of the sums over lanes and of the root, once a row.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm.tirx as tir

from lutcc.ir.module import Operation
from lutcc.schedules.x86.emit import LANES, Expr, bind, const, fma, select, shuffle, splat
from lutcc.schedules.x86.row_sums import Piece, Totals
from lutcc.schedules.x86.vector_math import sum_of_lanes


class Normaliser:
    """The sums of a row, then its mean and spread."""

    def __init__(self, op: Operation, columns: int) -> None:
        eps = op.attr("eps")
        assert isinstance(eps, float)
        self.eps, self.columns = eps, columns

    def begin(self, first: Callable[[], Expr]) -> None:
        """Take the mean of the first vector (of a power of two of columns) as origin."""
        count = min(LANES, 1 << (self.columns.bit_length() - 1))
        vector = first()
        vector = vector if count == LANES else bind(shuffle([vector], range(count)))
        self.origin = bind(sum_of_lanes([vector]) * const(1 / count, "float32"))
        self.sums, self.squares = Totals(), Totals()

    def add(self, value: Expr, piece: Piece) -> None:
        """Sum the distances from the origin and their squares."""
        far = piece.masked(bind(value - splat(self.origin)), 0.0)
        self.sums.update(piece, lambda total: total + far)
        self.squares.update(piece, lambda total: fma(far, far, total))

    def end(self) -> None:
        """Find mean and spread."""
        share = const(1 / self.columns, "float32")
        shift = bind(sum_of_lanes(self.sums.vectors()) * share)
        mean_square = bind(sum_of_lanes(self.squares.vectors()) * share)
        variance = bind(fma(const(0.0, "float32") - shift, shift, mean_square, 1))
        zero = const(0.0, "float32")
        variance = bind(select(variance < zero, zero, variance)) + const(self.eps, "float32")
        root = tir.call_llvm_pure_intrin("float32", "llvm.sqrt.f32", variance)
        self.factor = bind(const(1.0, "float32") / root)
        self.shift = bind((zero - shift) * self.factor)

    def apply(self, value: Expr, operand: Callable[[int], Expr]) -> Expr:
        """Return the normalised vector, scaled and shifted."""
        far = bind(value - splat(self.origin))
        normal = bind(fma(far, splat(self.factor), splat(self.shift)))
        return fma(normal, operand(1), operand(2))


CHAIN = (Normaliser,)
