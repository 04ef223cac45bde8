"""Which operations of an exported graph are layers: products of a parameter, and their options."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch.fx import Node

aten = torch.ops.aten
ParameterOf: TypeAlias = Callable[[Any], torch.nn.Parameter | None]

_OWNERS = {
    f"{kind.__module__}.{kind.__qualname__}"
    for kind in (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Embedding)
}


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A layer that an operation is.

    Parameters
    ----------
    name
        Of the module that it was, or else after its weight.
    owned
        Whether a ``torch.nn`` module of that kind computed it; as far as the graph tells.
    source
        Path of its weight in the program.
    module
        A new layer with the parameters.
    input
        What it is given.
    options
        What the layer depends on beside its parameters.
    views
        Nodes that bring the weight into form: of no use once the layer is there.
    """

    name: str
    owned: bool
    source: str
    module: torch.nn.Module
    input: Node
    options: tuple[Any, ...] = ()
    views: tuple[Node, ...] = ()

    @property
    def weight(self) -> torch.Tensor:
        """Its weight."""
        weight = self.module.weight
        assert isinstance(weight, torch.Tensor)
        return weight

    @property
    def bias(self) -> torch.Tensor | None:
        """Its bias, if it has one."""
        return getattr(self.module, "bias", None)


def find_layer(node: Node, parameter: ParameterOf) -> Found | None:
    """Return the layer that an operation is; None if it is none.

    Parameters
    ----------
    node
        Of the graph.
    parameter
        Returns the parameter that a node reads; None if it reads none.
    """
    rule = _RULES.get(node.target) if node.op == "call_function" else None
    return None if rule is None else rule(node, parameter)


def _arguments(node: Node) -> dict[str, Any]:
    """Return an operation's arguments by name, with what is left out."""
    target: Any = node.target
    schema = target._schema.arguments
    given = dict(zip((a.name for a in schema), node.args, strict=False)) | dict(node.kwargs)
    return {a.name: given.get(a.name, a.default_value) for a in schema}


def _bias_of(node: Any, parameter: ParameterOf, size: int) -> tuple[bool, Any]:
    """Return whether a bias can be a layer's, and the parameter."""
    if node is None:
        return True, None
    bias = parameter(node)
    return bias is not None and tuple(bias.shape) == (size,), bias


def _linear(
    node: Node, parameter: ParameterOf, given: Any, weight: Any, bias: Any, views: Sequence[Node]
) -> Found | None:
    matrix = parameter(weight)
    if matrix is None or matrix.dim() != 2 or not isinstance(given, Node):
        return None
    fits, vector = _bias_of(bias, parameter, matrix.shape[0])
    if not fits:
        return None
    layer = torch.nn.Linear(matrix.shape[1], matrix.shape[0], vector is not None, device="meta")
    return _found(node, weight, layer, matrix, vector, given, (), tuple(views))


def _plain_linear(node: Node, parameter: ParameterOf) -> Found | None:
    a = _arguments(node)
    return _linear(node, parameter, a["input"], a["weight"], a["bias"], ())


def _product(node: Node, parameter: ParameterOf) -> Found | None:
    """``mm``, ``matmul`` and ``addmm`` with a transposed parameter: what a linear is made of."""
    a = _arguments(node)
    left, right = (a["mat1"], a["mat2"]) if "mat1" in a else (a["self"], _second(a))
    if not isinstance(right, Node) or not _transposes(right):
        return None
    if a.get("alpha", 1) != 1 or a.get("beta", 1) != 1:
        return None
    bias = a["self"] if "mat1" in a else None
    return _linear(node, parameter, left, right.args[0], bias, (right,))


def _second(arguments: dict[str, Any]) -> Any:
    return arguments["mat2"] if "mat2" in arguments else arguments["other"]


def _transposes(node: Node) -> bool:
    """Tell whether a node is the transpose of a matrix."""
    if node.op != "call_function":
        return False
    a: tuple[Any, ...] = node.args
    if node.target is aten.t.default:
        return True
    if node.target is aten.permute.default:
        return [int(i) % 2 for i in _numbers(a[1])] == [1, 0] and len(_numbers(a[1])) == 2
    if node.target is aten.transpose.int:
        return {a[1], a[2]} in ({0, 1}, {-1, -2})
    return False


def _numbers(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, Sequence) else (value,)
    return tuple(int(v) for v in values)


def _convolution(node: Node, parameter: ParameterOf) -> Found | None:
    a = _arguments(node)
    kernel = parameter(a["weight"])
    if kernel is None or kernel.dim() != 4 or a.get("transposed"):
        return None
    fits, vector = _bias_of(a["bias"], parameter, kernel.shape[0])
    groups, padding = a["groups"], a["padding"]
    sizes = [a["stride"], a["dilation"], *([] if isinstance(padding, str) else [padding])]
    if not fits or not isinstance(groups, int) or not all(map(_fixed, sizes)):
        return None
    stride, dilation = (_pair(s) for s in sizes[:2])
    padding = padding if isinstance(padding, str) else _pair(padding)
    options = (stride, padding, dilation, groups)
    layer = torch.nn.Conv2d(
        kernel.shape[1] * groups, kernel.shape[0], (kernel.shape[2], kernel.shape[3]),
        stride, padding, dilation, groups, vector is not None, device="meta",
    )  # fmt: skip
    given = a["input"] if "input" in a else a["self"]
    return _found(node, a["weight"], layer, kernel, vector, given, options)


def _fixed(sizes: Any) -> bool:
    return all(isinstance(v, int) for v in (sizes if isinstance(sizes, Sequence) else (sizes,)))


def _pair(sizes: Any) -> tuple[int, int]:
    """Return two numbers; torch takes one for both."""
    values = _numbers(sizes)
    return (values[0], values[-1])


def _embedding(node: Node, parameter: ParameterOf) -> Found | None:
    a = _arguments(node)
    table = parameter(a["weight"])
    if table is None or table.dim() != 2:
        return None
    rows = table.shape[0]
    padding = a["padding_idx"] if a["padding_idx"] >= 0 else None
    options = (padding, a["scale_grad_by_freq"], a["sparse"])
    layer = torch.nn.Embedding(
        rows, table.shape[1], padding, scale_grad_by_freq=options[1], sparse=options[2],
        device="meta",
    )  # fmt: skip
    return _found(node, a["weight"], layer, table, None, a["indices"], options)


def _found(
    node: Node,
    source: Node,
    layer: torch.nn.Module,
    weight: torch.nn.Parameter,
    bias: torch.nn.Parameter | None,
    given: Any,
    options: tuple[Any, ...],
    views: tuple[Node, ...] = (),
) -> Found | None:
    if not isinstance(given, Node):
        return None
    layer.weight = weight
    if bias is not None:
        layer.bias = bias
    path, kind = _owner(node)
    target = str(source.target)
    owned = kind in _OWNERS if kind else target.endswith(".weight")
    name = path if kind in _OWNERS and path else _after(target)
    return Found(name or type(layer).__name__.lower(), owned, target, layer, given, options, views)


def _owner(node: Node) -> tuple[str, str]:
    """Return path and class of the module that a node comes from; "" if the graph does not tell."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return "", ""
    path, kind = list(stack.values())[-1]
    path = path.removeprefix("L['self'].").removeprefix("L['self']")
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    return re.sub(r"@\d+", "", path), kind


def _after(weight: str) -> str:
    """Return the name of a layer by that of its weight.

    Examples
    --------
    >>> _after("encoder.0.weight"), _after("attention.in_proj_weight"), _after("head.table")
    ('encoder.0', 'attention.in_proj', 'head.table')
    """
    for end in (".weight", "_weight"):
        if weight.endswith(end) and weight != end:
            return weight.removesuffix(end)
    return "" if weight == "weight" else weight


_RULES: dict[Any, Callable[[Node, ParameterOf], Found | None]] = {
    aten.linear.default: _plain_linear,
    aten.mm.default: _product,
    aten.matmul.default: _product,
    aten.addmm.default: _product,
    aten.conv2d.default: _convolution,
    aten.conv2d.padding: _convolution,
    aten.convolution.default: _convolution,
    aten.embedding.default: _embedding,
}
