"""``sparse_add``: the product with a sparse matrix, added to what is there."""

from __future__ import annotations

import numpy as np

from lutcc.ir.spec import Bindings, Known, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return (N, M) float32; ``starts`` has M + 1 entries."""
    if b.size("P") != b.size("M") + 1:
        b.fail(
            f"operand 'starts' has {b.size('P')} entries, but operand 'base' has M = "
            f"{b.size('M')} columns, which take {b.size('M') + 1}"
        )
    return (TensorType((b["N"], b.size("M")), "float32"),)


def problem(starts: Array, columns: Array, width: int) -> str | None:
    """Say what is wrong with a sparse matrix of ``width`` columns; None if nothing is."""
    if starts[0] != 0 or starts[-1] != columns.size or (np.diff(starts) < 0).any():
        return f"starts must rise from 0 to the {columns.size} values"
    if columns.size and not (columns.min() >= 0 and columns.max() < width):
        bad = int(columns.min()) if columns.min() < 0 else int(columns.max())
        return f"columns holds {bad}, but x has columns 0..{width - 1}"
    return None


def check(b: Bindings, known: Known) -> None:
    """Check that the sparse matrix is one."""
    starts, columns = known.array("starts"), known.array("columns")
    if starts is not None and columns is not None:
        wrong = problem(starts, columns, b.size("K"))
        if wrong is not None:
            b.fail(f"operand {wrong}")


def reference(
    run: Run, base: Array, x: Array, starts: Array, columns: Array, values: Array
) -> tuple[Array, ...]:
    """Add the products in float64 and round once."""
    wrong = problem(starts, columns, x.shape[1])
    if wrong is not None:
        run.fail(wrong)
    with np.errstate(all="ignore"):
        y = base.astype(np.float64)
        for m in range(base.shape[1]):
            part = slice(int(starts[m]), int(starts[m + 1]))
            y[:, m] += x[:, columns[part]].astype(np.float64) @ values[part].astype(np.float64)
        return (y.astype(np.float32),)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """2 FLOPs per row and stored value."""
    return OpCost(
        flops=2 * b.size("N") * b.size("Z"),
        bytes_read=sum(t.nbytes for t in b.types),
        bytes_written=results[0].nbytes,
    )


OP = OpDef(
    name="sparse_add",
    summary="The product with a sparse matrix, added to what is there.",
    definition=(
        "y[n, m] = base[n, m] + sum over z from starts[m] to starts[m + 1] - 1 of x[n, columns[z]] "
        "* values[z]. The reference sums in float64, a backend in float32, and may be off by the "
        "tolerance times the sum of the terms' magnitudes."
    ),
    source="Yvinec et al., REx (residuals of outliers), as in JLCM, section 4.3",
    operands=(
        Operand("base", ("N", "M"), "float32", "what is added to"),
        Operand("x", ("N", "K"), "float32", "rows"),
        Operand("starts", ("P",), "int32", "where each output's values begin; P = M + 1"),
        Operand("columns", ("Z",), "int32", "column of x of each value"),
        Operand("values", ("Z",), "float32", "the values that are not 0"),
    ),
    attrs=(),
    results=("y",),
    infer=infer,
    reference=reference,
    cost=cost,
    check=check,
    tolerance=1e-5,
)
