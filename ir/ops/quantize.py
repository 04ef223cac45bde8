"""``quantize``: float32 to uint8 with a scale and a zero point per column."""

from __future__ import annotations

import numpy as np

from lutcc.ir.arithmetic import fma32
from lutcc.ir.spec import Bindings, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return uint8 of the same shape."""
    b.size("M")
    return (TensorType((b["N"], b["M"]), "uint8"),)


def reference(run: Run, x: Array, scale: Array, zero: Array) -> tuple[Array, ...]:
    """Fused multiply-add, round half to even, clamp; NaN becomes 0."""
    rounded = np.rint(fma32(x, scale, zero))
    return (np.clip(np.where(np.isnan(rounded), 0, rounded), 0, 255).astype(np.uint8),)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """Two FLOPs per element."""
    return OpCost(
        flops=2 * b.size("N") * b.size("M"),
        bytes_read=sum(t.nbytes for t in b.types),
        bytes_written=results[0].nbytes,
    )


OP = OpDef(
    name="quantize",
    summary="float32 to uint8 with a scale and a zero point per column.",
    definition=(
        "q[n, m] = clamp(round_half_even(fma(x[n, m], scale[m], zero[m])), 0, 255); NaN becomes 0."
    ),
    source="lutcc",
    operands=(
        Operand("x", ("N", "M"), "float32", "values", rows=True),
        Operand("scale", ("M",), "float32", "steps per unit"),
        Operand("zero", ("M",), "float32", "step that stands for 0"),
    ),
    attrs=(),
    results=("q",),
    infer=infer,
    reference=reference,
    cost=cost,
    rowwise=True,
)
