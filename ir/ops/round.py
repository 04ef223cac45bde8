"""``round``: each element to the nearest integer."""

from __future__ import annotations

import numpy as np

from lutcc.ir.spec import Bindings, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return the type of x, row-major."""
    return (TensorType(b.type("x").shape, "float32"),)


def reference(run: Run, x: Array) -> tuple[Array, ...]:
    """Round half to even."""
    return (np.rint(np.asarray(x, np.float32)),)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """One FLOP per element."""
    size = results[0].nbytes
    return OpCost(flops=size // 4, bytes_read=size, bytes_written=size)


OP = OpDef(
    name="round",
    summary="Each element to the nearest integer.",
    definition="y = the integer nearest to x, the even one of two that are as near; NaN passes.",
    source="torch.round, torch.fake_quantize_per_tensor_affine",
    operands=(Operand("x", None, "float32", "any shape", rows=True),),
    attrs=(),
    results=("y",),
    infer=infer,
    reference=reference,
    cost=cost,
    rowwise=True,
)
