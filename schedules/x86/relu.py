"""``relu`` in registers."""

from __future__ import annotations

from collections.abc import Callable

from lutcc.ir.module import Operation
from lutcc.schedules.x86.emit import Expr, bind, select, splat


def apply(op: Operation, value: Expr, operand: Callable[[int], Expr]) -> Expr:
    """Return ``max(value, 0)``; NaN stays NaN (``vmaxps`` with the value second)."""
    value = bind(value)
    zero = splat(0.0)
    return select(zero > value, zero, value)


def activate(op: Operation, value: Expr) -> Expr:
    """Apply the ``activation`` attribute of an operation."""
    if op.has_attr("activation") and op.attr("activation") == "relu":
        return apply(op, value, lambda _: value)
    return value
