"""``rows_to_nchw``: rows of positions back to an image batch."""

from __future__ import annotations

import numpy as np

from lutcc.ir.spec import AttrSpec, Bindings, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType, divide_dim


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return (N, M, OH, OW); the rows must be a multiple of OH*OW."""
    b.require_row_major("x")
    oh, ow = b.attrs.int("oh"), b.attrs.int("ow")
    images = divide_dim(b["R"], oh * ow)
    if images is None:
        b.fail(
            f"operand 'x' has {b['R']} rows, which are not a multiple of oh*ow = {oh}*{ow} = "
            f"{oh * ow}"
        )
    return (TensorType((images, b.size("M"), oh, ow), "float32"),)


def reference(run: Run, x: Array) -> tuple[Array, ...]:
    """Transpose positions and channels."""
    n, channels, oh, ow = run.results[0].shape
    return (np.ascontiguousarray(x.reshape(n, oh, ow, channels).transpose(0, 3, 1, 2)),)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """Every element is copied once."""
    size = results[0].nbytes
    return OpCost(bytes_read=size, bytes_written=size)


OP = OpDef(
    name="rows_to_nchw",
    summary="Rows of positions back to an image batch.",
    definition="y[n, m, i, j] = x[(n*oh + i)*ow + j, m].",
    source="torch.nn.functional.conv2d's result in the order of im2col's rows",
    operands=(Operand("x", ("R", "M"), "float32", "one row per image and position"),),
    attrs=(
        AttrSpec("oh", "int", "height of the image", minimum=1, maximum=2**20),
        AttrSpec("ow", "int", "width of the image", minimum=1, maximum=2**20),
    ),
    results=("images",),
    infer=infer,
    reference=reference,
    cost=cost,
    lowering="data_movement",
)
