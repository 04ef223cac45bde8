"""``call``: run another function of the module."""

from __future__ import annotations

from lutcc.errors import suggest
from lutcc.ir.spec import AttrSpec, Bindings, OpCost, OpDef, Run
from lutcc.ir.types import Array, Dim, Sym, TensorType, divide_dim


def infer(b: Bindings) -> tuple[TensorType, ...]:
    """Return the callee's result types with its symbols bound by the operands."""
    callee = b.attrs.str("callee")
    if callee not in b.scope.functions:
        b.fail(f"the module has no function {callee!r}; {suggest(callee, b.scope.functions)}")
    function = b.scope.functions[callee]
    if len(b.types) != len(function.params):
        b.fail(f"@{callee} takes {len(function.params)} operands, but got {len(b.types)}")
    symbols: dict[str, Dim] = {}
    for index, (param, given) in enumerate(zip(function.params, b.types, strict=True)):
        if not _match(param.type, given, symbols):
            b.fail(f"operand {index} is {given}, but parameter {index} of @{callee} is {param}")
    return tuple(value.type.substitute(symbols) for value in function.returns)


def _match(param: TensorType, given: TensorType, symbols: dict[str, Dim]) -> bool:
    if (param.dtype, param.rank, param.layout) != (given.dtype, given.rank, given.layout):
        return False
    for wanted, dim in zip(param.shape, given.shape, strict=True):
        if not isinstance(wanted, Sym):
            if wanted != dim:
                return False
            continue
        value = divide_dim(dim, wanted.factor)
        if value is None or symbols.setdefault(wanted.name, value) != value:
            return False
    return True


def reference(run: Run, *arrays: Array) -> tuple[Array, ...]:
    """Interpret the callee."""
    return run.call(run.attrs.str("callee"), arrays)


def cost(b: Bindings, results: tuple[TensorType, ...]) -> OpCost:
    """Nothing of its own: the callee's operations are counted."""
    return OpCost()


OP = OpDef(
    name="call",
    summary="Run another function of the module.",
    definition="results = callee(operands); the operands' shapes bind the callee's symbols.",
    source="lutcc; made by the pass fuse_rows",
    operands=(),
    attrs=(AttrSpec("callee", "str", "name of the function"),),
    results=("result",),
    infer=infer,
    reference=reference,
    cost=cost,
    lowering="structural",
    variadic=True,
)
