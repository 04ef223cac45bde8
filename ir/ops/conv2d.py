"""``conv2d``: an exact convolution in float32, bfloat16 or int8."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lutcc.ir.arithmetic import activate, quantize_rows, round_to_bfloat16
from lutcc.ir.ops.activation import EPILOGUE
from lutcc.ir.ops.dense import COMPUTE, check, check_arithmetic
from lutcc.ir.ops.im2col import output_size
from lutcc.ir.ops.sampled_conv2d import CONV_ATTRS, check_geometry
from lutcc.ir.spec import Bindings, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType, scale_dim


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return (N*OH*OW, O) float32."""
    height, width = check_geometry(b)
    terms = b.size("CG") * b.size("KH") * b.size("KW")
    check_arithmetic(b, terms, f"{terms} weights of an output")
    return (TensorType((scale_dim(b["N"], height * width), b.size("O")), "float32"),)


def reference(run: Run, x: Array, weight: Array, units: Array, bias: Array) -> tuple[Array, ...]:
    """Add one tap after the other: integers exactly, floats in float64, rounded once."""
    compute = run.attrs.str("compute")
    with np.errstate(all="ignore"):
        if compute == "int8":
            if (weight == -128).any():
                run.fail("weight has -128; its integers must be in -127 .. 127")
            q, unit = quantize_rows(x.reshape(len(x), math.prod(x.shape[1:])))
            acc = _sums(run, q.reshape(x.shape), weight).astype(np.int32).astype(np.float32)
            y = acc * (unit[:, None, None] * units) + bias
        else:
            w = weight.astype(np.float32)
            if compute == "bfloat16":
                x, w = round_to_bfloat16(x), round_to_bfloat16(w)
            sums = _sums(run, x, w)
            y = (sums * units.astype(np.float64) + bias.astype(np.float64)).astype(np.float32)
        return (activate(y.reshape(run.results[0].shape), run.attrs.str("activation")),)


def _sums(run: Run, x: Array, weight: Array) -> Array:
    """Return (N, OH*OW, O) float64; of integers below 2**53, exact."""
    stride, dilation = run.attrs.pair("stride"), run.attrs.pair("dilation")
    top, left = run.attrs.pair("padding")
    groups, (outputs, channels, *kernel) = run.attrs.int("groups"), weight.shape
    height, width = (
        output_size(*sizes)
        for sizes in zip(x.shape[1:3], kernel, stride, (top, left), dilation, strict=True)
    )
    padded = np.pad(x.astype(np.float64), ((0, 0), (top, top), (left, left), (0, 0)))
    sums = np.zeros((len(x), height * width, outputs), np.float64)
    each = outputs // groups
    for i, j in np.ndindex(*kernel):
        row, column = i * dilation[0], j * dilation[1]
        rows = slice(row, row + stride[0] * (height - 1) + 1, stride[0])
        columns = slice(column, column + stride[1] * (width - 1) + 1, stride[1])
        window = padded[:, rows, columns].reshape(len(x), height * width, x.shape[3])
        for g in range(groups):
            of_group = slice(g * each, (g + 1) * each)
            tap = weight[of_group, :, i, j].astype(np.float64)
            sums[..., of_group] += window[..., g * channels : (g + 1) * channels] @ tap.T
    return sums


def exact(types: Sequence[TensorType]) -> bool:
    """Integers are."""
    return types[1].dtype == "int8"


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """Two FLOPs per output and weight of it."""
    outputs = results[0].nbytes // results[0].itemsize
    return OpCost(
        flops=2 * outputs * b.size("CG") * b.size("KH") * b.size("KW"),
        bytes_read=sum(t.nbytes for t in b.types),
        bytes_written=results[0].nbytes,
    )


OP = OpDef(
    name="conv2d",
    summary="An exact convolution whose weights are float32, bfloat16 or int8.",
    definition=(
        "y[(n, oy, ox), o] = activation(units[o] * (sum over i, j, c of x[n, oy*stride[0] + "
        "i*dilation[0] - padding[0], ox*stride[1] + j*dilation[1] - padding[1], g*CG + c] * "
        "weight[o, c, i, j]) + bias[o]), zero outside the image; output o is in group g = o // "
        "(O / groups). Images have their channels last, and results are rows, one for each pixel, "
        "so that a chain of convolutions moves no channel, and what is done to each pixel is done "
        "to a row. compute = float32, bfloat16 and int8 as for dense, but integers of x have one "
        "scale for each image: q = round_half_even(x * (127 / a)), a = max |x[n]|, and y = "
        "float32(sum of q * weight) * ((a / 127) * units) + bias, each operation rounded to "
        "float32. Where 127 / a is not finite, q is 0; an image with a NaN or an infinity gives "
        "NaN. Weights are quantised as for dense, output by output."
    ),
    source="torch.nn.functional.conv2d",
    operands=(
        Operand("x", ("N", "H", "W", "C"), "float32", "images, channels last"),
        Operand("weight", ("O", "CG", "KH", "KW"), "float32|bfloat16|int8", "a kernel per output"),
        Operand("units", ("O",), "float32", "what the sum of each output is times"),
        Operand("bias", ("O",), "float32", "added to every pixel"),
    ),
    attrs=(*CONV_ATTRS, COMPUTE, EPILOGUE),
    results=("y",),
    infer=infer,
    reference=reference,
    cost=cost,
    check=check,
    tolerance=1e-5,
    exact=exact,
)
