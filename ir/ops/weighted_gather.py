"""``weighted_gather``: the weighted sum of one table row per code."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lutcc.ir.arithmetic import quantize_rows, round_to_bfloat16
from lutcc.ir.spec import AttrSpec, Bindings, Known, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType

INT32_MAX = 2**31 - 1
MAX_ENTRIES = 2**16


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return (N, M) float32; E must be a multiple of H, and integer sums must fit int32."""
    codes, tables, entries = b.size("E"), b.size("H"), b.size("K")
    if codes % tables:
        b.fail(
            f"operand 'codes' has E = {codes} columns, which is not a multiple of the H = {tables} "
            "tables of operand 'tables'"
        )
    if entries > MAX_ENTRIES:
        b.fail(f"operand 'tables' has K = {entries} entries, which is not in 1..2**16")
    if b.type("tables").dtype == "int8":
        if b.attrs.str("score_dtype") != "float32":
            b.fail(
                f"attribute 'score_dtype' is {b.attrs.str('score_dtype')!r}, but operand 'tables' "
                "is int8, for which scores are quantised from float32"
            )
        if codes * 127 * 128 > INT32_MAX:
            b.fail(f"E = {codes} codes of int8 tables may overflow the int32 sum")
    return (TensorType((b["N"], b.size("M")), "float32"),)


def check(b: Bindings, known: Known) -> None:
    """No code points past its table."""
    limit = known.limit("codes")
    if limit is not None and limit > b.size("K"):
        b.fail(
            f"operand 'codes' holds codes up to {limit - 1}, but operand 'tables' has K = "
            f"{b.size('K')} entries"
        )
    codes = known.array("codes")
    if codes is not None and not (codes.min() >= 0 and codes.max() < b.size("K")):
        bad = int(codes.min()) if codes.min() < 0 else int(codes.max())
        b.fail(
            f"operand 'codes' holds code {bad}, but operand 'tables' has entries "
            f"0..{b.size('K') - 1}"
        )


def reference(run: Run, codes: Array, scores: Array, tables: Array) -> tuple[Array, ...]:
    """Sum in float64 and round once; with int8 tables quantise the scores and sum integers."""
    count, entries, _ = tables.shape
    if codes.size and not (codes.min() >= 0 and codes.max() < entries):
        bad = int(codes.min()) if codes.min() < 0 else int(codes.max())
        run.fail(f"codes holds {bad}, but tables has K = {entries} entries")
    neighbors = codes.shape[1] // count
    with np.errstate(all="ignore"):
        if tables.dtype == np.int8:
            weights, unit = quantize_rows(scores)
            acc = np.zeros(run.results[0].shape, np.int32)
            for e in range(codes.shape[1]):
                acc += weights[:, e, None] * tables[e // neighbors, codes[:, e]]
            return (acc.astype(np.float32) * unit[:, None],)
        if run.attrs.str("score_dtype") == "bfloat16":
            scores = round_to_bfloat16(scores)
        wide = scores.astype(np.float64)
        y = np.zeros(run.results[0].shape, np.float64)
        for e in range(codes.shape[1]):
            y += wide[:, e, None] * tables[e // neighbors, codes[:, e]].astype(np.float64)
        return (y.astype(np.float32),)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """One look-up and two FLOPs per row, code and output, for integer tables too.

    At most K rows of a table are read.
    """
    rows, codes, tables, outputs = b.size("N"), b.size("E"), b.size("H"), b.size("M")
    lookups = rows * codes * outputs
    read = min(rows * (codes // tables), b.size("K")) * tables * outputs
    table = read * b.type("tables").itemsize
    return OpCost(
        lookups=lookups,
        flops=2 * lookups,
        table_bytes=table,
        bytes_read=b.type("codes").nbytes + b.type("scores").nbytes + table,
        bytes_written=results[0].nbytes,
    )


def exact(types: Sequence[TensorType]) -> bool:
    """Tell whether the tables are integers: then every backend gives the same bits."""
    return types[2].dtype == "int8"


OP = OpDef(
    name="weighted_gather",
    summary="The weighted sum of one table row per code.",
    definition=(
        "y[n, m] = sum over e of scores[n, e] * tables[e // J, codes[n, e], m], with J = E / H "
        "codes per table. Codes must be in 0..K-1. "
        "float32 and bfloat16 tables: score_dtype 'bfloat16' rounds the scores to bfloat16 first "
        "(nearest, ties to even); entries are widened exactly; the reference sums in float64 and "
        "rounds once, a backend sums in float32 and may be off by the tolerance times the sum of "
        "the products' magnitudes. "
        "int8 tables: an integer mode, bit-exact on every backend. In float32, each operation "
        "rounded once: a = max over e of |scores[n, e]| (NaN if one is NaN), r = 127 / a, s = a / "
        "127. q[e] = scores[n, e] * r rounded to the nearest integer, ties to even, which is in "
        "-127..127; but every q[e] is 0 where a or r is not finite (a = 0, a below 3.8e-37, an "
        "infinite score, NaN). acc = sum over e of q[e] * tables[e // J, codes[n, e], m] in int32; "
        "y = float32(acc) * s: 0 where a is 0, NaN where a is infinite or NaN. A scale per column "
        "of the tables and a bias are an affine after it."
    ),
    source="Zeng et al., LookupFFN, equations 4 and 7",
    operands=(
        Operand("codes", ("N", "E"), "int32", "rows to take, J for each table", rows=True),
        Operand("scores", ("N", "E"), "float32", "the weight of each", rows=True),
        Operand(
            "tables",
            ("H", "K", "M"),
            "float32|bfloat16|int8",
            "one table of K rows for each group of J codes; K in 1..2**16",
        ),
    ),
    attrs=(
        AttrSpec(
            "score_dtype",
            "str",
            "what the scores are rounded to first",
            default="float32",
            choices=("float32", "bfloat16"),
        ),
    ),
    results=("y",),
    infer=infer,
    reference=reference,
    cost=cost,
    check=check,
    rowwise=True,
    tolerance=1e-5,
    exact=exact,
)
