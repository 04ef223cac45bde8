"""``add`` in registers."""

from __future__ import annotations

from collections.abc import Callable

from lutcc.ir.module import Operation
from lutcc.schedules.x86.emit import Expr


def apply(op: Operation, value: Expr, operand: Callable[[int], Expr]) -> Expr:
    """Return the sum of the two operands."""
    return value + operand(1)
