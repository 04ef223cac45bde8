"""``channel_scores``: how much each input channel may add to a convolution."""

from __future__ import annotations

import numpy as np

from lutcc.ir.ops.column_row_scores import WEIGHTS_ONLY, cost
from lutcc.ir.ops.im2col import output_size
from lutcc.ir.ops.sampled_conv2d import CONV_ATTRS, check_geometry
from lutcc.ir.spec import Bindings, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType


def window_counts(size: int, kernel: int, stride: int, padding: int, dilation: int) -> Array:
    """Return how many windows of a kernel see each position of one axis, float64.

    Examples
    --------
    >>> window_counts(4, 3, 1, 1, 1).tolist()
    [2.0, 3.0, 3.0, 2.0]
    """
    outputs = np.arange(output_size(size, kernel, stride, padding, dilation))
    seen = outputs[:, None] * stride + np.arange(kernel) * dilation - padding
    inside = seen[(seen >= 0) & (seen < size)]
    return np.bincount(inside, minlength=size).astype(np.float64)


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return (C,) float32."""
    check_geometry(b)
    return (TensorType((b.size("C"),), "float32"),)


def reference(run: Run, x: Array, weight: Array) -> tuple[Array, ...]:
    """Sum weighted squares in float64 and round the root once."""
    axes = zip(
        x.shape[2:],
        weight.shape[2:],
        run.attrs.pair("stride"),
        run.attrs.pair("padding"),
        run.attrs.pair("dilation"),
        strict=True,
    )
    rows, columns = (window_counts(*axis) for axis in axes)
    groups = run.attrs.int("groups")
    with np.errstate(all="ignore"):
        grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        squares = np.square(grouped.astype(np.float64)).sum((1, 3, 4)).reshape(-1)
        if not run.attrs.bool("weights_only"):
            pixels = np.square(x.astype(np.float64))
            # A pixel that no window sees counts nothing, whatever it holds.
            seen = (rows[:, None] > 0) & (columns > 0)
            counted = np.where(seen, pixels, 0.0) * (rows[:, None] * columns)
            squares = squares * counted.sum((0, 2, 3))
        return (np.sqrt(squares).astype(np.float32),)


OP = OpDef(
    name="channel_scores",
    summary="The norm that each input channel of a convolution is sampled by.",
    definition=(
        "A convolution is the sum over its input channels c of products A_c W_c, with A_c the "
        "channel's patches (im2col) and W_c its weights. scores[c] = ||A_c|| ||W_c|| (Frobenius): "
        "||A_c||^2 is the sum over images and pixels of x^2 times the number of windows that see "
        "the pixel, a product of one count per row and one per column; a pixel that none sees "
        "counts 0. W_c are the weights of channel c in its group, for all outputs of the group. "
        "Drawing channels with probabilities p has the error (1/k) (sum of ||A_c W_c||^2 / p_c - "
        "||y||^2), at most (1/k) (sum of scores^2 / p_c - ||y||^2), which p in proportion to the "
        "scores minimises (Cauchy-Schwarz); for 1 x 1 kernels this is equation 4. With "
        "weights_only scores[c] = ||W_c||. The reference computes in float64 and rounds once; a "
        "backend may be off by the tolerance times the score."
    ),
    source="Adelman et al., approximate tensor operations, section 7",
    operands=(
        Operand("x", ("N", "C", "H", "W"), "float32", "images"),
        Operand("weight", ("O", "CG", "KH", "KW"), "float32", "weights; CG = C / groups"),
    ),
    attrs=(*CONV_ATTRS, WEIGHTS_ONLY),
    results=("scores",),
    infer=infer,
    reference=reference,
    cost=cost,
    tolerance=1e-5,
    lowering="training",
)
