"""``im2col``: the patches of an image batch as rows, so that a convolution becomes a product."""

from __future__ import annotations

import numpy as np

from lutcc.ir.spec import AttrSpec, Bindings, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType, scale_dim

#: Where the windows of a kernel lie.
GEOMETRY = (
    AttrSpec("stride", "ints", "steps", default=(1, 1), minimum=1, maximum=2**16, length=2),
    AttrSpec(
        "padding",
        "ints",
        "zeros on each side",
        default=(0, 0),
        minimum=0,
        maximum=2**16,
        length=2,
    ),
    AttrSpec(
        "dilation",
        "ints",
        "distance of taps",
        default=(1, 1),
        minimum=1,
        maximum=2**16,
        length=2,
    ),
)


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Return how many positions a kernel has along one axis (0 or less: it does not fit).

    Examples
    --------
    >>> output_size(32, 3, 2, 1, 1)
    16
    """
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return (N*OH*OW, C*KH*KW)."""
    kernel, stride = b.attrs.pair("kernel"), b.attrs.pair("stride")
    padding, dilation = b.attrs.pair("padding"), b.attrs.pair("dilation")
    sizes = (b.size("H"), b.size("W"))
    out: list[int] = []
    for axis in (0, 1):
        positions = output_size(
            sizes[axis], kernel[axis], stride[axis], padding[axis], dilation[axis]
        )
        if positions < 1:
            b.fail(
                f"attribute 'kernel' {kernel[axis]} with dilation {dilation[axis]} does not fit "
                "dimension "
                f"{'HW'[axis]} = {sizes[axis]} of operand 'x' with padding {padding[axis]}"
            )
        out.append(positions)
    rows = scale_dim(b["N"], out[0] * out[1])
    return (TensorType((rows, b.size("C") * kernel[0] * kernel[1]), "float32"),)


def reference(run: Run, x: Array) -> tuple[Array, ...]:
    """Copy each kernel position as a strided slice of the padded image."""
    kernel, stride = run.attrs.pair("kernel"), run.attrs.pair("stride")
    padding, dilation = run.attrs.pair("padding"), run.attrs.pair("dilation")
    n, channels, height, width = x.shape
    oh = output_size(height, kernel[0], stride[0], padding[0], dilation[0])
    ow = output_size(width, kernel[1], stride[1], padding[1], dilation[1])
    padded = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    patches = np.empty((n, oh, ow, channels, *kernel), np.float32)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            top, left = i * dilation[0], j * dilation[1]
            window = padded[
                :,
                :,
                top : top + stride[0] * oh : stride[0],
                left : left + stride[1] * ow : stride[1],
            ]
            patches[:, :, :, :, i, j] = window[:, :, :oh, :ow].transpose(0, 2, 3, 1)
    return (patches.reshape(run.results[0].shape),)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """Every element of the result is copied once."""
    return OpCost(bytes_read=b.type("x").nbytes, bytes_written=results[0].nbytes)


OP = OpDef(
    name="im2col",
    summary="The patches of an image batch as rows.",
    definition=(
        "y[(n, oy, ox), (c, i, j)] = x[n, c, oy*stride[0] + i*dilation[0] - padding[0], "
        "ox*stride[1] + j*dilation[1] - "
        "padding[1]], zero outside the image: torch.nn.functional.unfold with positions as rows."
    ),
    source="torch.nn.functional.unfold",
    operands=(Operand("x", ("N", "C", "H", "W"), "float32", "images"),),
    attrs=(
        AttrSpec(
            "kernel", "ints", "height and width of the kernel", minimum=1, maximum=2**16, length=2
        ),
        *GEOMETRY,
    ),
    results=("patches",),
    infer=infer,
    reference=reference,
    cost=cost,
    lowering="data_movement",
)
