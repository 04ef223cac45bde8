"""What an exported graph says: its constants, shapes and ports, in the IR's terms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
import sympy
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.fx.node import map_arg

from lutcc.errors import FrontendError
from lutcc.frontend.checks import INPUT_DTYPES, op_name
from lutcc.frontend.symbols import BATCH, PRODUCT, as_dim, bounds, expression, named_symbols
from lutcc.ir.types import Array, Dim, Sym

_IMPURE = ("rand", "bernoulli", "dropout", "empty", "_assert", "sym_", "multinomial")
_FOLD_LIMIT = 1 << 16
"""Bytes by which a folded constant may exceed what it is computed from."""


class NotExpressible(Exception):
    """A node has no form in the IR; the message is the reason.

    Parameters
    ----------
    reason
        Why, in a few words.
    derived
        It follows from an earlier node, and is not worth telling.
    """

    def __init__(self, reason: str, *, derived: bool = False) -> None:
        self.derived = derived
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Port:
    """Name, shape and dtype of a model's input or output.

    A dimension is a number or a :class:`~lutcc.ir.types.Sym`.
    """

    name: str
    shape: tuple[Dim, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


class Graph:
    """An exported program with its constants folded and its open sizes named: ``n``, ``length``.

    ``symbols`` are the names of the exporter's symbols; ``batch`` is the one named ``n``, if any.

    Examples
    --------
    >>> graph = Graph(export_program(torch.nn.Linear(4, 2).eval(), torch.zeros(8, 4)).program)
    >>> str(graph.inputs[0])
    'input: float32[n, 4]'
    """

    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self.nodes: tuple[Node, ...] = tuple(program.graph.nodes)
        self.input_nodes = self._inputs()
        self.symbols: dict[sympy.Symbol, str] = named_symbols(self.input_nodes)
        self.batch = next((s for s, name in self.symbols.items() if name == BATCH), None)
        self.output_nodes: tuple[Node | None, ...] = tuple(
            arg if isinstance(arg, Node) else None for arg in _flat(self.nodes[-1].args[0])
        )
        self.constants: dict[Node, torch.Tensor] = self._fold_constants()
        self._arrays: dict[tuple[Node, bool], Array] = {}

    def _inputs(self) -> tuple[Node, ...]:
        user = {
            s.arg.name
            for s in self.program.graph_signature.input_specs
            if s.kind == InputKind.USER_INPUT
        }
        return tuple(n for n in self.nodes if n.op == "placeholder" and n.name in user)

    @cached_property
    def bounds(self) -> dict[str, tuple[int, int | None]]:
        """Least and largest value (None: any) of each open size."""
        return bounds(self.program, self.symbols)

    @cached_property
    def used(self) -> frozenset[Node]:
        """Tensor nodes that some output depends on and that are not constant."""
        seen: set[Node] = set()
        stack = [n for n in self.output_nodes if n is not None]
        while stack:
            node = stack.pop()
            if node in seen or node in self.constants:
                continue
            seen.add(node)
            stack.extend(node.all_input_nodes)
        return frozenset(seen)

    @property
    def inputs(self) -> tuple[Port, ...]:
        """Ports of the user's inputs, in call order."""
        return tuple(self._port(node.name, node) for node in self.input_nodes)

    @property
    def outputs(self) -> tuple[Port, ...]:
        """Ports of the flattened outputs, in order: ``output``, or ``output0``, ``output1``, ...

        Those of a model that returns a dictionary of tensors have their names in it.
        """
        nodes = [n for n in self.output_nodes if n is not None]
        names = ["output"] if len(nodes) == 1 else [f"output{i}" for i in range(len(nodes))]
        names = self._output_keys() or names
        return tuple(self._port(name, node) for name, node in zip(names, nodes, strict=True))

    def _output_keys(self) -> list[str]:
        """Return the keys of a returned dictionary of tensors; none if it is something else."""
        spec = self.program.call_spec.out_spec
        if spec is None or not isinstance(spec.type, type) or not issubclass(spec.type, dict):
            return []
        keys: list[Any] = list(spec.context)
        if len(keys) != len(self.output_nodes):
            return []
        taken = {node.name for node in self.input_nodes}
        fit = all(isinstance(k, str) and k.isidentifier() and k not in taken for k in keys)
        pairs = zip(keys, self.output_nodes, strict=True)
        return [key for key, node in pairs if node is not None] if fit else []

    def _port(self, name: str, node: Node) -> Port:
        value = node.meta["val"]
        return Port(
            name, tuple(self._port_dim(name, d) for d in value.shape), INPUT_DTYPES[value.dtype]
        )

    def _port_dim(self, name: str, size: int | torch.SymInt) -> Dim:
        found = as_dim(size, self.symbols)
        if found is not None and (not isinstance(found, Sym) or PRODUCT not in found.name):
            return found
        shown = expression(size).subs({s: sympy.Symbol(n) for s, n in self.symbols.items()})
        raise FrontendError(
            f"has a dimension of size {shown}, which is no number and no multiple of one symbol",
            where=f"input or output {name!r}",
            fix="return tensors whose sizes are fixed or proportional to one open size",
        )

    def dim(self, size: int | torch.SymInt) -> Dim:
        """Return a size as a dimension of the IR (a number or a multiple of open sizes).

        Raises
        ------
        NotExpressible
            If it is another expression, or zero.
        """
        found = as_dim(size, self.symbols)
        if found is None:
            raise NotExpressible(
                f"dimension {expression(size)} is not a number or a multiple of the open sizes"
            )
        if found == 0:
            raise NotExpressible("it has a dimension of size 0")
        return found

    def shape(self, node: Node) -> tuple[Dim, ...]:
        """Return the shape of a tensor node.

        Raises
        ------
        NotExpressible
            If the node is no tensor or a dimension has no form in the IR.
        """
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            raise NotExpressible(f"{node.name} is not a tensor")
        return tuple(self.dim(d) for d in value.shape)

    def shapes(self, node: Node) -> tuple[tuple[Dim, ...], ...]:
        """Return the shapes of the tensors that a node with several results returns.

        Raises
        ------
        NotExpressible
            If a dimension has no form in the IR.
        """
        return tuple(tuple(self.dim(d) for d in value.shape) for value in node.meta["val"])

    def dtype(self, node: Node) -> str:
        """Return the IR's name of a tensor node's dtype ("int64" and the like included)."""
        return str(node.meta["val"].dtype).removeprefix("torch.")

    def is_tensor_op(self, node: Node) -> bool:
        """Tell whether ``node`` computes a tensor (or several), not a size or an assertion."""
        if node.op != "call_function" or op_name(node).startswith(("aten._assert", "aten.sym_")):
            return False
        value = node.meta.get("val")
        if isinstance(value, (tuple, list)):
            return any(isinstance(v, torch.Tensor) for v in value)
        return isinstance(value, torch.Tensor)

    def array(self, node: Node, *, transposed: bool = False) -> Array:
        """Return a constant node's value, or its transpose, as a read-only row-major array."""
        key = (node, transposed)
        if key not in self._arrays:
            tensor = self.constants[node]
            array = _to_numpy((tensor.t() if transposed else tensor).contiguous())
            array.flags.writeable = False
            self._arrays[key] = array
        return self._arrays[key]

    def constant_name(self, node: Node) -> str:
        """Return a constant's name in the model, such as ``encoder.0.weight``."""
        for spec in self.program.graph_signature.input_specs:
            if spec.arg.name == node.name and spec.target:
                return spec.target if spec.target[0].isalpha() else f"_{spec.target}"
        return node.name

    def _fold_constants(self) -> dict[Node, torch.Tensor]:
        program, constants = self.program, dict[Node, torch.Tensor]()
        stored: Mapping[str, Any] = {**program.state_dict, **program.constants}
        by_name = {s.arg.name: s for s in program.graph_signature.input_specs}
        with torch.no_grad():
            for node in self.nodes:
                if node.op == "placeholder":
                    spec = by_name[node.name]
                    value = stored.get(spec.target) if spec.target is not None else None
                    if spec.kind != InputKind.USER_INPUT and isinstance(value, torch.Tensor):
                        # a copy: the artifact must not change when the model's weights do
                        constants[node] = value.detach().clone()
                elif node.op == "call_function" and self._foldable(node, constants):
                    args, kwargs = map_arg((node.args, dict(node.kwargs)), lambda n: constants[n])
                    value = node.target(*args, **kwargs)  # type: ignore[operator]
                    given = sum(_nbytes(constants[n]) for n in node.all_input_nodes)
                    if (
                        isinstance(value, torch.Tensor)
                        and _nbytes(value) <= 2 * given + _FOLD_LIMIT
                    ):
                        constants[node] = value.detach()
        return constants

    def _foldable(self, node: Node, constants: Mapping[Node, torch.Tensor]) -> bool:
        name = op_name(node).removeprefix("aten.")
        if not self.is_tensor_op(node) or isinstance(node.meta.get("val"), (tuple, list)):
            return False
        return not name.startswith(_IMPURE) and all(n in constants for n in node.all_input_nodes)


def trailing_constant(constant: Array, shape: tuple[Dim, ...]) -> tuple[Array, int]:
    """Spread a constant over the trailing dimensions of ``shape`` that it varies along.

    Returns
    -------
    (values, rank)
        ``values`` has one entry per element of the last ``rank`` dimensions, flattened; a scalar
        gets rank 1.

    Raises
    ------
    NotExpressible
        If it does not broadcast to ``shape``, or varies along the batch.

    Examples
    --------
    >>> trailing_constant(np.ones((1, 1, 3), np.float32), (Sym("n"), 2, 3))[0].shape
    (3,)
    """
    dims = list(constant.shape)
    while dims and dims[0] == 1:
        dims.pop(0)
    rank = max(len(dims), 1)
    if rank > len(shape):
        raise NotExpressible("a constant operand has a higher rank than the tensor")
    tail = shape[len(shape) - rank :]
    sizes = [d for d in tail if not isinstance(d, Sym)]
    if len(sizes) != len(tail):
        raise NotExpressible("a constant operand varies along the batch")
    try:
        spread = np.broadcast_to(constant.reshape(dims), sizes)
    except ValueError:
        raise NotExpressible("a constant operand enlarges the tensor") from None
    return np.ascontiguousarray(spread, np.float32).reshape(-1), rank


def _to_numpy(tensor: torch.Tensor) -> Array:
    if tensor.dtype is torch.bfloat16:  # NumPy itself has no such type
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _flat(value: Any) -> Iterable[Any]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _flat(item)
    else:
        yield value
