"""``affine``: a scale and a shift per column."""

from __future__ import annotations

from lutcc.ir.arithmetic import fma32
from lutcc.ir.spec import Bindings, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return (N, F) float32."""
    b.size("F")
    return (TensorType((b["N"], b["F"]), "float32"),)


def reference(run: Run, x: Array, scale: Array, shift: Array) -> tuple[Array, ...]:
    """One fused multiply-add per element."""
    return (fma32(x, scale, shift),)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """Two FLOPs per element."""
    return OpCost(
        flops=2 * b.size("N") * b.size("F"),
        bytes_read=sum(t.nbytes for t in b.types),
        bytes_written=results[0].nbytes,
    )


OP = OpDef(
    name="affine",
    summary="A scale and a shift per column.",
    definition="y[n, f] = fma(x[n, f], scale[f], shift[f]), rounded once to float32.",
    source="what batch_norm becomes at inference",
    operands=(
        Operand("x", ("N", "F"), "float32", "rows", rows=True),
        Operand("scale", ("F",), "float32", "factor of each column"),
        Operand("shift", ("F",), "float32", "added to each column"),
    ),
    attrs=(),
    results=("y",),
    infer=infer,
    reference=reference,
    cost=cost,
    rowwise=True,
)
