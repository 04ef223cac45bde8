"""``max_pool2d``: the largest number of each window of an image."""

from __future__ import annotations

import numpy as np

from lutcc.ir.ops.im2col import GEOMETRY
from lutcc.ir.ops.lut_conv2d import KERNEL, positions, windows
from lutcc.ir.spec import Bindings, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType, scale_dim


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return (N*OH*OW, C); no window may lie outside the image as a whole."""
    height, width = positions(b)
    for axis in (0, 1):
        padding, kernel = b.attrs.pair("padding")[axis], b.attrs.pair("kernel")[axis]
        if 2 * padding > kernel:
            b.fail(f"attribute 'padding' {padding} is more than half of the kernel {kernel}")
    rows = scale_dim(b["N"], height * width)
    return (TensorType((rows, b.size("C")), b.type("x").dtype),)


def reference(run: Run, x: Array) -> tuple[Array, ...]:
    """Keep the first of the largest numbers, or the first NaN."""
    least = -np.inf if x.dtype == np.float32 else np.iinfo(np.int32).min
    found = windows(run, x, np.array([least] * x.shape[3], x.dtype))
    best = found[..., 0, 0]
    for i, j in np.ndindex(*found.shape[4:]):
        value = found[..., i, j]
        best = np.where((value > best) | (value != value), value, best)
    return (np.ascontiguousarray(best).reshape(run.results[0].shape),)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """One comparison per number of a window."""
    kernel = b.attrs.pair("kernel")
    numbers = results[0].nbytes // results[0].itemsize
    return OpCost(
        comparisons=numbers * kernel[0] * kernel[1],
        bytes_read=b.type("x").nbytes,
        bytes_written=results[0].nbytes,
    )


OP = OpDef(
    name="max_pool2d",
    summary="The largest number of each window of an image.",
    definition=(
        "y[(n, oy, ox), c] = the largest x[n, oy*stride[0] + i*dilation[0] - padding[0], "
        "ox*stride[1] + j*dilation[1] - padding[1], c] over the (i, j) inside the image, NaN if "
        "one is NaN, and of equal numbers the first. Images have their channels last, and results "
        "are rows, one for each pixel."
    ),
    source="torch.nn.functional.max_pool2d",
    operands=(Operand("x", ("N", "H", "W", "C"), "float32|int32", "images, channels last"),),
    attrs=(KERNEL, *GEOMETRY),
    results=("y",),
    infer=infer,
    reference=reference,
    cost=cost,
    lowering="data_movement",
)
