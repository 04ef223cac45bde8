"""``repack``: the same tensor stored in another layout."""

from __future__ import annotations

from lutcc.ir.spec import AttrSpec, Bindings, OpCost, OpDef, Operand, Run
from lutcc.ir.types import Array, TensorType


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return the type of x in the layout."""
    return (b.type("x").with_layout(b.attrs.layout("layout")),)


def reference(run: Run, x: Array) -> tuple[Array, ...]:
    """Return x: a layout is storage, not value."""
    return (x,)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """Every element is copied once."""
    size = results[0].nbytes
    return OpCost(bytes_read=size, bytes_written=size)


OP = OpDef(
    name="repack",
    summary="The same tensor stored in another layout.",
    definition="y = x, stored in the given layout.",
    source="lutcc",
    operands=(Operand("x", None, "any", "any tensor of a rank that the layout allows"),),
    attrs=(AttrSpec("layout", "layout", "the layout of the result"),),
    results=("y",),
    infer=infer,
    reference=reference,
    cost=cost,
    lowering="data_movement",
)
