"""``layer_norm``: each row brought to mean 0 and variance 1, then scaled and shifted."""

from __future__ import annotations

import numpy as np

from lutcc.ir.spec import AttrSpec, Bindings, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return (N, D) float32; eps must not be negative."""
    b.size("D")
    if b.attrs.float("eps") < 0:
        b.fail(f"attribute 'eps' is {b.attrs.float('eps')}, but it must not be negative")
    return (TensorType((b["N"], b["D"]), "float32"),)


def reference(run: Run, x: Array, gamma: Array, beta: Array) -> tuple[Array, ...]:
    """Compute in float64 and round once."""
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64)
        centred = wide - wide.mean(axis=1, keepdims=True)
        spread = np.sqrt((centred**2).mean(axis=1, keepdims=True) + run.attrs.float("eps"))
        y = centred / spread * gamma.astype(np.float64) + beta.astype(np.float64)
        return (y.astype(np.float32),)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """Eight FLOPs per element: two sums, and a difference, a product, a scale and a shift."""
    return OpCost(
        flops=8 * b.size("N") * b.size("D"),
        bytes_read=sum(t.nbytes for t in b.types),
        bytes_written=results[0].nbytes,
    )


OP = OpDef(
    name="layer_norm",
    summary="Layer normalisation over the columns of each row.",
    definition=(
        "y[n, d] = (x[n, d] - mean) / sqrt(variance + eps) * gamma[d] + beta[d], where mean and "
        "variance (of the population) are those of x[n, :]. Computed in float64, rounded once. A "
        "backend may be off by the tolerance times (|gamma[d]| (1 + max |x[n, :]| / sqrt(variance "
        "+ eps)) + |beta[d]|); a row of equal numbers gives beta, if sqrt(variance + eps) is not "
        "0. A row with a NaN or an infinity gives NaN."
    ),
    source="Ba, Kiros and Hinton, Layer normalization, equation 4; torch.nn.functional.layer_norm",
    operands=(
        Operand("x", ("N", "D"), "float32", "rows", rows=True),
        Operand("gamma", ("D",), "float32", "learned scale"),
        Operand("beta", ("D",), "float32", "learned shift"),
    ),
    attrs=(AttrSpec("eps", "float", "added to the variance", default=1e-5),),
    results=("y",),
    infer=infer,
    reference=reference,
    cost=cost,
    rowwise=True,
    tolerance=1e-5,
)
