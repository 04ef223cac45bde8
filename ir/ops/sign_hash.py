"""``sign_hash``: hash codes from the signs of a projection, and the weight of each code."""

from __future__ import annotations

import numpy as np

from lutcc.ir.spec import AttrSpec, Bindings, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType

MAX_CODE_LENGTH = 16


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return the types of codes and scores, (N, H * J) each, with H = Z / code_length."""
    length, neighbors = b.attrs.int("code_length"), b.attrs.int("neighbors")
    if b.size("Z") % length:
        b.fail(
            f"operand 'z' has Z = {b.size('Z')} columns, which is not a multiple of the attribute "
            f"'code_length' = {length}"
        )
    if neighbors > length + 1:
        b.fail(
            f"attribute 'neighbors' is {neighbors}, but a code of 'code_length' = {length} bits "
            f"has at most {length + 1}: itself, and one for each bit that may be flipped"
        )
    if b.attrs.str("variant") == "constant" and neighbors != 1:
        b.fail(
            "attribute 'variant' is 'constant', which weighs one code per table, but attribute "
            f"'neighbors' is {neighbors}"
        )
    shape = (b["N"], b.size("Z") // length * neighbors)
    return TensorType(shape, "int32"), TensorType(shape, "float32")


def reference(run: Run, z: Array) -> tuple[Array, ...]:
    """Codes by comparison, scores in float64 and rounded once."""
    length, neighbors = run.attrs.int("code_length"), run.attrs.int("neighbors")
    parts = z.reshape(z.shape[0], z.shape[1] // length, length)
    code = ((parts > 0) * (1 << np.arange(length))).sum(2, keepdims=True)
    magnitude = np.abs(parts)
    # A stable sort: of equal magnitudes the lowest position comes first, and NaN comes last.
    flipped = np.argsort(magnitude, axis=2, kind="stable")[:, :, : neighbors - 1]
    codes = np.concatenate([code, code ^ (1 << flipped)], axis=2).astype(np.int32)
    shape = run.results[0].shape
    if run.attrs.str("variant") == "constant":
        return codes.reshape(shape), np.ones(shape, np.float32)
    wide = magnitude.astype(np.float64)
    with np.errstate(all="ignore"):
        weight = 1 / (1 + np.exp(-2 * wide)).prod(2, keepdims=True)
        smallest = np.take_along_axis(wide, flipped, axis=2)
        scores = np.concatenate([weight, weight * np.exp(-2 * smallest)], axis=2)
        if run.attrs.str("variant") == "gelu":
            total = wide.sum(2, keepdims=True)
            scores *= np.concatenate([total, total - 2 * smallest], axis=2)
        return codes.reshape(shape), scores.reshape(shape).astype(np.float32)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """One comparison per element of z.

    As in the paper's tables, the few FLOPs of the scores are not counted.
    """
    return OpCost(
        comparisons=b.size("N") * b.size("Z"),
        bytes_read=b.type("z").nbytes,
        bytes_written=sum(t.nbytes for t in results),
    )


def limit(b: Bindings) -> int:
    """Codes are below 2**code_length."""
    return 1 << b.attrs.int("code_length")


OP = OpDef(
    name="sign_hash",
    summary="Hash codes from the signs of a projection, and the weight of each code.",
    definition=(
        "Table h reads the T = code_length columns v = z[n, h * T : (h + 1) * T] and gives J = "
        "neighbors codes and scores, at columns h * J .. h * J + J - 1. Code 0 has the bit of "
        "value 2**t set where v[t] > 0 (not where it is NaN). Code j >= 1 is code 0 with bit b "
        "flipped, where |v[b]| is the j-th smallest magnitude; of equal ones the lowest position "
        "comes first, and NaN counts as larger than everything. With P = sum of |v[t]| and w = "
        "product of 1 / (1 + exp(-2 |v[t]|)): 'softmax': score 0 is w, score j is w * exp(-2 "
        "|v[b]|), the softmax over all 2**T codes of <v, signs of the code>; 'gelu': score 0 is P "
        "* w, score j is (P - 2 |v[b]|) * w * exp(-2 |v[b]|), the same times <v, signs of the "
        "code> (the constant 1.175 of remark 3.1 belongs into the tables); 'constant': the score "
        "is 1 (equation 3, YOSO; its 1 / h belongs into the tables), and J must be 1. Codes are "
        "exact; the reference computes scores in float64 and rounds once, and a backend may be "
        "off by the tolerance times the score, in 'gelu' with (P + 2 |v[b]|) for (P - 2 |v[b]|); "
        "factors below 2**-126 may be taken as 0. "
        "SLIDE's retrieval of neurons (equation 2) is this op, variant 'constant', over a random "
        "projection: the codes name buckets of neuron numbers, a gather of the buckets gives the "
        "union of neurons, and the sampled-product ops to come multiply by those only."
    ),
    source="Zeng et al., LookupFFN, equations 3, 6 and 7 and section 4",
    operands=(Operand("z", ("N", "Z"), "float32", "soft hash codes; Z = H * T", rows=True),),
    attrs=(
        AttrSpec("code_length", "int", "bits T of a code", minimum=1, maximum=MAX_CODE_LENGTH),
        AttrSpec(
            "variant",
            "str",
            "what a code weighs",
            default="gelu",
            choices=("gelu", "softmax", "constant"),
        ),
        AttrSpec(
            "neighbors",
            "int",
            "codes J per table, at most T + 1",
            default=1,
            minimum=1,
            maximum=MAX_CODE_LENGTH + 1,
        ),
    ),
    results=("codes", "scores"),
    infer=infer,
    reference=reference,
    cost=cost,
    limit=limit,
    rowwise=True,
    tolerance=1e-5,
)
