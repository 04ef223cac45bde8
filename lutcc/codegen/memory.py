"""Which values share memory, and how it is seen."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lutcc.codegen.products import STRIDED
from lutcc.ir.module import Function, Value
from lutcc.schedules.x86.context import External
from lutcc.schedules.x86.emit import View, i64


def stored(value: Value) -> str:
    """Return the type that memory of a value is read as: nothing computes in bfloat16 itself."""
    return "uint16" if value.type.dtype == "bfloat16" else value.type.dtype


def row_major(view: View, value: Value) -> External:
    """Return a value whose elements lie end to end as a matrix."""
    columns = math.prod(value.type.sizes(1))
    return External(view, columns, value.type.dtype, i64(columns), i64(1))


def memory_roots(main: Function) -> dict[str, str]:
    """Map each value to the value whose memory it shares (reshapes share)."""
    roots = {v.name: v.name for v in main.params}
    for op in main.body:
        for result in op.results:
            shares = op.opcode in ("reshape", "repack")
            roots[result.name] = roots[op.operands[0].name] if shares else result.name
    return roots


def read_as_whole(main: Function, roots: Mapping[str, str]) -> set[str]:
    """Name the matrices among the parameters that some reader wants with all elements end to end.

    Matrices come with any strides; only stages that see whole rows can follow those.
    """
    matrices = {v.name: v.type.shape[1] for v in main.params if len(v.type.shape) == 2}
    found = set()
    for op in main.body:
        for index, value in enumerate(op.operands):
            root = roots[value.name]
            if root not in matrices:
                continue
            follows = op.opcode == "call" or index in STRIDED.get(op.opcode, ())
            same = follows and value.type.shape[1:] == (matrices[root],)
            if not same and op.opcode not in ("reshape", "repack"):
                found.add(root)
    return found
