"""``batch_norm``: batch normalisation at inference, to be folded by a pass."""

from __future__ import annotations

import numpy as np

from lutcc.ir.spec import AttrSpec, Bindings, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return (N, F) float32; eps must not be negative."""
    b.size("F")
    if b.attrs.float("eps") < 0:
        b.fail(f"attribute 'eps' is {b.attrs.float('eps')}, but it must not be negative")
    return (TensorType((b["N"], b["F"]), "float32"),)


def reference(
    run: Run, x: Array, gamma: Array, beta: Array, mean: Array, var: Array
) -> tuple[Array, ...]:
    """Compute in float64 and round once."""
    with np.errstate(all="ignore"):
        spread = np.sqrt(var.astype(np.float64) + run.attrs.float("eps"))
        y = (x.astype(np.float64) - mean) / spread * gamma.astype(np.float64) + beta
        return (y.astype(np.float32),)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """Two FLOPs per element, once the statistics are folded into a scale and a shift."""
    return OpCost(
        flops=2 * b.size("N") * b.size("F"),
        bytes_read=sum(t.nbytes for t in b.types),
        bytes_written=results[0].nbytes,
    )


OP = OpDef(
    name="batch_norm",
    summary="Batch normalisation at inference; fold_batch_norm_and_affine removes it.",
    definition=(
        "y[n, f] = (x[n, f] - mean[f]) / sqrt(var[f] + eps) * gamma[f] + beta[f]. The reference "
        "computes in float64."
    ),
    source="Ioffe and Szegedy, Batch normalization, algorithm 2",
    operands=(
        Operand("x", ("N", "F"), "float32", "rows", rows=True),
        Operand("gamma", ("F",), "float32", "learned scale"),
        Operand("beta", ("F",), "float32", "learned shift"),
        Operand("mean", ("F",), "float32", "running mean"),
        Operand("var", ("F",), "float32", "running variance"),
    ),
    attrs=(AttrSpec("eps", "float", "added to the variance", default=1e-5),),
    results=("y",),
    infer=infer,
    reference=reference,
    cost=cost,
    rowwise=True,
    tolerance=1e-5,
    lowering="folded",
)
