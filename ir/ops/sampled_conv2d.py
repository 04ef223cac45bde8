"""``sampled_conv2d``: a convolution over some input channels, each times its scale."""

from __future__ import annotations

import numpy as np

from lutcc.ir.ops.im2col import GEOMETRY, output_size
from lutcc.ir.ops.sampled_matmul import selection_operands, taken_pairs
from lutcc.ir.spec import AttrSpec, Bindings, Known, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType

CONV_ATTRS = (
    *GEOMETRY,
    AttrSpec(
        "groups",
        "int",
        "parts of the channels that are convolved each for itself",
        default=1,
        minimum=1,
    ),
)


def check_geometry(b: Bindings) -> tuple[int, int]:
    """Return height and width of the result, after checking that all sizes fit."""
    groups, channels, outputs = b.attrs.int("groups"), b.size("C"), b.size("O")
    if channels != groups * b.size("CG"):
        b.fail(
            f"operand 'weight' has CG = {b.size('CG')} channels for each of 'groups' = {groups}, "
            f"but operand 'x' has C = {channels}"
        )
    if outputs % groups:
        b.fail(
            f"operand 'weight' has O = {outputs} outputs, which is not a multiple of the attribute "
            f"'groups' = {groups}"
        )
    sizes: list[int] = []
    for axis in (0, 1):
        size, kernel = b.size("HW"[axis]), b.size(("KH", "KW")[axis])
        padding, dilation = b.attrs.pair("padding")[axis], b.attrs.pair("dilation")[axis]
        found = output_size(size, kernel, b.attrs.pair("stride")[axis], padding, dilation)
        if found < 1:
            b.fail(
                f"a kernel of {kernel} with dilation {dilation} does not fit dimension "
                f"{'HW'[axis]} = {size} of operand 'x' with padding {padding}"
            )
        sizes.append(found)
    return sizes[0], sizes[1]


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return (N, O, OH, OW) float32."""
    height, width = check_geometry(b)
    groups = b.attrs.int("groups")
    if b.size("S") % groups or b.size("S") > b.size("C"):
        b.fail(
            f"operand 'indices' has S = {b.size('S')} places, but it must have the same number, at "
            f"most {b.size('CG')}, for each of 'groups' = {groups}"
        )
    return (TensorType((b["N"], b.size("O"), height, width), "float32"),)


def check(b: Bindings, known: Known) -> None:
    """No index points past the last channel."""
    limit = known.limit("indices")
    if limit is not None and limit > b.size("C"):
        b.fail(
            f"operand 'indices' holds channels up to {limit - 1}, but operand 'x' has C = "
            f"{b.size('C')}"
        )


def reference(
    run: Run, x: Array, weight: Array, indices: Array, scales: Array, bias: Array
) -> tuple[Array, ...]:
    """Add one channel and tap after the other, in float64, and round once."""
    stride, dilation = run.attrs.pair("stride"), run.attrs.pair("dilation")
    top, left = run.attrs.pair("padding")
    groups, (_, _, height, width) = run.attrs.int("groups"), run.results[0].shape
    per_group, outputs = x.shape[1] // groups, weight.shape[0] // groups
    channels, factors = taken_pairs(run, indices, scales, x.shape[1])
    owners = np.repeat(np.arange(groups), len(indices) // groups)[scales != 0]
    if (channels // per_group != owners).any():
        wrong = int(channels[channels // per_group != owners][0])
        run.fail(f"indices holds channel {wrong} at a place of another group")
    with np.errstate(all="ignore"):
        padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, top), (left, left)))
        y = np.zeros(run.results[0].shape, np.float64)
        y += bias.astype(np.float64)[:, None, None]
        for channel, factor, group in zip(channels, factors, owners, strict=True):
            first = int(group) * outputs
            kernel = weight[first : first + outputs, channel - group * per_group] * factor
            for i, j in np.ndindex(*weight.shape[2:]):
                row, column = i * dilation[0], j * dilation[1]
                window = padded[
                    :,
                    channel,
                    row : row + stride[0] * height : stride[0],
                    column : column + stride[1] * width : stride[1],
                ][:, :height, :width]
                tap = kernel[:, i, j].astype(np.float64)[:, None, None]
                y[:, first : first + outputs] += window[:, None] * tap
        return (y.astype(np.float32),)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """Two FLOPs per output pixel, channel taken and tap, as if every place were taken."""
    share = b.size("S") // b.attrs.int("groups")
    taps = share * b.size("KH") * b.size("KW")
    pixels = results[0].nbytes // results[0].itemsize
    x, weight = b.type("x"), b.type("weight")
    selection = b.type("indices").nbytes + b.type("scales").nbytes + b.type("bias").nbytes
    taken = (x.nbytes + weight.nbytes) * share // b.size("CG")
    return OpCost(
        flops=2 * pixels * taps, bytes_read=taken + selection, bytes_written=results[0].nbytes
    )


OP = OpDef(
    name="sampled_conv2d",
    summary="A convolution over some input channels, each times its scale.",
    definition=(
        "y[n, o, oy, ox] = bias[o] + sum over s of o's group with scales[s] not 0, and over i, j, "
        "of scales[s] * weight[o, c - first channel of the group, i, j] * x[n, c, oy*stride[0] + "
        "i*dilation[0] - padding[0], ox*stride[1] + j*dilation[1] - padding[1]], zero outside the "
        "image, with c = indices[s]: torch.nn.functional.conv2d over the channels taken. Each "
        "group has S / groups places, in the order of the groups. Places of scale 0 are skipped, "
        "whatever x and weight hold there; backends may rely on all that follow the first of them "
        "in their group having scale 0 too. scales[s] * weight is rounded to float32. The "
        "reference sums in float64; a backend may be off by the tolerance times the sum of the "
        "terms' magnitudes."
    ),
    source="Adelman et al., approximate tensor operations, section 7",
    operands=(
        Operand("x", ("N", "C", "H", "W"), "float32", "images"),
        Operand("weight", ("O", "CG", "KH", "KW"), "float32", "weights; CG = C / groups"),
        *selection_operands("input channels"),
        Operand("bias", ("O",), "float32", "added to every pixel"),
    ),
    attrs=CONV_ATTRS,
    results=("y",),
    infer=infer,
    reference=reference,
    cost=cost,
    check=check,
    tolerance=1e-5,
)
