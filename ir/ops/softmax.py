"""``softmax``: exponentials of each row, divided by their sum."""

from __future__ import annotations

import numpy as np

from lutcc.ir.spec import Bindings, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return (N, D) float32."""
    b.size("D")
    return (TensorType((b["N"], b["D"]), "float32"),)


def reference(run: Run, x: Array) -> tuple[Array, ...]:
    """Compute in float64 and round once."""
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64)
        exps = np.exp(wide - wide.max(axis=1, keepdims=True))
        return ((exps / exps.sum(axis=1, keepdims=True)).astype(np.float32),)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """About sixteen operations for each element, most of them the exponential's."""
    size = results[0].nbytes
    return OpCost(flops=16 * (size // 4), bytes_read=size, bytes_written=size)


OP = OpDef(
    name="softmax",
    summary="Softmax over the columns of each row.",
    definition=(
        "y[n, d] = e^(x[n, d] - a) / (sum over k of e^(x[n, k] - a)), where a = max x[n, :]. "
        "Computed in float64, rounded once; a backend may be off by the tolerance times y, and may "
        "give 0 below 1e-37. -inf gives 0; a row with a NaN or +inf, or of -inf alone, gives NaN."
    ),
    source="torch.nn.functional.softmax",
    operands=(Operand("x", ("N", "D"), "float32", "rows", rows=True),),
    attrs=(),
    results=("y",),
    infer=infer,
    reference=reference,
    cost=cost,
    rowwise=True,
    tolerance=1e-5,
)
