"""``lut_accumulate``: look up one table row per code and sum over the codebooks."""

from __future__ import annotations

import numpy as np

from lutcc.ir.arithmetic import mean_of_groups
from lutcc.ir.spec import AttrSpec, Bindings, Known, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType

INT32_MAX = 2**31 - 1


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return the type of the sums: int32, or float32 for float tables."""
    codebooks, dtype = b.size("C"), b.type("lut").dtype
    upcast_every = b.attrs.int("upcast_every")
    if upcast_every & (upcast_every - 1):
        b.fail(
            f"attribute 'upcast_every' is {upcast_every}, but it must be a power of two in 2..256"
        )
    if b.attrs.str("accumulate") == "mean" and dtype != "uint8":
        b.fail(
            "attribute 'accumulate' is 'mean', which needs a uint8 table, but operand 'lut' is "
            f"{dtype}"
        )
    if not 1 <= b.size("K") <= 256:
        b.fail(f"operand 'lut' has K = {b.size('K')} entries, which is not in 1..256")
    b.size("M")
    if dtype == "float32":
        if "bound" in b.attrs:
            b.fail("attribute 'bound' is set, but operand 'lut' is float32 and cannot overflow")
        return (TensorType((b["N"], b["M"]), "float32"),)
    largest = 255 if dtype == "uint8" else 128
    if codebooks * largest > INT32_MAX:
        b.fail(f"C = {codebooks} codebooks of {dtype} tables may overflow the int32 sum")
    return (TensorType((b["N"], b["M"]), "int32"),)


def proven_bound(lut: Array, accumulate: str, upcast_every: int) -> int:
    """Return the largest absolute value that any partial sum of the accumulator can reach.

    Every code may pick the largest entry of its codebook, so the bound is the sum over codebooks of
    the largest absolute entry, maximised over outputs; averaging is monotone in every entry, so for
    "mean" it is the average of the largest ones.

    Parameters
    ----------
    lut
        (C, K, M) uint8 or int8.
    accumulate, upcast_every
        As in the op.

    Examples
    --------
    >>> proven_bound(np.array([[[1], [9]], [[4], [2]]], np.uint8), "exact", 16)
    13
    """
    largest = np.abs(lut.astype(np.int16)).max(axis=1)
    if accumulate == "mean":
        return int(mean_of_groups(largest.astype(np.uint8).T, upcast_every).max())
    return int(largest.sum(axis=0, dtype=np.int64).max())


def check(b: Bindings, known: Known) -> None:
    """Check that a recorded bound holds and that no code points past the table."""
    lut = known.array("lut")
    if "bound" in b.attrs and lut is not None:
        true = proven_bound(lut, b.attrs.str("accumulate"), b.attrs.int("upcast_every"))
        if b.attrs.int("bound") < true:
            b.fail(
                f"attribute 'bound' is {b.attrs.int('bound')}, but sums of operand 'lut' can "
                f"reach {true}",
                fix="drop the attribute, or run the pass choose_accumulate, which proves it",
            )
    limit = known.limit("codes")
    if limit is not None and limit > b.size("K"):
        b.fail(
            f"operand 'codes' holds codes up to {limit - 1}, but operand 'lut' has K = "
            f"{b.size('K')} entries"
        )


def reference(run: Run, codes: Array, lut: Array) -> tuple[Array, ...]:
    """Sum table rows one codebook after the other, or average them in a tree."""
    codebooks, entries, outputs = lut.shape
    if codes.size and codes.max() >= entries:
        run.fail(f"codes holds {codes.max()}, but lut has K = {entries} entries")
    if run.attrs.str("accumulate") == "mean":
        acc = np.zeros((codes.shape[0], outputs), np.int32)
        group = run.attrs.int("upcast_every")
        for c in range(0, codebooks, group):
            rows = [lut[i, codes[:, i]] for i in range(c, min(c + group, codebooks))]
            acc += mean_of_groups(np.stack(rows, axis=-1), group)
        return (acc,)
    acc = np.zeros((codes.shape[0], outputs), run.results[0].dtype)
    with np.errstate(all="ignore"):
        for c in range(codebooks):
            acc += lut[c, codes[:, c]]
    return (acc,)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """One look-up per row, codebook and output; at most K table rows per codebook are read."""
    rows, codebooks, outputs = b.size("N"), b.size("C"), b.size("M")
    lut = b.type("lut")
    table = min(rows, b.size("K")) * codebooks * outputs * lut.itemsize
    lookups = rows * codebooks * outputs
    return OpCost(
        lookups=lookups,
        flops=lookups if lut.dtype == "float32" else 0,
        table_bytes=table,
        bytes_read=rows * codebooks + table,
        bytes_written=results[0].nbytes,
    )


OP = OpDef(
    name="lut_accumulate",
    summary="Look up one table row per code and sum over the codebooks.",
    definition=(
        "exact: acc[n, m] = sum over c of lut[c, codes[n, c], m], in int32; float tables by "
        "sequential float32 additions "
        "that start from 0, c = 0..C-1. "
        "mean: C is padded with all-zero tables to a multiple of U = upcast_every; each group of "
        "U entries is reduced by a "
        "tree of avg(a, b) = (a + b + 1) >> 1 on neighbours; acc is the int32 sum of the groups' "
        "averages (not multiplied by "
        "U). Codes must be below K."
    ),
    source="Blalock and Guttag, Multiplying matrices without multiplying (MADDNESS)",
    operands=(
        Operand("codes", ("N", "C"), "uint8", "entry to take from each codebook", rows=True),
        Operand("lut", ("C", "K", "M"), "uint8|int8|float32", "tables; K in 1..256"),
    ),
    attrs=(
        AttrSpec("accumulate", "str", "how to sum", default="exact", choices=("exact", "mean")),
        AttrSpec(
            "upcast_every",
            "int",
            "group size U of mean, a power of two",
            default=16,
            minimum=2,
            maximum=256,
        ),
        AttrSpec(
            "bound",
            "int",
            "proven largest absolute value of any partial sum; set by choose_accumulate",
            optional=True,
            minimum=0,
            maximum=INT32_MAX,
        ),
    ),
    results=("acc",),
    infer=infer,
    reference=reference,
    cost=cost,
    check=check,
    rowwise=True,
)
