"""``nearest_encode``: the nearest centroid of each codebook (product quantisation)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from lutcc.ir.arithmetic import fma32
from lutcc.ir.spec import AttrSpec, Bindings, Known, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return the type of the codes; ``starts`` must split the columns into C runs."""
    codebooks, columns, entries = b.size("C"), b.size("D2"), b.size("K")
    b.size("D")
    if not 2 <= entries <= 256:
        b.fail(
            f"operand 'centroids' has K = {entries} centroids per codebook, which is not in 2..256"
        )
    starts = b.attrs.ints("starts")
    if len(starts) != codebooks + 1:
        b.fail(
            f"attribute 'starts' has {len(starts)} entries, but operand 'half_norms' has C = "
            f"{codebooks} "
            f"codebooks, which need {codebooks + 1}"
        )
    if starts[0] != 0 or starts[-1] != columns or any(p > q for p, q in pairwise(starts)):
        shown = (
            str(starts) if len(starts) <= 8 else f"({starts[0]}, {starts[1]}, ..., {starts[-1]})"
        )
        b.fail(
            f"attribute 'starts' is {shown}, but it must rise from 0 to D2 = {columns}, "
            "the length of operand 'columns'"
        )
    return (TensorType((b["N"], codebooks), "uint8"),)


def check(b: Bindings, known: Known) -> None:
    """Every column must be one of x."""
    columns = known.array("columns")
    if columns is not None and not (columns.min() >= 0 and columns.max() < b.size("D")):
        bad = int(columns.min()) if columns.min() < 0 else int(columns.max())
        b.fail(
            f"operand 'columns' holds column {bad}, but operand 'x' has columns "
            f"0..{b.size('D') - 1}"
        )


def reference(
    run: Run, x: Array, centroids: Array, half_norms: Array, columns: Array
) -> tuple[Array, ...]:
    """Score every centroid by fused multiply-adds in column order; the first smallest wins."""
    if not (columns.min() >= 0 and columns.max() < x.shape[1]):
        run.fail(f"columns holds {columns.min()}..{columns.max()}, but x has {x.shape[1]} columns")
    starts = run.attrs.ints("starts")
    codes = np.zeros((x.shape[0], len(starts) - 1), np.uint8)
    for c in range(len(starts) - 1):
        score = np.repeat(half_norms[None, c], x.shape[0], axis=0)
        for j in range(starts[c], starts[c + 1]):
            score = fma32(-x[:, columns[j], None], centroids[None, :, j], score)
        best, code = score[:, 0], np.zeros(x.shape[0], np.uint8)
        for k in range(1, score.shape[1]):
            smaller = score[:, k] < best
            best, code = np.where(smaller, score[:, k], best), np.where(smaller, np.uint8(k), code)
        codes[:, c] = code
    return (codes,)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """Two FLOPs per row, centroid and column; K - 1 comparisons per code."""
    rows, entries = b.size("N"), b.size("K")
    return OpCost(
        flops=2 * rows * entries * b.size("D2"),
        comparisons=rows * b.size("C") * (entries - 1),
        bytes_read=sum(t.nbytes for t in b.types),
        bytes_written=results[0].nbytes,
    )


def limit(b: Bindings) -> int:
    """Codes are below K."""
    return b.size("K")


OP = OpDef(
    name="nearest_encode",
    summary="The nearest centroid of each codebook (product quantisation).",
    definition=(
        "score[k] = half_norms[c, k]; for j in starts[c]..starts[c+1]-1: score[k] = fma(-x[n, "
        "columns[j]], "
        "centroids[k, j], score[k]), rounded once to float32, in this order; codes[n, c] = 0, "
        "replaced by k = 1, 2, ... "
        "wherever score[k] < score[codes[n, c]]: the first smallest score, and NaN never wins "
        "over what is before it."
    ),
    source="Jegou et al., Product quantization for nearest neighbor search",
    operands=(
        Operand("x", ("N", "D"), "float32", "rows to encode", rows=True),
        Operand(
            "centroids",
            ("K", "D2"),
            "float32",
            "centroids of all codebooks side by side; K in 2..256",
        ),
        Operand("half_norms", ("C", "K"), "float32", "half the squared norm of each centroid"),
        Operand(
            "columns", ("D2",), "int32", "column of x that belongs to each column of the centroids"
        ),
    ),
    attrs=(
        AttrSpec(
            "starts", "ints", "first column of each codebook, then D2: C + 1 integers", minimum=0
        ),
    ),
    results=("codes",),
    infer=infer,
    reference=reference,
    cost=cost,
    check=check,
    limit=limit,
    rowwise=True,
)
