"""``lut_conv2d``: a convolution by look-ups whose trees read the images themselves."""

from __future__ import annotations

import numpy as np

from lutcc.ir.ops import lut_accumulate, tree_encode
from lutcc.ir.ops.im2col import GEOMETRY, output_size
from lutcc.ir.spec import AttrSpec, Bindings, Known, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType, scale_dim

KERNEL = AttrSpec(
    "kernel", "ints", "height and width of the kernel", minimum=1, maximum=2**16, length=2
)


def positions(b: Bindings) -> tuple[int, int]:
    """Return OH and OW of a kernel that slides over images (N, H, W, C).

    Raises
    ------
    VerifyError
        If it does not fit.
    """
    names = ("kernel", "stride", "padding", "dilation")
    axes = zip(*(b.attrs.pair(name) for name in names), strict=True)
    out = [output_size(b.size("HW"[i]), *axis) for i, axis in enumerate(axes)]
    for axis, count in enumerate(out):
        if count < 1:
            b.fail(
                f"attribute 'kernel' {b.attrs.pair('kernel')[axis]} with dilation "
                f"{b.attrs.pair('dilation')[axis]} does not fit dimension {'HW'[axis]} = "
                f"{b.size('HW'[axis])} of operand 'x' with padding {b.attrs.pair('padding')[axis]}"
            )
    return out[0], out[1]


def windows(run: Run, x: Array, outside: Array) -> Array:
    """Return a view (N, OH, OW, C, KH, KW) of images (N, H, W, C); ``outside`` (C,) pads."""
    kernel, stride = run.attrs.pair("kernel"), run.attrs.pair("stride")
    (top, left), dilation = run.attrs.pair("padding"), run.attrs.pair("dilation")
    n, height, width, channels = x.shape
    padded = np.empty((n, height + 2 * top, width + 2 * left, channels), x.dtype)
    padded[...] = outside
    padded[:, top : top + height, left : left + width] = x
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    found = np.lib.stride_tricks.sliding_window_view(padded, reach, (1, 2))
    return found[:, :: stride[0], :: stride[1], :, :: dilation[0], :: dilation[1]]


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return (N*OH*OW, M) int32."""
    height, width = positions(b)
    depth, leaves = b.size("L"), b.size("K")
    if not 1 <= depth <= tree_encode.MAX_DEPTH or leaves != 2**depth:
        b.fail(
            f"operand 'splitvals' has K = {leaves} entries per codebook, and operand 'splitdims' "
            f"L = {depth} levels: K must be 2**L, and L in 1..{tree_encode.MAX_DEPTH}"
        )
    largest = 255 if b.type("lut").dtype == "uint8" else 128
    if b.size("B") * largest > lut_accumulate.INT32_MAX:
        b.fail(f"B = {b.size('B')} codebooks may overflow the int32 sum")
    rows = scale_dim(b["N"], height * width)
    return (TensorType((rows, b.size("M")), "int32"),)


def check(b: Bindings, known: Known) -> None:
    """Every split dimension must be a number of a patch."""
    dims = known.array("splitdims")
    columns = b.size("C") * b.attrs.pair("kernel")[0] * b.attrs.pair("kernel")[1]
    if dims is not None and dims.size and not (dims.min() >= 0 and dims.max() < columns):
        bad = int(dims.min()) if dims.min() < 0 else int(dims.max())
        b.fail(
            f"operand 'splitdims' holds column {bad}, but a patch of operand 'x' has columns "
            f"0..{columns - 1}"
        )


def reference(
    run: Run, x: Array, splitdims: Array, splitvals: Array, lut: Array, outside: Array
) -> tuple[Array, ...]:
    """Walk the trees over each window, and sum table rows."""
    patches = windows(run, x, outside)
    rows = patches.reshape(run.results[0].shape[0], -1)
    (codes,) = tree_encode.reference(run, rows, splitdims, splitvals)
    acc = np.zeros(run.results[0].shape, np.int32)
    for c in range(lut.shape[0]):
        acc += lut[c, codes[:, c]]
    return (acc,)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """One comparison per pixel, codebook and level, one look-up per pixel, codebook and output."""
    rows = results[0].static_shape[0]
    table = b.type("lut").nbytes
    return OpCost(
        lookups=rows * b.size("B") * b.size("M"),
        comparisons=rows * b.size("B") * b.size("L"),
        table_bytes=table,
        bytes_read=sum(t.nbytes for t in b.types),
        bytes_written=results[0].nbytes,
    )


OP = OpDef(
    name="lut_conv2d",
    summary="A convolution by look-ups whose trees read the images themselves.",
    definition=(
        "acc = lut_accumulate(tree_encode(patches, splitdims, splitvals), lut), exact, with the "
        "patches of im2col: patches[(n, oy, ox), (c, i, j)] = x[n, oy*stride[0] + i*dilation[0] - "
        "padding[0], ox*stride[1] + j*dilation[1] - padding[1], c], and outside[c] outside the "
        "image. No patch is written: a tree reads at (i, j, c) from its pixel. Images have their "
        "channels last, and results are rows, one for each pixel. Float images have outside = 0; "
        "for sums in their place it is a sum on the side of each threshold on which 0 is."
    ),
    source="Blalock and Guttag, algorithm 1, over the windows of a convolution",
    operands=(
        Operand("x", ("N", "H", "W", "C"), "float32|int32", "images, channels last"),
        Operand("splitdims", ("B", "L"), "int32", "number of a patch compared at each level"),
        Operand("splitvals", ("B", "K"), "=x", "thresholds in heap order"),
        Operand("lut", ("B", "K", "M"), "uint8|int8", "tables"),
        Operand("outside", ("C",), "=x", "what each channel is outside the image"),
    ),
    attrs=(KERNEL, *GEOMETRY),
    results=("acc",),
    infer=infer,
    reference=reference,
    cost=cost,
    check=check,
)
