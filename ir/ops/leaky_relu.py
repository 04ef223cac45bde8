"""``leaky_relu``: negative elements times a number."""

from __future__ import annotations

import numpy as np

from lutcc.ir.spec import AttrSpec, Bindings, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return the type of x, row-major."""
    return (TensorType(b.type("x").shape, "float32"),)


def reference(run: Run, x: Array) -> tuple[Array, ...]:
    """Multiply in float32."""
    x = np.asarray(x, np.float32)
    with np.errstate(all="ignore"):
        return (np.where(x < 0, x * np.float32(run.attrs.float("slope")), x),)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """Two FLOPs per element."""
    size = results[0].nbytes
    return OpCost(flops=2 * (size // 4), bytes_read=size, bytes_written=size)


OP = OpDef(
    name="leaky_relu",
    summary="Negative elements times a number.",
    definition=(
        "y = x * slope if x < 0, else x, with slope rounded to float32 and the product rounded "
        "once; NaN passes. Slope -1 gives the magnitude."
    ),
    source="torch.nn.functional.leaky_relu, torch.abs",
    operands=(Operand("x", None, "float32", "any shape", rows=True),),
    attrs=(AttrSpec("slope", "float", "factor of negative elements, of any sign"),),
    results=("y",),
    infer=infer,
    reference=reference,
    cost=cost,
    rowwise=True,
)
