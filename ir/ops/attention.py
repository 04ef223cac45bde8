"""``attention``: scaled dot product attention over heads that lie side by side."""

from __future__ import annotations

import numpy as np

from lutcc.ir.spec import AttrSpec, Bindings, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType, shape_text

MASKS = {"none": "float32", "add": "float32", "keep": "uint8"}


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return (N, S, heads * width of a head's values) float32."""
    heads, groups = b.attrs.int("heads"), b.attrs.int("kv_heads")
    if heads % groups:
        b.fail(f"'heads' = {heads} is not a multiple of 'kv_heads' = {groups}")
    for name, size, parts in (("q", "E", heads), ("k", "G", groups), ("v", "F", groups)):
        if b.size(size) % parts:
            b.fail(f"operand {name!r} has {b.size(size)} columns for {parts} heads")
    if b.size("E") // heads != b.size("G") // groups:
        b.fail(
            f"heads of operand 'q' have {b.size('E') // heads} columns, those of 'k' "
            f"{b.size('G') // groups}"
        )
    _check_mask(b)
    return (TensorType((b["N"], b["S"], b.size("F") // groups * heads), "float32"),)


def _check_mask(b: Bindings) -> None:
    kind, mask = b.attrs.str("mask"), b.type("mask")
    if mask.dtype != MASKS[kind]:
        b.fail(f"operand 'mask' is {mask.dtype}, but 'mask' = {kind!r} takes {MASKS[kind]}")
    wanted = (1, 1, 1, 1)
    if kind != "none":
        wanted = (b["N"], b.attrs.int("heads"), b["S"], b["T"])
    if any(have not in (1, want) for have, want in zip(mask.shape, wanted, strict=True)):
        b.fail(
            f"operand 'mask' is {shape_text(mask.shape)}, which does not broadcast to "
            f"{shape_text(wanted)}"
        )


def reference(run: Run, q: Array, k: Array, v: Array, mask: Array) -> tuple[Array, ...]:
    """Sum in float64, and round once."""
    heads, groups = run.attrs.int("heads"), run.attrs.int("kv_heads")
    with np.errstate(all="ignore"):
        query, key, value = (
            x.astype(np.float64).reshape(*x.shape[:2], parts, -1).transpose(0, 2, 1, 3)
            for x, parts in ((q, heads), (k, groups), (v, groups))
        )
        key, value = (np.repeat(x, heads // groups, axis=1) for x in (key, value))
        scores = query @ key.swapaxes(-1, -2) * np.float64(np.float32(run.attrs.float("scale")))
        kind = run.attrs.str("mask")
        if kind == "add":
            scores = scores + mask.astype(np.float64)
        elif kind == "keep":
            scores = np.where(mask != 0, scores, -np.inf)
        if run.attrs.bool("causal"):
            later = np.arange(scores.shape[-1]) > np.arange(scores.shape[-2])[:, None]
            scores = np.where(later, -np.inf, scores)
        if scores.shape[-1] == 0:
            return (np.zeros((*q.shape[:2], value.shape[-1] * heads), np.float32),)
        largest = scores.max(-1, keepdims=True)
        unseen = (scores == -np.inf).all(-1, keepdims=True)
        weights = np.exp(scores - np.where(unseen, 0, largest))
        weights /= weights.sum(-1, keepdims=True)
        if kind != "none" or run.attrs.bool("causal"):
            weights = np.where(unseen, 0, weights)
        y = weights @ value
    rows = y.transpose(0, 2, 1, 3).reshape(*q.shape[:2], -1)
    return (rows.astype(np.float32),)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """Two FLOPs per query, key and column of keys and values; those of the softmax not counted."""
    heads, groups = b.attrs.int("heads"), b.attrs.int("kv_heads")
    columns = b.size("E") + b.size("F") // groups * heads
    return OpCost(
        flops=2 * b.size("N") * b.size("S") * b.size("T") * columns,
        bytes_read=sum(t.nbytes for t in b.types),
        bytes_written=results[0].nbytes,
    )


OP = OpDef(
    name="attention",
    summary="Scaled dot product attention; heads lie side by side in the columns.",
    definition=(
        "With d = E / heads, e = F / kv_heads, and for head h its group g = h // (heads / "
        "kv_heads): s[n, h, i, j] = scale * (sum over c < d of q[n, i, h*d + c] * k[n, j, g*d + "
        "c]) + m[n, h, i, j], p = softmax of s over j, y[n, i, h*e + c] = sum over j of p[n, h, i, "
        "j] * v[n, j, g*e + c]. m is 0 where mask = 'none', the operand (any dimension may be 1) "
        "where mask = 'add', and -inf where the operand is 0 where mask = 'keep'; with causal, "
        "s is -inf where j > i. A row that sees nothing (all s = -inf by a mask or causal) gives "
        "zeros, without either NaN. The reference sums in float64; a backend may be off by the "
        "tolerance times the sum of the terms' magnitudes, where scores are at most some tens. "
        "With compute = bfloat16 it may round q, k, v and the numerators of p to bfloat16 "
        "(nearest, ties to even), and be off by 2**-7 times that sum."
    ),
    source="torch.nn.functional.scaled_dot_product_attention; Vaswani et al., equation 1",
    operands=(
        Operand("q", ("N", "S", "E"), "float32", "queries"),
        Operand("k", ("N", "T", "G"), "float32", "keys"),
        Operand("v", ("N", "T", "F"), "float32", "values"),
        Operand("mask", ("MN", "MH", "MS", "MT"), "float32|uint8", "(1, 1, 1, 1) if unused"),
    ),
    attrs=(
        AttrSpec("heads", "int", "heads of q", minimum=1),
        AttrSpec("kv_heads", "int", "heads of k and v, a divisor of heads", minimum=1),
        AttrSpec("scale", "float", "what products are multiplied with"),
        AttrSpec("mask", "str", "what the mask means", default="none", choices=tuple(MASKS)),
        AttrSpec("causal", "bool", "queries see no later keys", default=False),
        AttrSpec(
            "compute",
            "str",
            "bfloat16 lets a backend round what it multiplies",
            default="float32",
            choices=("float32", "bfloat16"),
        ),
    ),
    results=("y",),
    infer=infer,
    reference=reference,
    cost=cost,
    tolerance=1e-5,
)
