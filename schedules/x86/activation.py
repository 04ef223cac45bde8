"""``activation`` in registers, by itself or at the end of a product."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lutcc.ir.module import Operation
from lutcc.schedules.x86 import vector_math
from lutcc.schedules.x86.emit import Expr, bind, select, splat

_FORMULAS: Mapping[str, Callable[[Expr], Expr]] = {
    "gelu": vector_math.gelu,
    "gelu_tanh": vector_math.gelu_tanh,
    "silu": vector_math.silu,
    "sigmoid": vector_math.sigmoid,
    "tanh": vector_math.tanh,
    "hardswish": vector_math.hardswish,
    "hardsigmoid": vector_math.hardsigmoid,
    "elu": vector_math.elu,
    "softplus": vector_math.softplus,
    "mish": vector_math.mish,
}


def apply(op: Operation, value: Expr, operand: Callable[[int], Expr]) -> Expr:
    """Return the function of a vector that the attribute ``kind`` names."""
    return activated(str(op.attr("kind")), value)


def activated(kind: str, value: Expr) -> Expr:
    """Return an activation, ``none`` and ``relu`` included, of 8 or 16 lanes.

    NaN stays NaN; relu keeps minus zero (``vmaxps`` with the value second).
    """
    if kind == "none":
        return value
    if kind != "relu":
        return _FORMULAS[kind](value)
    value = bind(value)
    zero = splat(0.0, "float32", vector_math.lanes_of(value))
    return bind(select(zero > value, zero, value))
