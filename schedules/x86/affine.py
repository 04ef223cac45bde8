"""``affine`` in registers: one fused multiply-add."""

from __future__ import annotations

from collections.abc import Callable

from lutcc.ir.module import Operation
from lutcc.schedules.x86.emit import Expr, fma


def apply(op: Operation, value: Expr, operand: Callable[[int], Expr]) -> Expr:
    """Return ``value * scale + shift``."""
    return fma(value, operand(1), operand(2))
