"""Layout assignment: row-blocked values inside fused groups, one repack at each edge."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lutcc.ir.module import Function, Module, Operation, Value
from lutcc.ir.ops import OPS
from lutcc.ir.passes.base import fresh_name, is_rowwise
from lutcc.ir.types import Layout, TensorType

#: Ops that walk along a row: transforms and sums of it, and sums of table rows that lie end to end.
ALONG_ROWS = frozenset(
    {"hadamard", "block_diagonal_matmul", "sign_hash", "weighted_gather", "layer_norm", "softmax"}
)


@dataclass(frozen=True, slots=True)
class AssignLayouts:
    """Store the values inside every row-wise function row-blocked; repack rows at its edges.

    A function counts as row-wise if every operation in it is a constant or row-wise. Parameters
    that are read as rows are repacked at the start, returned values at the end; constants stay
    row-major. A function with an op that walks along rows (``hadamard``, ``block_diagonal_matmul``,
    ``sign_hash``, ``weighted_gather``, ``layer_norm``, ``softmax``) keeps its rows as they lie.
    What a layout means is written in :class:`lutcc.ir.Layout`; results do not change.

    Parameters
    ----------
    row_block, inner
        ``rows`` and ``inner`` of the layout.

    Examples
    --------
    >>> from lutcc.ir import parse
    >>> from lutcc.ir.passes import FuseRows
    >>> m = parse('''lutcc.ir 1 func @main(%x: float32[n, 4]) {
    ...   %y = relu(%x) : float32[n, 4] return %y }''')
    >>> [op.opcode for op in AssignLayouts()(FuseRows()(m)).function("rows0").body]
    ['repack', 'relu', 'repack']
    """

    row_block: int = 64
    inner: int = 1

    def __call__(self, module: Module) -> Module:
        """Return the module with layouts assigned in all functions but main."""
        layout = Layout("row_blocked", self.row_block, self.inner)
        return Module(
            tuple(
                _assigned(f, layout) if f.name != "main" and _takes_blocks(f) else f
                for f in module.functions
            ),
            module.constants,
        )


def _takes_blocks(function: Function) -> bool:
    rows_as_they_lie = any(op.opcode in ALONG_ROWS for op in function.body)
    return not rows_as_they_lie and all(
        op.opcode == "constant" or is_rowwise(op) for op in function.body
    )


def _assigned(function: Function, layout: Layout) -> Function:
    rows: dict[str, Value] = {}
    for op in function.body:
        if op.opcode != "constant":
            for value, spec in zip(op.operands, OPS[op.opcode].operands, strict=True):
                if spec.rows:
                    rows[value.name] = value
    names = set(function.value_names)
    current: dict[str, Value] = {}
    body: list[Operation] = []

    def repack(value: Value, type_: TensorType) -> Value:
        name = fresh_name(value.name, names)
        names.add(name)
        packed = Value(name, type_)
        body.append(Operation("repack", (value,), (packed,), (("layout", type_.layout),)))
        return packed

    for param in function.params:
        if param.name in rows and param.type.layout != layout:
            current[param.name] = repack(param, param.type.with_layout(layout))
    params = {p.name for p in function.params}
    for op in function.body:
        if op.opcode == "constant":
            body.append(op)
            continue
        for value in op.results:
            current[value.name] = Value(value.name, value.type.with_layout(layout))
        operands = tuple(
            current.get(v.name, v) if spec.rows or v.name not in params else v
            for v, spec in zip(op.operands, OPS[op.opcode].operands, strict=True)
        )
        results = tuple(current[v.name] for v in op.results)
        body.append(replace(op, operands=operands, results=results))
    returns = tuple(
        v if v.name in params or v.type.layout == layout else repack(current[v.name], v.type)
        for v in function.returns
    )
    return replace(function, body=tuple(body), returns=returns)
