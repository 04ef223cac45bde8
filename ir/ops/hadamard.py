"""``hadamard``: the Walsh-Hadamard transform of each row."""

from __future__ import annotations

import numpy as np

from lutcc.ir.spec import AttrSpec, Bindings, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType


def padded_size(columns: int) -> int:
    """Return the power of two that rows of ``columns`` elements are padded to.

    Examples
    --------
    >>> [padded_size(d) for d in (1, 3, 512, 768)]
    [1, 4, 512, 1024]
    """
    return 1 << (columns - 1).bit_length()


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return (N, n) float32, where n is the power of two not below D."""
    return (TensorType((b["N"], padded_size(b.size("D"))), "float32"),)


def reference(run: Run, x: Array) -> tuple[Array, ...]:
    """Butterflies in float64, then the scale, rounded once."""
    rows, width = run.results[0].shape
    y = np.zeros((rows, width), np.float64)
    y[:, : x.shape[1]] = x
    half = 1
    with np.errstate(all="ignore"):
        while half < width:
            pairs = y.reshape(rows, width // (2 * half), 2, half)
            y = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], 2)
            half *= 2
        y = y.reshape(rows, width) * run.attrs.float("scale")
        return (y.astype(np.float32),)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """Per row, n log2(n) additions, as in the paper's tables.

    The scale is not counted: kernels fold it into what follows, or apply it in passing.
    """
    width = padded_size(b.size("D"))
    return OpCost(
        flops=b.size("N") * width * (width.bit_length() - 1),
        bytes_read=b.type("x").nbytes,
        bytes_written=results[0].nbytes,
    )


OP = OpDef(
    name="hadamard",
    summary="The Walsh-Hadamard transform of each row.",
    definition=(
        "y[n, j] = scale * sum over i < D of x[n, i] * H[i, j], with H[i, j] = (-1)**popcount(i & "
        "j) (Sylvester's order, unnormalised: H H = n I); a row is padded with zeros to n columns, "
        "the power of two not below D. A layer that wants an orthogonal transform passes scale = "
        "n**-0.5. The reference computes in float64; a backend may be off by the tolerance times "
        "scale * (sum of |x|)."
    ),
    source="Zeng et al., LookupFFN, section 3.2",
    operands=(Operand("x", ("N", "D"), "float32", "rows", rows=True),),
    attrs=(AttrSpec("scale", "float", "factor of every element", default=1.0),),
    results=("y",),
    infer=infer,
    reference=reference,
    cost=cost,
    rowwise=True,
    tolerance=2e-6,
)
