"""``lut_dequantize`` in registers: convert, one fused multiply-add, activation."""

from __future__ import annotations

from collections.abc import Callable

from lutcc.ir.module import Operation
from lutcc.schedules.x86.activation import activated
from lutcc.schedules.x86.emit import Expr, cast, fma


def apply(op: Operation, value: Expr, operand: Callable[[int], Expr]) -> Expr:
    """Return 16 results from 16 sums; ``operand(i)`` gives 16 lanes of operand ``i``."""
    value = fma(cast("float32x16", value), operand(1), operand(2))
    return activated(str(op.attr("activation")), value)
