"""``block_diagonal_matmul``: each group of columns is multiplied by a block of its own."""

from __future__ import annotations

import numpy as np

from lutcc.ir.arithmetic import round_to_bfloat16
from lutcc.ir.spec import AttrSpec, Bindings, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType


def kept_columns(b: Bindings) -> int:
    """Return how many columns the result has."""
    everything = b.size("G") * b.size("Q")
    return b.attrs.int("columns") if "columns" in b.attrs else everything


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return (N, columns) float32; D must be G * P, and columns at most G * Q."""
    groups, height, width = b.size("G"), b.size("P"), b.size("Q")
    if b.size("D") != groups * height:
        b.fail(
            f"operand 'x' has D = {b.size('D')} columns, but operand 'blocks' has G * P = {groups} "
            f"* {height} = {groups * height} rows"
        )
    columns = kept_columns(b)
    if columns > groups * width:
        b.fail(
            f"attribute 'columns' is {columns}, but operand 'blocks' has G * Q = {groups} * "
            f"{width} = {groups * width} columns"
        )
    return (TensorType((b["N"], columns), "float32"),)


def reference(run: Run, x: Array, blocks: Array) -> tuple[Array, ...]:
    """Multiply group by group in float64 and round the result once."""
    groups, height, width = blocks.shape
    rows, columns = run.results[0].shape
    if blocks.dtype.name == "bfloat16":
        x = round_to_bfloat16(x)
    with np.errstate(all="ignore"):
        parts = x.astype(np.float64).reshape(rows, groups, height).transpose(1, 0, 2)
        y = parts @ blocks.astype(np.float64)
        return (y.transpose(1, 0, 2).reshape(rows, groups * width)[:, :columns].astype(np.float32),)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """2 P FLOPs per row and column that is kept."""
    return OpCost(
        flops=2 * b.size("N") * b.size("P") * kept_columns(b),
        bytes_read=sum(t.nbytes for t in b.types),
        bytes_written=results[0].nbytes,
    )


OP = OpDef(
    name="block_diagonal_matmul",
    summary="Each group of columns is multiplied by a block of its own.",
    definition=(
        "y[n, g * Q + q] = sum over p of x[n, g * P + p] * blocks[g, p, q], for the columns below "
        "columns. With bfloat16 blocks, x is rounded to bfloat16 first (nearest, ties to even; a "
        "backend may read subnormal numbers as 0); products are exact in either case. The "
        "reference sums in float64 and rounds once; a backend sums in float32 and may be off by "
        "the tolerance times the sum of the products' magnitudes."
    ),
    source="Zeng et al., LookupFFN, equation 11",
    operands=(
        Operand("x", ("N", "D"), "float32", "rows; D = G * P", rows=True),
        Operand("blocks", ("G", "P", "Q"), "float32|bfloat16", "one block per group of columns"),
    ),
    attrs=(
        AttrSpec(
            "columns",
            "int",
            "how many columns are kept, from the first on; G * Q if absent",
            optional=True,
            minimum=1,
        ),
    ),
    results=("y",),
    infer=infer,
    reference=reference,
    cost=cost,
    rowwise=True,
    tolerance=1e-5,
)
