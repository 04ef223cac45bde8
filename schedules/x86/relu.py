"""``relu`` in registers."""

from __future__ import annotations

from collections.abc import Callable

from lutcc.ir.module import Operation
from lutcc.schedules.x86.activation import activated
from lutcc.schedules.x86.emit import Expr


def apply(op: Operation, value: Expr, operand: Callable[[int], Expr]) -> Expr:
    """Return ``max(value, 0)``; NaN stays NaN."""
    return activated("relu", value)
