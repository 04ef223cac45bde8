"""``reshape``: the same elements in row-major order under another shape."""

from __future__ import annotations

from lutcc.ir.spec import AttrSpec, Bindings, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType, element_count, shape_text


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return the new shape; element counts must agree for every value of the symbols."""
    b.require_row_major("x")
    x, shape = b.type("x"), b.attrs.shape("shape")
    result = TensorType(shape, x.dtype)
    if element_count(x.shape) != element_count(shape):
        b.fail(
            f"operand 'x' of shape {shape_text(x.shape)} and attribute 'shape' "
            f"{shape_text(shape)} do not hold "
            "equally many elements for every value of the symbols"
        )
    return (result,)


def reference(run: Run, x: Array) -> tuple[Array, ...]:
    """Reshape in row-major order."""
    return (x.reshape(run.results[0].shape),)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """Nothing: a row-major reshape moves no bytes."""
    return OpCost()


OP = OpDef(
    name="reshape",
    summary="The same elements in row-major order under another shape.",
    definition="y = x.reshape(shape); the element counts agree for every value of the symbols.",
    source="torch.reshape",
    operands=(Operand("x", None, "any", "any shape"),),
    attrs=(AttrSpec("shape", "shape", "the new shape, numbers and symbols", minimum=1),),
    results=("y",),
    infer=infer,
    reference=reference,
    cost=cost,
    lowering="data_movement",
)
