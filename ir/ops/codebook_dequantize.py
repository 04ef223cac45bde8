"""``codebook_dequantize``: rows of a matrix that is written with codebooks."""

from __future__ import annotations

from lutcc.ir.codebooks import columns_of, entry_tables, unpack_indices
from lutcc.ir.ops.codebook_matmul import (
    BITS_ATTR,
    CODEBOOKS,
    SCALES,
    SEGMENT_SIZE,
    check_codebooks,
)
from lutcc.ir.spec import AttrSpec, Bindings, Known, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return (N, columns) float32."""
    check_codebooks(b, b.attrs.int("columns"))
    return (TensorType((b["N"], b.attrs.int("columns")), "float32"),)


def check(b: Bindings, known: Known) -> None:
    """No row is asked for that does not exist."""
    rows = known.array("rows")
    if rows is not None and rows.size and not (rows.min() >= 0 and rows.max() < b.size("M")):
        bad = int(rows.min()) if rows.min() < 0 else int(rows.max())
        b.fail(f"operand 'rows' holds {bad}, but there are rows 0..{b.size('M') - 1}")


def reference(
    run: Run, rows: Array, indices: Array, codebooks: Array, scales: Array
) -> tuple[Array, ...]:
    """Look the weights of the chosen rows up."""
    total, columns = indices.shape[0], run.attrs.int("columns")
    if rows.size and not (rows.min() >= 0 and rows.max() < total):
        bad = int(rows.min()) if rows.min() < 0 else int(rows.max())
        run.fail(f"rows holds {bad}, but there are rows 0..{total - 1}")
    size = run.attrs.int("segment_size")
    tables = entry_tables(codebooks, scales, total, columns, size)[rows]
    unpacked = unpack_indices(indices[rows], run.attrs.int("bits"), columns)
    return (columns_of(tables, unpacked, size),)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """Count a look-up and a product per element; the packed indices of the rows are read."""
    elements = b.size("N") * b.attrs.int("columns")
    read = min(b.size("N"), b.size("M")) * b.size("B")
    tables = b.type("codebooks").nbytes
    return OpCost(
        lookups=elements,
        flops=elements,
        table_bytes=tables,
        bytes_read=read + tables + b.type("scales").nbytes + b.type("rows").nbytes,
        bytes_written=results[0].nbytes,
    )


OP = OpDef(
    name="codebook_dequantize",
    summary="Rows of a matrix that is written with 2-, 3- or 4-bit indices into codebooks.",
    definition=(
        "y[n, k] = W[rows[n], k], W[m, k] = scales[t] * codebooks[g, index[m, k]] rounded once to "
        "float32; indices and regions are those of codebook_matmul. An embedding, or, with rows = "
        "0 .. M - 1, the whole matrix."
    ),
    source="Yvinec et al., JLCM, equations 1, 2 and 4",
    operands=(
        Operand("rows", ("N",), "int32", "which rows"),
        Operand("indices", ("M", "B"), "uint8", "packed, B = ceil(columns * bits / 8)"),
        CODEBOOKS,
        SCALES,
    ),
    attrs=(
        BITS_ATTR,
        SEGMENT_SIZE,
        AttrSpec("columns", "int", "columns of the matrix", minimum=1),
    ),
    results=("y",),
    infer=infer,
    reference=reference,
    cost=cost,
    check=check,
)
