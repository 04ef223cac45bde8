"""``linear``: an exact fully connected layer."""

from __future__ import annotations

import numpy as np

from lutcc.ir.arithmetic import activate
from lutcc.ir.ops.activation import EPILOGUE
from lutcc.ir.spec import Bindings, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return (N, M) float32."""
    b.size("D")
    b.size("M")
    return (TensorType((b["N"], b["M"]), "float32"),)


def reference(run: Run, x: Array, weight: Array, bias: Array) -> tuple[Array, ...]:
    """Multiply in float64 and round the result once."""
    with np.errstate(all="ignore"):
        y = x.astype(np.float64) @ weight.astype(np.float64).T + bias.astype(np.float64)
        return (activate(y.astype(np.float32), run.attrs.str("activation")),)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """Two FLOPs per row, input and output."""
    return OpCost(
        flops=2 * b.size("N") * b.size("D") * b.size("M"),
        bytes_read=sum(t.nbytes for t in b.types),
        bytes_written=results[0].nbytes,
    )


OP = OpDef(
    name="linear",
    summary="An exact fully connected layer.",
    definition=(
        "y[n, m] = activation(sum over d of x[n, d] * weight[m, d] + bias[m]). The reference "
        "computes in float64; a backend "
        "may be off by the tolerance times (sum of |x| |weight| + |bias| + 1)."
    ),
    source="torch.nn.functional.linear",
    operands=(
        Operand("x", ("N", "D"), "float32", "rows", rows=True),
        Operand("weight", ("M", "D"), "float32", "weights, one row per output"),
        Operand("bias", ("M",), "float32", "added to every row"),
    ),
    attrs=(EPILOGUE,),
    results=("y",),
    infer=infer,
    reference=reference,
    cost=cost,
    rowwise=True,
    tolerance=1e-5,
)
