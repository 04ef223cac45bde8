"""``dense``: an exact fully connected layer in float32, bfloat16 or int8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lutcc.ir.arithmetic import activate, quantize_rows, round_to_bfloat16
from lutcc.ir.ops.activation import EPILOGUE
from lutcc.ir.ops.codebook_matmul import MAX_INT8_COLUMNS
from lutcc.ir.spec import AttrSpec, Bindings, Known, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, Attr, TensorType, numpy_dtype

COMPUTE = AttrSpec(
    "compute",
    "str",
    "arithmetic of the products",
    default="float32",
    choices=("float32", "bfloat16", "int8"),
)
OUT_DTYPE = AttrSpec(
    "out_dtype",
    "str",
    "element type of the result",
    default="float32",
    choices=("float32", "bfloat16"),
)


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return (N, M) of ``out_dtype``."""
    check_arithmetic(b, b.size("K"), f"K = {b.size('K')} columns")
    return (TensorType((b["N"], b.size("M")), b.attrs.str("out_dtype")),)


def check_arithmetic(b: Bindings, terms: int, named: str) -> None:
    """Fail unless weights have the type of ``compute``, and sums of ``terms`` products fit."""
    dtype, compute = b.type("weight").dtype, b.attrs.str("compute")
    if (dtype == "int8") != (compute == "int8"):
        b.fail(
            f"operand 'weight' is {dtype}, but 'compute' is {compute!r}: integers are multiplied "
            "with integers only (lutcc.ir.arithmetic.quantize_rows makes them)"
        )
    if compute == "int8" and terms > MAX_INT8_COLUMNS:
        b.fail(f"{named} may overflow the int32 sums of 'compute' = 'int8'")


def check(b: Bindings, known: Known) -> None:
    """Integers are symmetric."""
    weight = known.array("weight")
    if weight is not None and weight.dtype == np.int8 and (weight == -128).any():
        b.fail("operand 'weight' has -128; its integers must be in -127 .. 127")


def reference(run: Run, x: Array, weight: Array, units: Array, bias: Array) -> tuple[Array, ...]:
    """Multiply: integers exactly, floats in float64, rounded once, to bfloat16 once more."""
    compute, out = run.attrs.str("compute"), numpy_dtype(run.attrs.str("out_dtype"))
    x = x.astype(np.float32)
    with np.errstate(all="ignore"):
        if compute == "int8":
            if (weight == -128).any():
                run.fail("weight has -128; its integers must be in -127 .. 127")
            q, unit = quantize_rows(x)
            # below 2**53: exact
            acc = (q.astype(np.float64) @ weight.astype(np.float64).T).astype(np.int32)
            y = acc.astype(np.float32) * (unit[:, None] * units) + bias
        else:
            w = weight.astype(np.float32)
            if compute == "bfloat16":
                x, w = round_to_bfloat16(x), round_to_bfloat16(w)
            sums = x.astype(np.float64) @ w.astype(np.float64).T
            y = (sums * units.astype(np.float64) + bias.astype(np.float64)).astype(np.float32)
        return (activate(y, run.attrs.str("activation")).astype(out),)


def exact(types: Sequence[TensorType]) -> bool:
    """Integers are."""
    return types[1].dtype == "int8"


def rounding(types: Sequence[TensorType], attrs: Mapping[str, Attr]) -> float:
    """Results of bfloat16 may be its neighbours: a unit in the last place."""
    del types
    return 2.0**-7 if attrs.get("out_dtype") == "bfloat16" else 0.0


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """Two FLOPs per row, input and output."""
    return OpCost(
        flops=2 * b.size("N") * b.size("K") * b.size("M"),
        bytes_read=sum(t.nbytes for t in b.types),
        bytes_written=results[0].nbytes,
    )


OP = OpDef(
    name="dense",
    summary="An exact fully connected layer whose weights are float32, bfloat16 or int8.",
    definition=(
        "y[n, m] = activation(units[m] * (sum over k of x[n, k] * weight[m, k]) + bias[m]). "
        "compute = float32: sums as for linear, off by the tolerance times the sum of the terms' "
        "magnitudes; bfloat16 weights are as good as float32 ones of their values. bfloat16: x and "
        "weight are rounded to bfloat16 first (nearest, ties to even). int8, exact up to an "
        "activation that is not: weight is in "
        "-127 .. 127, q[n, k] = round_half_even(x[n, k] * (127 / a)), a = max |x[n, :]|, and y = "
        "float32(sum of q * weight) * ((a / 127) * units) + bias, each operation rounded to "
        "float32. Where 127 / a is not finite, q is 0; a row with a NaN or an infinity gives NaN. "
        "The integers of a weight W and their units are those that rows of x get: of row m, "
        "round_half_even(W[m, k] * (127 / u)) and u / 127, u = max |W[m, :]|. x in bfloat16 is as "
        "good as float32 of its values; a result in bfloat16 is the float32 one rounded (nearest, "
        "ties to even), off by a unit in the last place more where that one may be off."
    ),
    source="torch.nn.functional.linear",
    operands=(
        Operand("x", ("N", "K"), "float32|bfloat16", "rows"),
        Operand("weight", ("M", "K"), "float32|bfloat16|int8", "weights, one row per output"),
        Operand("units", ("M",), "float32", "what the sum of each row of weights is times"),
        Operand("bias", ("M",), "float32", "added to every row"),
    ),
    attrs=(COMPUTE, EPILOGUE, OUT_DTYPE),
    results=("y",),
    infer=infer,
    reference=reference,
    cost=cost,
    check=check,
    tolerance=1e-5,
    exact=exact,
    rounding=rounding,
)
