"""Layouts undone: everything inside main row-major again, so that assign_layouts starts afresh."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lutcc.ir.module import Function, Module, Operation, Value
from lutcc.ir.passes.base import is_rowwise, retyped
from lutcc.ir.types import ROW_MAJOR, TensorType


@dataclass(frozen=True, slots=True)
class EraseLayouts:
    """Drop repacks and store the results of row-wise ops row-major; parameters and returns stay.

    Examples
    --------
    >>> from lutcc.ir import parse
    >>> m = parse('''lutcc.ir 1 func @main(%x: float32[n, 4]) {
    ...   %p = repack(%x) {layout = layout row_blocked<64, 1>} : float32[n, 4] row_blocked<64, 1>
    ...   %y = relu(%p) : float32[n, 4] return %y }''')
    >>> [op.opcode for op in EraseLayouts()(m).main.body]
    ['relu']
    """

    def __call__(self, module: Module) -> Module:
        """Return the module with the layouts inside its functions erased."""
        return Module(tuple(_erased(f) for f in module.functions), module.constants)


def _erased(function: Function) -> Function:
    kept = {v.name for v in function.returns}
    strict = {  # read by something that cares about the layout
        v.name
        for op in function.body
        if op.opcode != "repack" and not is_rowwise(op)
        for v in op.operands
    }
    types: dict[str, TensorType] = {}
    renamed: dict[str, Value] = {}
    body: list[Operation] = []
    for original in function.body:
        operands = tuple(renamed.get(v.name, v) for v in original.operands)
        op = retyped(replace(original, operands=operands), types)
        if op.opcode == "repack":
            source, result = op.operands[0], op.result
            plain_source = source.type.layout == ROW_MAJOR
            free = result.name not in kept and (plain_source or result.name not in strict)
            if free or source.type == result.type:
                renamed[result.name] = source
                continue
        elif is_rowwise(op):
            plain = {
                v.name: v.type.with_layout(ROW_MAJOR) for v in op.results if v.name not in kept
            }
            types.update(plain)
            op = retyped(op, plain)
        body.append(op)
    returns = tuple(renamed.get(v.name, v) for v in function.returns)
    return replace(function, body=tuple(body), returns=returns)
