"""``tree_encode``: hash each row by one balanced binary regression tree per codebook."""

from __future__ import annotations

import numpy as np

from lutcc.ir.spec import Bindings, Known, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType

MAX_DEPTH = 7


def infer(b: Bindings, table: str = "splitvals") -> tuple[TensorType, ...]:
    """Return the type of the codes; K, the entries of an operand, must be 2**L."""
    depth, leaves = b.size("L"), b.size("K")
    if not 1 <= depth <= MAX_DEPTH:
        b.fail(f"operand 'splitdims' has L = {depth} levels, which is not in 1..{MAX_DEPTH}")
    if leaves != 2**depth:
        b.fail(
            f"operand {table!r} has K = {leaves} entries per codebook, but operand 'splitdims' "
            "has "
            f"L = {depth} levels, which need 2**{depth} = {2**depth}"
        )
    b.size("D")
    return (TensorType((b["N"], b.size("C")), "uint8"),)


def check(b: Bindings, known: Known) -> None:
    """Every split dimension must be a column of x."""
    dims = known.array("splitdims")
    if dims is not None and dims.size and not (dims.min() >= 0 and dims.max() < b.size("D")):
        bad = int(dims.min()) if dims.min() < 0 else int(dims.max())
        b.fail(
            f"operand 'splitdims' holds column {bad}, but operand 'x' has columns "
            f"0..{b.size('D') - 1}"
        )


def reference(run: Run, x: Array, splitdims: Array, splitvals: Array) -> tuple[Array, ...]:
    """Walk the heap: node h goes to 2h, or to 2h + 1 if the value exceeds the threshold."""
    if splitdims.size and not (splitdims.min() >= 0 and splitdims.max() < x.shape[1]):
        run.fail(
            f"splitdims holds {splitdims.min()}..{splitdims.max()}, but x has {x.shape[1]} columns"
        )
    codebooks, depth = splitdims.shape
    node = np.ones((x.shape[0], codebooks), np.intp)
    each = np.arange(codebooks, dtype=np.intp)
    for level in range(depth):
        node = 2 * node + (x[:, splitdims[:, level]] > splitvals[each, node])
    return ((node - splitvals.shape[1]).astype(np.uint8),)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """One comparison per level; whole rows are read because they are stored row-major."""
    return OpCost(
        comparisons=b.size("N") * b.size("C") * b.size("L"),
        bytes_read=sum(t.nbytes for t in b.types),
        bytes_written=results[0].nbytes,
    )


def limit(b: Bindings) -> int:
    """Codes are below K."""
    return b.size("K")


OP = OpDef(
    name="tree_encode",
    summary="Hash each row by one balanced binary regression tree per codebook.",
    definition=(
        "h = 1; for l in 0..L-1: h = 2h + (x[n, splitdims[c, l]] > splitvals[c, h]); codes[n, c] "
        "= h - K, "
        "with K = 2**L. Thresholds are in heap order: entry 0 is unused, node h has the children "
        "2h and 2h + 1. "
        "A comparison with NaN is false."
    ),
    source="Blalock and Guttag, Multiplying matrices without multiplying, algorithm 1",
    operands=(
        Operand("x", ("N", "D"), "float32|uint8|int32", "rows to hash", rows=True),
        Operand(
            "splitdims", ("C", "L"), "int32", "column compared at each level, 0..D-1; L in 1..7"
        ),
        Operand("splitvals", ("C", "K"), "=x", "thresholds in heap order"),
    ),
    attrs=(),
    results=("codes",),
    infer=infer,
    reference=reference,
    cost=cost,
    check=check,
    limit=limit,
    rowwise=True,
)
