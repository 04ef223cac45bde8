"""``clamp``: each element cut off at two ends."""

from __future__ import annotations

import numpy as np

from lutcc.ir.spec import AttrSpec, Bindings, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return the type of x, row-major."""
    return (TensorType(b.type("x").shape, "float32"),)


def reference(run: Run, x: Array) -> tuple[Array, ...]:
    """Replace what is below or above; NaN is neither."""
    y = np.asarray(x, np.float32)
    if "low" in run.attrs:
        low = np.float32(run.attrs.float("low"))
        y = np.where(y < low, low, y)
    if "high" in run.attrs:
        high = np.float32(run.attrs.float("high"))
        y = np.where(y > high, high, y)
    return (y,)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """Two FLOPs per element."""
    size = results[0].nbytes
    return OpCost(flops=2 * (size // 4), bytes_read=size, bytes_written=size)


OP = OpDef(
    name="clamp",
    summary="Each element cut off at two ends.",
    definition=(
        "y = low if x < low, else x; then y = high if y > high, else y, with the ends rounded to "
        "float32: so NaN passes, and high holds where low is greater. An end that is not given "
        "cuts nothing off."
    ),
    source="torch.clamp, torch.nn.functional.relu6 and hardtanh",
    operands=(Operand("x", None, "float32", "any shape", rows=True),),
    attrs=(
        AttrSpec("low", "float", "the least result", optional=True),
        AttrSpec("high", "float", "the greatest result", optional=True),
    ),
    results=("y",),
    infer=infer,
    reference=reference,
    cost=cost,
    rowwise=True,
)
