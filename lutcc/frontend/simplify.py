"""Take out of an exported graph what computes nothing: copies, movement there and back, repeats."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from lutcc.frontend.symbols import expression

aten = torch.ops.aten

_COPIES = (aten.clone.default, aten.alias.default, aten.detach.default)
_VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)


def simplify(program: ExportedProgram) -> ExportedProgram:
    """Simplify a functional program in place, and return it; its results stay the same bits.

    Copies go (nothing is changed in place), movement that undoes movement before it, changes of
    shape that another one follows, and what was computed before from the same operands: a model
    that makes its attention mask in each layer makes it once.

    Examples
    --------
    >>> simplify(torch.export.export(model, (x,)).run_decompositions()).graph
    """
    graph = program.graph_module.graph
    seen: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        for rule in (_copy, _view, _permute, _expand):
            found = rule(node)
            if found is not None:
                _replace(node, found)
                break
        else:
            key = _key(node)
            if key is not None and seen.setdefault(key, node) is not node:
                _replace(node, seen[key])
    _drop_unused(graph)
    program.graph_module.recompile()
    return program


def _replace(node: Node, by: Node) -> None:
    """Let all but the program's outputs, whose names are known outside, read another node."""
    node.replace_all_uses_with(by, delete_user_cb=lambda user: user.op != "output")


def _copy(node: Node) -> Node | None:
    if node.target not in _COPIES:
        return None
    (source,) = node.all_input_nodes
    return source


def _view(node: Node) -> Node | None:
    """Look through a view of a view."""
    if node.target not in _VIEWS:
        return None
    source = node.args[0]
    assert isinstance(source, Node)
    while source.target in _VIEWS and isinstance(source.args[0], Node):
        source = source.args[0]
    if _same_shape(node, source):
        return source
    node.args = (source, *node.args[1:])
    return None


def _permute(node: Node) -> Node | None:
    """Undo an order of dimensions that brings back the one before the last change."""
    if node.target is not aten.permute.default:
        return None
    source, order = node.args[0], _positive(node)
    if order == sorted(order):
        return source if isinstance(source, Node) else None
    if not isinstance(source, Node) or source.target is not aten.permute.default:
        return None
    before = _positive(source)
    inner = source.args[0]
    assert isinstance(inner, Node)
    if [before[axis] for axis in order] == sorted(order):
        return inner
    return None


def _positive(node: Node) -> list[int]:
    order = node.args[1]
    assert isinstance(order, (list, tuple))
    return [int(axis) % len(order) for axis in order]  # type: ignore[arg-type]


def _expand(node: Node) -> Node | None:
    """Leave out an expansion to the shape that was there."""
    if node.target is not aten.expand.default:
        return None
    source = node.args[0]
    return source if isinstance(source, Node) and _same_shape(node, source) else None


def _same_shape(node: Node, other: Node) -> bool:
    a, b = node.meta.get("val"), other.meta.get("val")
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return False
    return [expression(d) for d in a.shape] == [expression(d) for d in b.shape]


def _key(node: Node) -> Any:
    """Return what two nodes that compute the same have in common; None for what is not pure."""
    target: Any = node.target
    if target is not operator.getitem:
        if not isinstance(target, torch._ops.OpOverload) or node.is_impure():
            return None
        if torch.Tag.nondeterministic_seeded in target.tags or target._schema.is_mutable:
            return None
    try:
        arguments = _frozen((node.args, sorted(node.kwargs.items())))
        hash(arguments)
    except TypeError:
        return None
    return target, arguments


def _frozen(value: Any) -> Any:
    """Return arguments as something hashable; 1, 1.0 and True stay apart, and 0.0 and -0.0."""
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(v) for v in value)
    if isinstance(value, float):
        return float, value.hex()
    return value if isinstance(value, Node) else (type(value), value)


def _drop_unused(graph: Graph) -> None:
    """Erase nodes of the graph that nothing reads, but not assertions."""
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users and not node.is_impure():
            graph.erase_node(node)
