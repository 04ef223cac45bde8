"""``interval_encode``: trees over integers that ask whether a value is outside an interval."""

from __future__ import annotations

import numpy as np

from lutcc.ir.ops import tree_encode
from lutcc.ir.spec import Bindings, Known, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType

#: Values and starts are at most so large, for differences not to go round.
MOST = 1 << 30


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return the type of the codes; K must be 2**L."""
    return tree_encode.infer(b, "widths")


def check(b: Bindings, known: Known) -> None:
    """Every split dimension must be a column of x, and starts must be small enough."""
    tree_encode.check(b, known)
    starts = known.array("starts")
    if starts is not None and starts.size and not (starts.min() >= -MOST and starts.max() <= MOST):
        bad = int(starts.min()) if starts.min() < -MOST else int(starts.max())
        b.fail(f"operand 'starts' holds {bad}, which is not in {-MOST}..{MOST}")


def reference(
    run: Run, x: Array, splitdims: Array, starts: Array, widths: Array
) -> tuple[Array, ...]:
    """Walk the heap: node h goes to 2h, or to 2h + 1 if the value is outside its interval."""
    if splitdims.size and not (splitdims.min() >= 0 and splitdims.max() < x.shape[1]):
        run.fail(
            f"splitdims holds {splitdims.min()}..{splitdims.max()}, but x has {x.shape[1]} columns"
        )
    codebooks, depth = splitdims.shape
    node = np.ones((x.shape[0], codebooks), np.intp)
    each = np.arange(codebooks, dtype=np.intp)
    for level in range(depth):
        moved = x[:, splitdims[:, level]] - starts[each, node]
        node = 2 * node + (moved.view(np.uint32) > widths[each, node].view(np.uint32))
    return ((node - widths.shape[1]).astype(np.uint8),)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """Twice the comparisons of ``tree_encode``: each has two ends."""
    return OpCost(
        comparisons=2 * b.size("N") * b.size("C") * b.size("L"),
        bytes_read=sum(t.nbytes for t in b.types),
        bytes_written=results[0].nbytes,
    )


OP = OpDef(
    name="interval_encode",
    summary="Hash each row of integers by trees that ask whether a value is outside an interval.",
    definition=(
        "h = 1; for l in 0..L-1: h = 2h + (uint32(x[n, splitdims[c, l]] - starts[c, h]) > "
        "uint32(widths[c, h])); codes[n, c] = h - K, with K = 2**L. A node asks whether the value "
        "is outside the interval from its start to its start + width, which goes round from "
        "2**31 - 1 to -2**31 where it passes that: so the question may be whether the value is "
        "inside an interval, above a threshold or below one. Values and starts are at most 2**30 "
        "in magnitude. Entries 0 are unused."
    ),
    source="what tree_encode becomes behind look-ups and a function that turns, GELU say",
    operands=(
        Operand("x", ("N", "D"), "int32", "rows to hash", rows=True),
        Operand(
            "splitdims", ("C", "L"), "int32", "column compared at each level, 0..D-1; L in 1..7"
        ),
        Operand("starts", ("C", "K"), "int32", "where the nodes' intervals begin, in heap order"),
        Operand("widths", ("C", "K"), "int32", "their last values less their first, unsigned"),
    ),
    attrs=(),
    results=("codes",),
    infer=infer,
    reference=reference,
    cost=cost,
    check=check,
    limit=tree_encode.limit,
    rowwise=True,
)
