"""``sampled_matmul``: a product over some column-row pairs, each times its scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from lutcc.ir.arithmetic import round_to_bfloat16
from lutcc.ir.ops.column_row_scores import GROUP_SIZE, pair_count
from lutcc.ir.spec import Bindings, Known, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, Attr, TensorType


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return (N, M) of the factors' dtype."""
    pairs = pair_count(b.size("K"), b.attrs.int("group_size"))
    if b.size("S") > pairs:
        b.fail(
            f"operand 'indices' has S = {b.size('S')} places, but operands 'a' and 'b' have only "
            f"{pairs} pairs of 'group_size' = {b.attrs.int('group_size')} columns"
        )
    return (TensorType((b["N"], b.size("M")), b.type("a").dtype),)


def check(b: Bindings, known: Known) -> None:
    """No index points past the last pair."""
    limit = known.limit("indices")
    pairs = pair_count(b.size("K"), b.attrs.int("group_size"))
    if limit is not None and limit > pairs:
        b.fail(
            f"operand 'indices' holds indices up to {limit - 1}, but operands 'a' and 'b' have "
            f"{pairs} pairs"
        )


def reference(
    run: Run, a: Array, b: Array, indices: Array, scales: Array, bias: Array
) -> tuple[Array, ...]:
    """Multiply the columns and rows taken in float64 and round once."""
    group = run.attrs.int("group_size")
    pairs = pair_count(a.shape[1], group)
    columns, factors = expand(*taken_pairs(run, indices, scales, pairs), group, a.shape[1])
    with np.errstate(all="ignore"):
        rows = b[columns].astype(np.float32) * factors[:, None]
        if b.dtype == ml_dtypes.bfloat16:
            rows = round_to_bfloat16(rows)
        y = a[:, columns].astype(np.float64) @ rows.astype(np.float64) + bias.astype(np.float64)
        return (y.astype(np.float32).astype(a.dtype),)


def taken_pairs(
    run: Run, indices: Array, scales: Array, pairs: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """Return the places whose scale is not 0, after checking that their indices exist."""
    taken = scales != 0
    found = indices[taken].astype(np.intp)
    if found.size and not (found.min() >= 0 and found.max() < pairs):
        bad = int(found.min()) if found.min() < 0 else int(found.max())
        run.fail(f"indices holds {bad}, but there are {pairs} pairs, 0..{pairs - 1}")
    return found, scales[taken].astype(np.float32)


def expand(
    pairs: npt.NDArray[np.intp], scales: npt.NDArray[np.float32], group_size: int, columns: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """Return the columns that the pairs stand for, and the scale of each.

    Examples
    --------
    >>> found = expand(np.array([0, 2]), np.float32([1, 2]), 2, 5)
    >>> found[0].tolist(), found[1].tolist()
    ([0, 1, 4], [1.0, 1.0, 2.0])
    """
    every: npt.NDArray[np.intp] = (pairs[:, None] * group_size + np.arange(group_size)).reshape(-1)
    exists = every < columns
    return every[exists], np.repeat(scales, group_size)[exists]


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """Two FLOPs per row, column taken and output, as if every place were taken."""
    rows, outputs, itemsize = b.size("N"), b.size("M"), b.type("a").itemsize
    columns = min(b.size("S") * b.attrs.int("group_size"), b.size("K"))
    selection = b.type("indices").nbytes + b.type("scales").nbytes
    return OpCost(
        flops=2 * rows * columns * outputs,
        bytes_read=(rows + outputs) * columns * itemsize + selection + b.type("bias").nbytes,
        bytes_written=results[0].nbytes,
    )


def rounding(types: Sequence[TensorType], attrs: Mapping[str, Attr]) -> float:
    """Half a unit in the last place of bfloat16 on either side."""
    del attrs
    return 2.0**-8 if types[0].dtype == "bfloat16" else 0.0


def selection_operands(what: str) -> tuple[Any, ...]:
    """Return the operands that say what is taken, and the bias."""
    return (
        Operand("indices", ("S",), "int32", f"{what} to take; see column_row_sample"),
        Operand("scales", ("S",), "float32", "what each counts; where it is 0, nothing is taken"),
    )


OP = OpDef(
    name="sampled_matmul",
    summary="A product over some column-row pairs, each times its scale.",
    definition=(
        "y[n, m] = bias[m] + sum over s with scales[s] not 0, and over the columns c of pair "
        "indices[s], of scales[s] * a[n, c] * b[c, m]. A pair p is columns p * group_size .. of a, "
        "at most group_size of them. Places of scale 0 are skipped, whatever a and b hold there; "
        "backends may rely on all that follow the first of them having scale 0 too. bfloat16: "
        "scales[s] * b[c, m] is rounded to bfloat16 first (nearest, ties to even), and y once. "
        "float32: the same product is rounded to float32. The reference sums in float64, a backend "
        "in float32, and may be off by the tolerance times the sum of the terms' magnitudes, in "
        "bfloat16 by a unit in the last place more."
    ),
    source="Adelman et al., approximate tensor operations, equations 1 and 15",
    operands=(
        Operand("a", ("N", "K"), "float32|bfloat16", "first factor"),
        Operand("b", ("K", "M"), "=a", "second factor"),
        *selection_operands("pairs"),
        Operand("bias", ("M",), "float32", "added to every row"),
    ),
    attrs=(GROUP_SIZE,),
    results=("y",),
    infer=infer,
    reference=reference,
    cost=cost,
    check=check,
    tolerance=1e-5,
    rounding=rounding,
)
