"""Inlining: calls are replaced by the operations of the function they call."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lutcc.ir.module import Function, Module, Operation, Value
from lutcc.ir.passes.base import fresh_name, substitute_attr
from lutcc.ir.types import Dim, Sym, divide_dim


@dataclass(frozen=True, slots=True)
class InlineCalls:
    """Replace every call in main by the body of its function: later passes see one function.

    It makes the pipeline idempotent: a module that was outlined before is outlined again alike.

    Examples
    --------
    >>> from lutcc.ir import parse
    >>> m = parse('''lutcc.ir 1
    ... func @main(%x: float32[4]) { %y = call(%x) {callee = "f"} : float32[4] return %y }
    ... func @f(%a: float32[4]) { %b = relu(%a) : float32[4] return %b }''')
    >>> [op.opcode for op in InlineCalls()(m).main.body]
    ['relu']
    """

    def __call__(self, module: Module) -> Module:
        """Return a module of main alone."""
        if all(op.opcode != "call" for op in module.main.body):
            return Module((module.main,), module.constants)
        names = set(module.main.value_names)
        return Module((_inlined(module, module.main, names),), module.constants)


def _inlined(module: Module, function: Function, names: set[str]) -> Function:
    """Inline the calls of ``function``; ``names`` are taken (calls nest at most 32 deep)."""
    renamed: dict[str, Value] = {}
    body: list[Operation] = []
    for op in function.body:
        operands = tuple(renamed.get(v.name, v) for v in op.operands)
        if op.opcode != "call":
            body.append(replace(op, operands=operands))
            continue
        copy = _instance(module.function(str(op.attr("callee"))), operands, names)
        inner = _inlined(module, copy, names)
        body.extend(inner.body)
        renamed.update({v.name: w for v, w in zip(op.results, inner.returns, strict=True)})
    returns = tuple(renamed.get(v.name, v) for v in function.returns)
    return replace(function, body=tuple(body), returns=returns)


def _instance(function: Function, operands: tuple[Value, ...], names: set[str]) -> Function:
    """Return the function with its parameters replaced by operands and its values renamed."""
    symbols: dict[str, Dim] = {}
    values: dict[str, Value] = {}
    for param, given in zip(function.params, operands, strict=True):
        values[param.name] = given
        for wanted, dim in zip(param.type.shape, given.type.shape, strict=True):
            if isinstance(wanted, Sym):
                size = divide_dim(dim, wanted.factor)
                symbols[wanted.name] = 1 if size is None else size  # the verifier saw to it
    body: list[Operation] = []
    for op in function.body:
        for value in op.results:
            name = fresh_name(value.name, names)
            names.add(name)
            values[value.name] = Value(name, value.type.substitute(symbols))
        body.append(
            Operation(
                op.opcode,
                tuple(values[v.name] for v in op.operands),
                tuple(values[v.name] for v in op.results),
                tuple((key, substitute_attr(attr, symbols)) for key, attr in op.attrs),
            )
        )
    returns = tuple(values[v.name] for v in function.returns)
    return Function(function.name, operands, tuple(body), returns)
