"""Follows channels through a model's graph: which axes of its parameters are the same axis."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from lutcc.frontend.checks import op_name
from lutcc.nn.channel_axes import Dimension, Dimensions, fix, fresh, resolved, unify
from lutcc.nn.channel_rules import MIXED, RULES, is_several, shape_of, unknown


class ChannelFlow:
    """The axes of every tensor of a traced model.

    Every dimension of a parameter starts as an axis of its own, free to be permuted. Ops then make
    axes the same (the columns of a weight and the channels that it multiplies), split them
    (channels into heads), or fix them (inputs, outputs, spatial dimensions, whatever an op that is
    not known here reads). What is free in the end may be permuted, wherever it occurs.

    Parameters
    ----------
    program
        In core ATen ops, linears and convolutions whole.
    storage
        By name of a parameter or buffer, what tells which of them are the same tensor.

    Attributes
    ----------
    parameters
        Axes of each parameter and buffer that the graph reads, by name.
    tensors
        Axes of all tensors.
    """

    def __init__(self, program: ExportedProgram, storage: dict[str, Any]) -> None:
        self.parameters: dict[str, Dimensions] = {}
        self.tensors: list[Dimensions] = []
        self._values: dict[Node, Any] = {}
        self._constant: set[Node] = set()
        self._start(program, storage)
        for node in program.graph.nodes:
            if node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                self.fix_inputs(node, "the model returns its output")

    def _start(self, program: ExportedProgram, storage: dict[str, Any]) -> None:
        inputs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        known: dict[Any, Dimensions] = {}
        for node in program.graph.nodes:
            if node.op != "placeholder":
                continue
            spec = inputs[node.name]
            if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target in storage:
                axes = fresh(shape_of(node))
                if node.users:
                    axes = known.setdefault(storage[spec.target], axes)
                self._constant.add(node)
            elif spec.kind == InputKind.USER_INPUT:
                axes = fresh(shape_of(node), "it meets an input of the model, channel by channel")
            else:
                axes = fresh(shape_of(node), "it meets a constant of the model's code")
                self._constant.add(node)
            self._keep(node, axes)
        # in the model's order, and every name of a tensor that is registered more than once
        self.parameters = {name: known[key] for name, key in storage.items() if key in known}

    def _call(self, node: Node) -> None:
        if node.all_input_nodes and all(n in self._constant for n in node.all_input_nodes):
            self._constant.add(node)
        name = op_name(node).removeprefix("aten.").split(".")[0]
        found = None
        if node.target is operator.getitem:
            source, index = node.args
            found = self._values[source][index]  # pyright: ignore[reportArgumentType]
        elif name in RULES:
            found = RULES[name](self, node)
        else:
            self.fix_inputs(node, f"{op_name(node)} reads its channels, and may mix them")
        if found is None:
            found = unknown(node)
        self._keep(node, found)

    def _keep(self, node: Node, value: Any) -> None:
        self._values[node] = value
        for axes in value if is_several(node) else (value,):
            self.tensors.append(axes)

    # -- what rules use ---------------------------------------------------------------------

    def axes(self, value: Any) -> Dimensions:
        """Return the axes of an operand; of a number there are none."""
        return self._values[value] if isinstance(value, Node) else []

    def is_constant(self, value: Any) -> bool:
        """Tell whether an operand is computed from parameters only."""
        return not isinstance(value, Node) or value in self._constant

    def mark_constant(self, node: Node) -> None:
        """Say that a node without inputs is a constant."""
        self._constant.add(node)

    def fix_inputs(self, node: Node, reason: str) -> None:
        """Fix all axes that a node reads."""
        for source in node.all_input_nodes:
            value = self._values[source]
            for axes in value if is_several(source) else (value,):
                fix(axes, reason)

    def broadcast(self, operands: Sequence[Dimensions], added: str = "") -> Dimensions:
        """Return the axes of an elementwise result.

        Parameters
        ----------
        operands
            At least one.
        added
            If not "": two different axes that meet are fixed, for this reason.
        """
        rank = max(map(len, operands))
        made: Dimensions = []
        for place in range(-rank, 0):
            found: Dimension = ()
            for axes in operands:
                if len(axes) < -place or not axes[place]:
                    continue
                if found and added and resolved(found) != resolved(axes[place]):
                    fix([found, axes[place]], added, override=True)
                if found:
                    unify(found, axes[place], MIXED)
                found = found or axes[place]
            made.append(found)
        return made
