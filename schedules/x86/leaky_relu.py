"""``leaky_relu`` in registers: a product, a comparison, a blend."""

from __future__ import annotations

from collections.abc import Callable

from lutcc.ir.module import Operation
from lutcc.schedules.x86.emit import Expr, bind, select, splat
from lutcc.schedules.x86.vector_math import lanes_of


def apply(op: Operation, value: Expr, operand: Callable[[int], Expr]) -> Expr:
    """Return ``value * slope`` where ``value`` is negative; NaN stays NaN."""
    value = bind(value)
    lanes = lanes_of(value)
    slope = splat(float(op.attr("slope")), "float32", lanes)  # type: ignore[arg-type]
    return bind(select(value < splat(0.0, "float32", lanes), value * slope, value))
