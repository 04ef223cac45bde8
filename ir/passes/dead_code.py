"""Dead code: operations, functions and constants that nothing needs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lutcc.ir.module import Function, Module, Operation
from lutcc.ir.verifier import callees


@dataclass(frozen=True, slots=True)
class DeadCode:
    """Drop operations whose results are not needed, functions not called, constants not used.

    Examples
    --------
    >>> from lutcc.ir import Builder, TensorType
    >>> b = Builder("main")
    >>> x = b.param("x", TensorType((4,), "float32"))
    >>> unused = b.op("relu", x)
    >>> b.returns(x)
    >>> DeadCode()(b.module()).main.body
    ()
    """

    def __call__(self, module: Module) -> Module:
        """Return the module without dead code."""
        live = {f.name: _live(f) for f in module.functions}
        reached, waiting = {"main"}, ["main"]
        while waiting:
            for callee in callees(live[waiting.pop()]):
                if callee not in reached:
                    reached.add(callee)
                    waiting.append(callee)
        functions = tuple(live[f.name] for f in module.functions if f.name in reached)
        refs = {op.attr("ref") for f in functions for op in f.body if op.opcode == "constant"}
        return Module(functions, {k: a for k, a in module.constants.items() if k in refs})


def _live(function: Function) -> Function:
    needed = {v.name for v in function.returns}
    kept: list[Operation] = []
    for op in reversed(function.body):
        if any(v.name in needed for v in op.results):
            kept.append(op)
            needed.update(v.name for v in op.operands)
    return replace(function, body=tuple(reversed(kept)))
