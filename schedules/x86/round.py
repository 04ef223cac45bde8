"""``round`` in registers."""

from __future__ import annotations

from collections.abc import Callable

from lutcc.ir.module import Operation
from lutcc.schedules.x86.emit import Expr, bind, rint
from lutcc.schedules.x86.vector_math import lanes_of


def apply(op: Operation, value: Expr, operand: Callable[[int], Expr]) -> Expr:
    """Return the nearest integers, of two the even one."""
    value = bind(value)
    return bind(rint(value, lanes_of(value)))
