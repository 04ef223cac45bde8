"""``column_row_sample``: which pairs a sampled product takes, and what each counts."""

from __future__ import annotations

import numpy as np

from lutcc.ir.sampling import MODES, PROBABILITIES, RANDOM_MODES, select, slots
from lutcc.ir.spec import AttrSpec, Bindings, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return indices and scales, (groups * S,) each: S = k, or all pairs of a group."""
    groups, k, mode = b.attrs.int("groups"), b.attrs.int("k"), b.attrs.str("mode")
    pairs = b.size("P")
    if pairs % groups:
        b.fail(
            f"operand 'scores' has P = {pairs} pairs, which is not a multiple of the attribute "
            f"'groups' = {groups}"
        )
    if k > pairs // groups:
        b.fail(
            f"attribute 'k' is {k}, but operand 'scores' has P = {pairs} pairs in "
            f"{groups} groups: at most {pairs // groups} can be taken of each"
        )
    if b.attrs.str("probabilities") == "uniform" and mode not in ("crs", "bernoulli"):
        b.fail(f"attribute 'probabilities' is 'uniform', but mode {mode!r} goes by the scores")
    shape = (groups * slots(mode, k, pairs // groups),)
    return TensorType(shape, "int32"), TensorType(shape, "float32")


def reference(run: Run, scores: Array) -> tuple[Array, ...]:
    """Select in each group for itself; random numbers go on from group to group."""
    groups, k, mode = run.attrs.int("groups"), run.attrs.int("k"), run.attrs.str("mode")
    parts = scores.reshape(groups, -1)
    draws = parts.shape[1] if mode == "bernoulli" else k
    samples = [
        select(part, k, mode, run.attrs.str("probabilities"), run.attrs.int("seed"), group * draws)
        for group, part in enumerate(parts)
    ]
    offsets = np.arange(groups, dtype=np.int32) * parts.shape[1]
    indices = [
        np.where(sample.scales > 0, sample.indices + offset, np.int32(0))
        for sample, offset in zip(samples, offsets, strict=True)
    ]
    scales = [sample.scales for sample in samples]
    return np.concatenate(indices).astype(np.int32), np.concatenate(scales)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """Pairs are ranked: a comparison each, at least."""
    return OpCost(
        comparisons=b.size("P"),
        bytes_read=b.type("scores").nbytes,
        bytes_written=sum(t.nbytes for t in results),
    )


def limit(b: Bindings) -> int:
    """Return the number of pairs."""
    return b.size("P")


OP = OpDef(
    name="column_row_sample",
    summary="Which column-row pairs a sampled product takes, and what each counts.",
    definition=(
        "Takes about k of the pairs of each group, by their scores w (non-negative). Each is taken "
        "at most once: first the indices taken, ascending, each with its scale, which is positive; "
        "what is left of the S places of the group has index 0 and scale 0. S = k, for 'bernoulli' "
        "all pairs of the group. p = w / sum of w, or 1 / P under 'uniform'. 'crs': k draws with "
        "probabilities p, with replacement; a pair drawn c times has scale c / (k p). 'bernoulli': "
        "each pair for itself with probability q, scale 1 / q; q = min(k p, 1), what that cuts off "
        "given to the others in proportion to w until none is above 1, so that q sums to k. "
        "'topk', 'topk_weights': the k largest w, of equal ones the lowest index, scale 1. "
        "'wta_crs': the c likeliest pairs with scale 1, where c minimises (1 - sum of their p) / "
        "(k - c), the smallest c within 1e-12 of the least, and k - c draws from the others by "
        "'crs'. Scores that are infinite or NaN count "
        "alone, each alike; where all are 0, all count alike. Random numbers: word 0 of Philox "
        "4x32-10 with the key seed and the counter (position, 0, 0, 0), u = (word + 0.5) / 2^32; "
        "draw t, or pair t of 'bernoulli', of group g has position g * (k, or pairs of a group) + "
        "t. A draw is the first pair whose cumulative sum of weights exceeds u times their total. "
        "All in float64; scales are rounded once, and a backend may be off by the tolerance times "
        "the scale. Indices are exact, unless a cumulative sum is within its rounding of a draw."
    ),
    source=(
        "Adelman et al., approximate tensor operations, equations 1, 4, 15, 16 and section 6; "
        "wta_crs: Liu et al., Winner-take-all column row sampling"
    ),
    operands=(Operand("scores", ("P",), "float32", "one per pair"),),
    attrs=(
        AttrSpec("k", "int", "pairs to take of each group", minimum=1),
        AttrSpec("mode", "str", "how pairs are taken", default="topk", choices=MODES),
        AttrSpec(
            "probabilities",
            "str",
            "where those of crs and bernoulli come from",
            default="optimal",
            choices=PROBABILITIES,
        ),
        AttrSpec(
            "seed",
            "int",
            f"of the random numbers of {', '.join(RANDOM_MODES)}",
            default=0,
            minimum=0,
        ),
        AttrSpec(
            "groups", "int", "parts that each take k of their own pairs", default=1, minimum=1
        ),
    ),
    results=("indices", "scales"),
    infer=infer,
    reference=reference,
    cost=cost,
    limit=limit,
    tolerance=1e-6,
    lowering="training",
)
