"""``softmax``: a pass for the largest, one for exponentials and their sum, one that divides."""

from __future__ import annotations

import math
from collections.abc import Callable

from lutcc.ir.module import Operation
from lutcc.schedules.x86.emit import Expr, bind, const, select, splat
from lutcc.schedules.x86.row_sums import Piece, Totals
from lutcc.schedules.x86.vector_math import exp_of_negative, largest_lane, sum_of_lanes


class Exponentials:
    """e to the power of what each number is below the largest."""

    def __init__(self, op: Operation, columns: int) -> None:
        del op, columns

    def begin(self, first: Callable[[], Expr]) -> None:
        """Start from nothing."""
        del first
        self.largest = Totals(-math.inf)

    def add(self, value: Expr, piece: Piece) -> None:
        """Keep the largest; a NaN is met again by the exponentials."""
        value = piece.masked(bind(value), -math.inf)
        self.largest.update(piece, lambda most: select(value > most, value, most))

    def end(self) -> None:
        """Find the largest of all lanes."""
        self.most = bind(largest_lane(self.largest.vectors()))

    def apply(self, value: Expr, operand: Callable[[int], Expr]) -> Expr:
        """Return the exponentials of a vector."""
        del operand
        return exp_of_negative(value - splat(self.most))


class Shares:
    """Each number as its share of the sum."""

    def __init__(self, op: Operation, columns: int) -> None:
        del op, columns

    def begin(self, first: Callable[[], Expr]) -> None:
        """Start from nothing."""
        del first
        self.total = Totals()

    def add(self, value: Expr, piece: Piece) -> None:
        """Sum."""
        value = piece.masked(bind(value), 0.0)
        self.total.update(piece, lambda total: total + value)

    def end(self) -> None:
        """Divide once."""
        self.factor = bind(const(1.0, "float32") / sum_of_lanes(self.total.vectors()))

    def apply(self, value: Expr, operand: Callable[[int], Expr]) -> Expr:
        """Return the shares of a vector."""
        del operand
        return value * splat(self.factor)


CHAIN = (Exponentials, Shares)
