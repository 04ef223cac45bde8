"""``add``: the sum of two tensors of one shape."""

from __future__ import annotations

import numpy as np

from lutcc.ir.spec import Bindings, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return the type of x, row-major."""
    return (TensorType(b.type("x").shape, "float32"),)


def reference(run: Run, x: Array, y: Array) -> tuple[Array, ...]:
    """Add in float32."""
    with np.errstate(all="ignore"):
        return (np.asarray(x + y, np.float32),)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """One FLOP per element."""
    size = results[0].nbytes
    return OpCost(flops=size // 4, bytes_read=2 * size, bytes_written=size)


OP = OpDef(
    name="add",
    summary="The sum of two tensors of one shape.",
    definition="z = x + y, rounded to float32.",
    source="torch.add",
    operands=(
        Operand("x", None, "float32", "any shape", rows=True),
        Operand("y", "=x", "float32", "the same shape", rows=True),
    ),
    attrs=(),
    results=("z",),
    infer=infer,
    reference=reference,
    cost=cost,
    rowwise=True,
)
