"""``quantize`` in registers; inside a fused group the integers travel as float32."""

from __future__ import annotations

from collections.abc import Callable

from lutcc.ir.module import Operation
from lutcc.schedules.x86.emit import Expr, bind, fma, rint, select, splat


def apply(op: Operation, value: Expr, operand: Callable[[int], Expr]) -> Expr:
    """Return ``clamp(round(value * scale + zero), 0, 255)`` as float32; NaN gives 0.

    Clamping before rounding gives the same integer, as 0 and 255 are integers themselves.
    """
    scaled = bind(fma(value, operand(1), operand(2)))
    positive = bind(select(scaled > splat(0.0), scaled, splat(0.0)))
    return rint(select(positive < splat(255.0), positive, splat(255.0)))
