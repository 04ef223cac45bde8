"""``relu``: the rectifier."""

from __future__ import annotations

from lutcc.ir.arithmetic import relu32
from lutcc.ir.spec import Bindings, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return the type of x, row-major."""
    return (TensorType(b.type("x").shape, "float32"),)


def reference(run: Run, x: Array) -> tuple[Array, ...]:
    """Replace negative values by zero."""
    return (relu32(x),)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """One FLOP per element."""
    size = results[0].nbytes
    return OpCost(flops=size // 4, bytes_read=size, bytes_written=size)


OP = OpDef(
    name="relu",
    summary="The rectifier.",
    definition="y = 0 if x < 0 else x, so NaN passes.",
    source="torch.nn.functional.relu",
    operands=(Operand("x", None, "float32", "any shape", rows=True),),
    attrs=(),
    results=("y",),
    infer=infer,
    reference=reference,
    cost=cost,
    rowwise=True,
)
