"""``clamp`` in registers: a comparison and a blend for each end."""

from __future__ import annotations

from collections.abc import Callable

from lutcc.ir.module import Operation
from lutcc.schedules.x86.emit import Expr, bind, select, splat
from lutcc.schedules.x86.vector_math import lanes_of


def apply(op: Operation, value: Expr, operand: Callable[[int], Expr]) -> Expr:
    """Return ``value`` cut off below ``low`` and above ``high``; NaN stays NaN."""
    value = bind(value)
    for name, beyond in (("low", lambda v, end: v < end), ("high", lambda v, end: v > end)):
        if op.has_attr(name):
            end = splat(float(op.attr(name)), "float32", lanes_of(value))  # type: ignore[arg-type]
            value = bind(select(beyond(value, end), end, value))
    return value
