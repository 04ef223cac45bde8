"""``activation``: a smooth function of each element."""

from __future__ import annotations

from lutcc.ir.activations import DEFINITION, KINDS, TOLERANCE, apply
from lutcc.ir.spec import AttrSpec, Bindings, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType

#: Of a product: what is done with its sums while they are in registers.
EPILOGUE = AttrSpec(
    "activation",
    "str",
    "applied to the result, see activation",
    default="none",
    choices=("none", "relu", *KINDS),
)


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return the type of x, row-major."""
    return (TensorType(b.type("x").shape, "float32"),)


def reference(run: Run, x: Array) -> tuple[Array, ...]:
    """Compute in float64 and round once."""
    return (apply(run.attrs.str("kind"), x),)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """About twenty operations for each element: two polynomials, or an exponential."""
    size = results[0].nbytes
    return OpCost(flops=20 * (size // 4), bytes_read=size, bytes_written=size)


OP = OpDef(
    name="activation",
    summary="A smooth function of each element.",
    definition=(
        f"y = kind(x), where {DEFINITION}. Computed in float64, rounded once; a backend may be off "
        "by the tolerance times (|x| + 1). NaN passes; what an infinity gives is the formula's own "
        "limit, save that -inf gives NaN where the formula multiplies it by zero."
    ),
    source="torch.nn.functional.gelu, silu, sigmoid, tanh, hardswish, hardsigmoid, elu, "
    "softplus, mish",
    operands=(Operand("x", None, "float32", "any shape", rows=True),),
    attrs=(AttrSpec("kind", "str", "which function", choices=KINDS),),
    results=("y",),
    infer=infer,
    reference=reference,
    cost=cost,
    rowwise=True,
    tolerance=TOLERANCE,
)
