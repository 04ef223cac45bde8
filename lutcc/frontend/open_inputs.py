"""The inputs of an exported program: examples, and which sizes of them are open."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.utils import _pytree as pytree

from lutcc.errors import FrontendError
from lutcc.frontend.dynamic import two_of
from lutcc.frontend.symbols import bounds, expression, named_symbols
from lutcc.frontend.tracing import trace

_UNNAMED = "take it from torch.export.export with sizes that are plain torch.export.Dim"


@dataclass(frozen=True, slots=True)
class OpenInputs:
    """What a program is called with.

    Parameters
    ----------
    names
        Of its tensors, flattened.
    examples
        Tensors of sizes that it takes, in the same order.
    axes
        Of each the open dimensions: what ``torch.export`` takes as ``dynamic_shapes``.
    spec
        How they make up ``(args, kwargs)``.
    limits
        Least and largest value (None: any) of each open size, by name.
    sizes
        Of each tensor, per dimension: a number, or the name of an open size; None for what is
        computed from open sizes.
    """

    names: tuple[str, ...]
    examples: tuple[Any, ...]
    axes: tuple[dict[int, Any] | None, ...]
    spec: pytree.TreeSpec
    limits: dict[str, tuple[int, int | None]]
    sizes: tuple[tuple[int | str | None, ...], ...]

    @classmethod
    def of(cls, program: ExportedProgram) -> OpenInputs:
        """Read them from a program.

        Raises
        ------
        FrontendError
            If a size is open in a way that torch.export cannot be told again.
        """
        nodes = _input_nodes(program)
        tensors = [node for node in nodes if isinstance(node.meta.get("val"), torch.Tensor)]
        symbols = named_symbols(tensors)
        limits = bounds(program, symbols)
        dims = {
            symbol: Dim(name, min=limits[name][0], max=limits[name][1])
            for symbol, name in symbols.items()
        }
        spec = program.call_spec.in_spec
        assert spec is not None
        given = _examples(program, nodes)
        axes = [_axes(node, dims) for node in nodes]
        sizes = [_sizes(node, symbols) for node in nodes]
        return cls(
            tuple(node.name for node in nodes),
            tuple(_wide(example, of) for example, of in zip(given, axes, strict=True)),
            tuple(axes), spec, limits, tuple(sizes),
        )  # fmt: skip

    @property
    def flat(self) -> bool:
        """Whether every argument is a tensor."""
        args, kwargs = self.arguments(self.examples)
        return all(isinstance(v, torch.Tensor) for v in (*args, *kwargs.values()))

    def arguments(self, values: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return flat values as arguments and keyword arguments."""
        args, kwargs = pytree.tree_unflatten(list(values), self.spec)
        return tuple(args), dict(kwargs)

    def export(self, model: torch.nn.Module) -> ExportedProgram:
        """Export a module that takes these inputs.

        Raises
        ------
        FrontendError
            If torch cannot.
        """
        args, kwargs = self.arguments(self.examples)
        open_args, open_kwargs = self.arguments(self.axes)
        shapes: Any = None
        if any(self.axes):
            bound = inspect.signature(model.forward).bind(*open_args, **open_kwargs)
            shapes = dict(bound.arguments)
        return trace(model, args, kwargs, shapes)


def _input_nodes(program: ExportedProgram) -> list[Node]:
    user = [
        spec.arg.name
        for spec in program.graph_signature.input_specs
        if spec.kind == InputKind.USER_INPUT
    ]
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    return [nodes[name] for name in user if name in nodes]


def _axes(node: Node, dims: dict[sympy.Symbol, Any]) -> dict[int, Any] | None:
    """Return the open dimensions of an input."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    found = {}
    for axis, size in enumerate(value.shape):
        expr = expression(size)
        if not expr.is_Integer:
            found[axis] = _dim(expr, dims, node.name, axis)
    return found or None


def _dim(expr: Any, dims: dict[sympy.Symbol, Any], name: str, axis: int) -> Any:
    """Return ``2*n + 1`` of a Dim ``n``."""
    symbols = sorted(expr.free_symbols, key=str)
    if len(symbols) == 1:
        symbol = symbols[0]
        factor = expr.coeff(symbol)
        rest = sympy.simplify(expr - factor * symbol)
        if factor.is_Integer and factor > 0 and rest.is_Integer:
            dim = dims[symbol]
            dim = dim if factor == 1 else int(factor) * dim
            return dim if rest == 0 else dim + int(rest)
    raise FrontendError(
        f"dimension {axis} is {expr}, which cannot be left open again",
        where=f"input {name!r}",
        fix=_UNNAMED,
    )


def _sizes(node: Node, symbols: dict[sympy.Symbol, str]) -> tuple[int | str | None, ...]:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return ()
    exprs = [expression(size) for size in value.shape]
    return tuple(int(e) if e.is_Integer else symbols.get(e) for e in exprs)


def _examples(program: ExportedProgram, nodes: list[Node]) -> list[Any]:
    """Return the program's own examples; without any, zeros of the sizes that it was traced at."""
    if program.example_inputs is not None:
        args, kwargs = program.example_inputs
        flat = pytree.tree_leaves((tuple(args), dict(kwargs)))
        if len(flat) == len(nodes):
            return flat
    made = []
    for node in nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            shape = [_traced(size) for size in value.shape]
            value = torch.zeros(shape, dtype=value.dtype, device=value.device)
        made.append(value)
    return made


def _traced(size: int | torch.SymInt) -> int:
    if isinstance(size, int):
        return size
    hint = getattr(size.node, "hint", None)
    return 2 if hint is None else int(hint)


def _wide(example: Any, axes: dict[int, Any] | None) -> Any:
    """Return an example whose open sizes are at least 2: torch specialises on 0 and 1."""
    for axis in axes or {}:
        if isinstance(example, torch.Tensor) and example.shape[axis] < 2:
            example = two_of(example, axis)
    return example
