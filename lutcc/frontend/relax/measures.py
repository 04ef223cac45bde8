"""What a loop nest computes in numbers: sizes, operations, bytes."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from lutcc.frontend.relax.product import find_product, is_reduction
from lutcc.frontend.relax.sizes import size_of


def nest_dims(func: Any, symbol: str | None, rows: int) -> dict[str, float]:
    """Return the numbers that decide how fast a PrimFunc is when the batch symbol is ``rows``.

    ``elements`` of the result, ``reduction`` (terms of the longest sum), ``width`` (last axis of
    the result), ``blocks``; for products ``batch``, ``i``, ``j``, ``k`` and ``transposed``.
    """
    blocks = [block for block, _ in _blocks(func)]
    result = buffers(func)[-1]
    shape = [size_of(d, symbol, rows) for d in result.shape]
    terms = [
        math.prod(size_of(v.dom.extent, symbol, rows) for v in b.iter_vars if is_reduction(v))
        for b in blocks
    ]
    dims: dict[str, float] = {
        "elements": math.prod(shape),
        "reduction": max(terms, default=1),
        "width": shape[-1] if shape else 1,
        "blocks": len(blocks),
        "batch": 0, "i": 0, "j": 0, "k": 0, "transposed": 0,
    }  # fmt: skip
    product = find_product(func)
    if product is not None:
        i = size_of(product.i_extent, symbol, rows)
        j, k = product.j or shape[-1], product.k or dims["reduction"]
        dims |= {"batch": max(1, round(dims["elements"] / (i * j))), "i": i, "j": j, "k": k}
        dims["transposed"] = float(product.b_depth)
    return dims


def nest_cost(func: Any, symbol: str | None, rows: int) -> dict[str, float]:
    """Return ``lookups`` (0), ``flops`` and ``bytes`` (inputs and results once) of one call."""
    flops = 0.0
    for block, operations in _blocks(func):
        flops += operations * math.prod(
            size_of(v.dom.extent, symbol, rows) for v in block.iter_vars
        )
    nbytes = sum(
        math.prod(size_of(d, symbol, rows) for d in b.shape) * np.dtype(str(b.dtype)).itemsize
        for b in buffers(func)
    )
    return {"lookups": 0, "flops": flops, "bytes": nbytes}


def buffers(func: Any) -> list[Any]:
    """Return the types (shape, dtype) of a PrimFunc's buffers, results last."""
    return [p.ty for p in func.params if hasattr(p.ty, "shape")]


def _blocks(func: Any) -> Iterator[tuple[Any, int]]:
    """Yield each block of an unscheduled PrimFunc and its operations per element."""
    from tvm import s_tir

    sch = s_tir.Schedule(func)
    blocks = [sch.get(b) for b in sch.get_child_blocks(sch.get_sblock("root"))]
    nodes = ast.walk(ast.parse(func.script()))
    written = [n for n in nodes if isinstance(n, ast.With) and _is_block(n)]
    for block, statement in zip(blocks, written, strict=True):
        yield block, sum(map(_operations, statement.body))


def _is_block(node: ast.With) -> bool:
    return ast.unparse(node.items[0]).startswith("T.sblock(")


def _operations(node: ast.AST) -> int:
    """Count the operations on values, not those in indices and initial values."""
    if isinstance(node, ast.With | ast.Subscript) or _is_declaration(node):
        return 0
    own = isinstance(node, ast.BinOp) or (
        isinstance(node, ast.Call) and ast.unparse(node.func) in _CALLS
    )
    return int(own) + sum(map(_operations, ast.iter_child_nodes(node)))


def _is_declaration(node: ast.AST) -> bool:
    """Tell whether a statement only names axes and regions."""
    if isinstance(node, ast.Expr):
        return ast.unparse(node).startswith(("T.reads(", "T.writes("))
    return isinstance(node, ast.Assign) and "T.axis." in ast.unparse(node.value)


_CALLS = {"T.max", "T.min", "T.rsqrt", "T.sqrt", "T.exp", "T.log", "T.pow", "T.tanh", "T.Select"}
