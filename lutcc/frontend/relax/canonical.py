"""A loop nest's canonical text: the same in every model that holds the same nest."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

_KEPT = {"T", "range", "True", "False", "None"}
_NUMBER = re.compile(r"(?<=[a-z])\d+(?=_|$)")


def op_name(symbol: str) -> str:
    """Return the name that TVM gave a PrimFunc without the numbers that tell copies apart.

    Examples
    --------
    >>> op_name("fused_transpose5_add")
    'fused_transpose_add'
    """
    return _NUMBER.sub("", symbol)


def kernel_text(function: Any) -> str:
    """Return the TVMScript of an unscheduled PrimFunc without names, attributes and comments.

    Two functions with the same text compute the same and run equally fast under the same schedule.

    Examples
    --------
    >>> kernel_text(first["softmax"]) == kernel_text(second["softmax3"])
    True
    """
    tree = ast.parse(function.script())
    (definition,) = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    return ast.unparse(ast.fix_missing_locations(_Canonical().visit(definition)))


def describe(symbol: str, function: Any, names: Mapping[str, str] | None = None) -> str:
    """Return name and shapes for people: ``matmul(4*n x 12 x 16, 4*n x 16 x 12) -> ...``.

    ``names`` are those of the open sizes; a single one is ``n`` if they are not given.
    """
    symbols = open_sizes(function)
    if names is None:
        names = {s: "n" for s in symbols} if len(symbols) == 1 else {}

    def size(dim: Any) -> str:
        text = re.sub(r"T\.int64\((\d+)\)", r"\1", str(dim)).replace(" ", "")
        return re.sub(r"[A-Za-z_]\w*", lambda m: names.get(m[0], m[0]), text)

    shapes = [
        "x".join(map(size, p.ty.shape)) or "scalar"
        for p in function.params
        if hasattr(p.ty, "shape")
    ]
    *inputs, output = shapes
    return f"{op_name(symbol)}({', '.join(inputs)}) -> {output}"


def open_sizes(function: Any) -> list[str]:
    """Return the names of the symbols in the shapes of a PrimFunc's buffers."""
    from tvm.tirx.analysis import undefined_vars

    found = (
        variable.name
        for p in function.params
        if hasattr(p.ty, "shape")
        for dim in p.ty.shape
        for variable in undefined_vars(dim)
    )
    return list(dict.fromkeys(found))


class _Canonical(ast.NodeTransformer):
    """Renames every name to its rank of appearance; drops what does not change the code."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def _rename(self, name: str) -> str:
        return name if name in _KEPT else self.names.setdefault(name, f"x{len(self.names)}")

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.name, node.decorator_list = "kernel", []
        for argument in node.args.args:
            argument.arg = self._rename(argument.arg)
        self.generic_visit(node)
        node.body = [statement for statement in node.body if not _is_attributes(statement)]
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(self._rename(node.id), node.ctx)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        called = ast.unparse(node.func)
        if called == "T.sblock":
            node.args = [ast.Constant("")]
        if called in ("T.Buffer", "T.sblock_alloc_buffer") and node.args:
            node.args[0] = _unquoted(node.args[0])
        self.generic_visit(node)
        return node


def _is_attributes(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and ast.unparse(statement).startswith("T.func_attr(")


def _unquoted(shape: ast.expr) -> ast.expr:
    """Return a shape in which sizes printed as strings are expressions."""
    if not isinstance(shape, ast.Tuple):
        return shape
    sizes = [
        ast.parse(size.value, mode="eval").body
        if isinstance(size, ast.Constant) and isinstance(size.value, str)
        else size
        for size in shape.elts
    ]
    return ast.Tuple(sizes, shape.ctx)
