"""``codebook_matmul``: a linear layer whose weights are indices into codebooks."""

from __future__ import annotations

import numpy as np

from lutcc.ir.arithmetic import quantize_rows, round_to_bfloat16
from lutcc.ir.codebooks import (
    SEGMENT_MULTIPLE,
    columns_of,
    entry_tables,
    integer_tables,
    packed_columns,
    segments,
    unpack_indices,
)
from lutcc.ir.spec import AttrSpec, Bindings, Known, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType

#: Columns that int32 sums of products of integers hold: 127 * 64 each.
MAX_INT8_COLUMNS = 2**17

SEGMENT_SIZE = AttrSpec(
    "segment_size",
    "int",
    "columns of a region, a multiple of 32, where there are more regions than rows; else 0",
    default=0,
    minimum=0,
)
BITS_ATTR = AttrSpec("bits", "int", "bits of an index: 2, 3 or 4", minimum=2, maximum=4)
CODEBOOKS = Operand("codebooks", ("G", "L"), "float32|float16", "values; L = 2**bits")
SCALES = Operand("scales", ("T",), "float32|float16", "factors of the codebooks' values")


def check_codebooks(b: Bindings, columns: int) -> None:
    """Check indices, codebooks and scales of M rows against one another.

    Raises
    ------
    VerifyError
        Naming both sides.
    """
    bits, size, rows = b.attrs.int("bits"), b.attrs.int("segment_size"), b.size("M")
    wanted = packed_columns(columns, bits)
    if b.size("B") != wanted:
        b.fail(
            f"operand 'indices' has B = {b.size('B')} bytes a row, but {columns} indices of "
            f"{bits} bits take {wanted}"
        )
    if b.size("L") != 2**bits:
        b.fail(
            f"operand 'codebooks' has L = {b.size('L')} values, but indices of 'bits' = {bits} "
            f"point at {2**bits}"
        )
    if size % SEGMENT_MULTIPLE:
        b.fail(f"attribute 'segment_size' is {size}, not a multiple of {SEGMENT_MULTIPLE}")
    for name, letter in (("codebooks", "G"), ("scales", "T")):
        count = b.size(letter)
        if count <= rows:
            continue
        if size == 0:
            b.fail(
                f"operand {name!r} has {letter} = {count} regions of {rows} rows, which needs "
                "'segment_size'"
            )
        if count != rows * segments(count, rows, columns, size):
            b.fail(
                f"operand {name!r} has {letter} = {count} regions, but {rows} rows of {columns} "
                f"columns have {rows * segments(count, rows, columns, size)} segments of "
                f"'segment_size' = {size}"
            )


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return (N, M) float32."""
    check_codebooks(b, b.size("K"))
    if b.attrs.str("compute") == "int8" and b.size("K") > MAX_INT8_COLUMNS:
        b.fail(f"K = {b.size('K')} columns may overflow the int32 sums of 'compute' = 'int8'")
    return (TensorType((b["N"], b.size("M")), "float32"),)


def check(b: Bindings, known: Known) -> None:
    """``order`` is a permutation."""
    order = known.array("order")
    if order is not None and not is_permutation(order):
        b.fail("operand 'order' is not a permutation of the rows")


def is_permutation(order: Array) -> bool:
    """Tell whether each of 0 .. M - 1 is in ``order`` once."""
    return bool(np.array_equal(np.sort(order), np.arange(order.size)))


def reference(
    run: Run, x: Array, indices: Array, codebooks: Array, scales: Array, order: Array, bias: Array
) -> tuple[Array, ...]:
    """Look the weights up and multiply: integers exactly, floats in float64, rounded once."""
    if not is_permutation(order):
        run.fail("order is not a permutation of the rows")
    rows, columns, size = indices.shape[0], x.shape[1], run.attrs.int("segment_size")
    unpacked = unpack_indices(indices, run.attrs.int("bits"), columns)
    tables = entry_tables(codebooks, scales, rows, columns, size)
    compute = run.attrs.str("compute")
    with np.errstate(all="ignore"):
        if compute == "int8":
            integers, units = integer_tables(tables)
            q, unit = quantize_rows(x)
            weights = columns_of(integers, unpacked, size)
            # below 2**53: exact
            acc = (q.astype(np.float64) @ weights.astype(np.float64).T).astype(np.int32)
            y = acc.astype(np.float32) * (unit[:, None] * units) + bias
        else:
            weights = columns_of(tables, unpacked, size)
            if compute == "bfloat16":
                x, weights = round_to_bfloat16(x), round_to_bfloat16(weights)
            y = x.astype(np.float64) @ weights.astype(np.float64).T + bias.astype(np.float64)
        result = np.empty(y.shape, np.float32)
        result[:, order] = y
    return (result,)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """Count a look-up per weight, 2 FLOPs per row and weight; packed indices are read once."""
    weights = b.size("M") * b.size("K")
    return OpCost(
        lookups=weights,
        flops=2 * b.size("N") * weights,
        table_bytes=b.type("codebooks").nbytes,
        bytes_read=sum(t.nbytes for t in b.types),
        bytes_written=results[0].nbytes,
    )


OP = OpDef(
    name="codebook_matmul",
    summary="A linear layer whose weights are 2-, 3- or 4-bit indices into codebooks.",
    definition=(
        "y[n, order[m]] = bias[m] + sum over k of x[n, k] * W[m, k], W[m, k] = scales[t] * "
        "codebooks[g, index[m, k]] rounded to float32. Index k of row m takes bits k * bits .. of "
        "the row, lowest first. Of R codebooks (scales), R <= M: row m has number floor(m * R / "
        "M); R > M: R = M * S, S = ceil(K / segment_size), and (m, k) has m * S + k // "
        "segment_size. compute = float32: sums as for linear, off by the tolerance times the sum "
        "of the terms' magnitudes. bfloat16: x and W are rounded to bfloat16 first (nearest, ties "
        "to even). int8, exact: q[n, k] = round_half_even(x[n, k] * (127 / a)), a = max |x[n, :]|, "
        "w = round_half_even(W * (64 / u)), u = max of |scales * codebooks| over all values that "
        "row m can point at, and y = float32(sum of q * w) * ((a / 127) * (u / 64)) + bias, each "
        "operation rounded to float32. Where 127 / a (64 / u) is not finite, q (w) is 0; a row "
        "with a NaN or an infinity gives NaN."
    ),
    source="Yvinec et al., JLCM, equations 1, 2 and 4",
    operands=(
        Operand("x", ("N", "K"), "float32", "rows"),
        Operand("indices", ("M", "B"), "uint8", "packed, B = ceil(K * bits / 8)"),
        CODEBOOKS,
        SCALES,
        Operand("order", ("M",), "int32", "the output that each row of indices belongs to"),
        Operand("bias", ("M",), "float32", "of each row of indices"),
    ),
    attrs=(
        BITS_ATTR,
        SEGMENT_SIZE,
        AttrSpec(
            "compute",
            "str",
            "arithmetic of the products",
            default="float32",
            choices=("float32", "bfloat16", "int8"),
        ),
    ),
    results=("y",),
    infer=infer,
    reference=reference,
    cost=cost,
    check=check,
    tolerance=1e-5,
)
