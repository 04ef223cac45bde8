"""Constant folding: what can be computed now is computed now, by the interpreter."""

from __future__ import annotations

from dataclasses import dataclass

from lutcc.ir.interpreter import interpret
from lutcc.ir.module import Function, Module, Operation
from lutcc.ir.passes.base import Editor, rewrite
from lutcc.ir.passes.dead_code import DeadCode
from lutcc.ir.types import ROW_MAJOR


@dataclass(frozen=True, slots=True)
class FoldConstants:
    """Evaluate operations whose operands are all constants; drop reshapes and relus without effect.

    Parameters
    ----------
    max_bytes
        A result larger than this and larger than its operands is left to run time.

    Examples
    --------
    >>> import numpy as np
    >>> from lutcc.ir import Builder
    >>> b = Builder("main")
    >>> b.returns(b.op("relu", b.constant("c", np.array([-1, 1], np.float32))))
    >>> m = FoldConstants()(b.module())
    >>> [op.opcode for op in m.main.body], m.constant("y").tolist()
    (['constant'], [0.0, 1.0])
    """

    max_bytes: int = 2**26

    def __call__(self, module: Module) -> Module:
        """Return the folded module."""
        return rewrite(module, (self._evaluate, no_effect), DeadCode())

    def _evaluate(self, editor: Editor, op: Operation) -> bool:
        if op.opcode in ("constant", "call") or not op.operands:
            return False
        if any(v.type.layout != ROW_MAJOR for v in op.results):
            return False
        arrays = editor.arrays(*op.operands)
        if arrays is None:
            return False
        size = sum(v.type.nbytes for v in op.results)
        if size > max(self.max_bytes, sum(a.nbytes for a in arrays)):
            return False
        params = tuple(dict.fromkeys(op.operands))  # add(c, c) reads one value twice
        inputs = [a for p in params if (a := editor.array(p)) is not None]
        results = interpret(Module((Function("main", params, (op,), op.results),)), inputs)
        for value, array in zip(op.results, results, strict=True):
            editor.alias(value, editor.emit_constant(value.name, array))
        return True


def no_effect(editor: Editor, op: Operation) -> bool:
    """Drop a reshape to the same shape, join two in a row, drop a relu of what has one."""
    if op.opcode == "reshape":
        source = op.operands[0]
        if source.type == op.result.type:
            editor.alias(op.result, source)
            return True
        inner = editor.producer(source, "reshape")
        if inner is not None:
            editor.emit_op("reshape", inner.operands, op.results, shape=op.attr("shape"))
            return True
    if op.opcode == "relu":
        source = op.operands[0]
        inner = editor.producer(source, "relu", "linear", "lut_dequantize")
        positive = inner is not None and (
            inner.opcode == "relu" or inner.attr("activation") == "relu"
        )
        if positive and source.type == op.result.type:
            editor.alias(op.result, source)
            return True
    return False
