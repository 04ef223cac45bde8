"""``column_row_scores``: how much each column-row pair may add to a product."""

from __future__ import annotations

import numpy as np

from lutcc.ir.spec import AttrSpec, Bindings, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType

MAX_GROUP_SIZE = 2**16

GROUP_SIZE = AttrSpec(
    "group_size",
    "int",
    "adjacent columns of a, and rows of b, that make one pair",
    default=1,
    minimum=1,
    maximum=MAX_GROUP_SIZE,
)
WEIGHTS_ONLY = AttrSpec(
    "weights_only",
    "bool",
    "score by the second operand alone, so that all workers that share it agree",
    default=False,
)


def pair_count(columns: int, group_size: int) -> int:
    """Return how many pairs so many columns make; the last may be short.

    Examples
    --------
    >>> pair_count(10, 4)
    3
    """
    return -(-columns // group_size)


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return (P,) float32."""
    b.size("M")
    return (TensorType((pair_count(b.size("K"), b.attrs.int("group_size")),), "float32"),)


def reference(run: Run, a: Array, b: Array) -> tuple[Array, ...]:
    """Sum squares in float64 and round the root once."""
    group = run.attrs.int("group_size")
    with np.errstate(all="ignore"):
        squares = np.square(b.astype(np.float64)).sum(1)
        if not run.attrs.bool("weights_only"):
            squares = squares * np.square(a.astype(np.float64)).sum(0)
        sums = np.add.reduceat(squares, np.arange(0, len(squares), group))
        return (np.sqrt(sums).astype(np.float32),)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """Two FLOPs per element that is squared."""
    read = b.types[1:] if b.attrs.bool("weights_only") else b.types
    return OpCost(
        flops=2 * sum(t.nbytes // t.itemsize for t in read),
        bytes_read=sum(t.nbytes for t in read),
        bytes_written=results[0].nbytes,
    )


OP = OpDef(
    name="column_row_scores",
    summary="The norm that each column-row pair of a product is sampled by.",
    definition=(
        "A pair p is columns c = p * group_size .. of a, at most group_size of them, and the same "
        "rows of b. scores[p] is the square root of the sum over c of |a[:, c]|^2 |b[c, :]|^2: for "
        "group_size 1 the product of the norms (the numerator of equation 4), for more the root "
        "mean square of the pair's product when columns are independent with zero mean. With "
        "weights_only it is the root of the sum of |b[c, :]|^2. The reference computes in float64 "
        "and rounds once; a backend may be off by the tolerance times the score, or more where "
        "squares leave the range of float32, unless it scales first."
    ),
    source="Adelman et al., approximate tensor operations, equation 4 and section 6",
    operands=(
        Operand("a", ("N", "K"), "float32|bfloat16", "first factor"),
        Operand("b", ("K", "M"), "=a", "second factor: a weight, transposed"),
    ),
    attrs=(GROUP_SIZE, WEIGHTS_ONLY),
    results=("scores",),
    infer=infer,
    reference=reference,
    cost=cost,
    tolerance=1e-5,
    lowering="training",
)
