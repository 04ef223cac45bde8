"""``lut_dequantize``: integer sums to float32 by one fused multiply-add, and an activation."""

from __future__ import annotations

import numpy as np

from lutcc.ir.arithmetic import activate, fma32
from lutcc.ir.spec import AttrSpec, Bindings, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType

ACTIVATION = AttrSpec(
    "activation", "str", "applied to the result", default="none", choices=("none", "relu")
)


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return float32 of the accumulator's shape."""
    b.size("M")
    return (TensorType((b["N"], b["M"]), "float32"),)


def reference(run: Run, acc: Array, scale: Array, offset: Array) -> tuple[Array, ...]:
    """Round the sum to float32, then one fused multiply-add per element."""
    return (activate(fma32(acc.astype(np.float32), scale, offset), run.attrs.str("activation")),)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """Two FLOPs per element."""
    return OpCost(
        flops=2 * b.size("N") * b.size("M"),
        bytes_read=sum(t.nbytes for t in b.types),
        bytes_written=results[0].nbytes,
    )


OP = OpDef(
    name="lut_dequantize",
    summary="Integer sums to float32: scale, offset (bias and table offsets in it), activation.",
    definition=(
        "y[n, m] = activation(fma(float32(acc[n, m]), scale[m], offset[m])): the integer is "
        "rounded to the nearest float32 "
        "(exact below 2**24), the fused multiply-add rounds once; relu(v) is 0 if v < 0, else v."
    ),
    source="McCarter and Dronen, Look-ups are not (yet) all you need, equation 3",
    operands=(
        Operand("acc", ("N", "M"), "int32", "sums of table entries", rows=True),
        Operand("scale", ("M",), "float32", "value of one unit of the sum"),
        Operand("offset", ("M",), "float32", "added to the scaled sum"),
    ),
    attrs=(ACTIVATION,),
    results=("y",),
    infer=infer,
    reference=reference,
    cost=cost,
    rowwise=True,
)
