"""``constant``: a named array of the module."""

from __future__ import annotations

from lutcc.errors import suggest
from lutcc.ir.spec import AttrSpec, Bindings, OpCost, OpDef, Run
from lutcc.ir.types import Array, TensorType, type_of_array


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return the type of the array."""
    ref = b.attrs.str("ref")
    if ref not in b.scope.constants:
        b.fail(f"the module has no constant {ref!r}; {suggest(ref, b.scope.constants)}")
    return (type_of_array(b.scope.constants[ref]),)


def reference(run: Run) -> tuple[Array, ...]:
    """Return the array."""
    return (run.constant(run.attrs.str("ref")),)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """Nothing: whoever reads the constant pays for the bytes."""
    return OpCost()


OP = OpDef(
    name="constant",
    summary="A named array of the module.",
    definition="value = module.constants[ref]",
    source="lutcc",
    operands=(),
    attrs=(AttrSpec("ref", "str", "name of the array in the module's constants"),),
    results=("value",),
    infer=infer,
    reference=reference,
    cost=cost,
    lowering="structural",
)
