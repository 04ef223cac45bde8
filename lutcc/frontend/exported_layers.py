"""The layers of an exported program, as modules again: what recipes name and converters replace.

``torch.export`` leaves operations on parameters. Here each product of a parameter becomes a call of
a real ``torch.nn.Linear``, ``Conv2d`` or ``Embedding`` under the name that it had, or that its
weight has; all else stays the graph that it is.
"""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from lutcc.frontend.checks import refuse_mutation, refuse_training_and_random
from lutcc.frontend.exported_ops import Found, find_layer
from lutcc.frontend.open_inputs import OpenInputs
from lutcc.frontend.tracing import quiet_torch

_GUARDS = "_guards_fn"
_META = "lutcc"  # of the module, beside what torch keeps there


class ExportedLayers(GraphModule):
    """A graph of an exported program, with layers as submodules: what :func:`layers_of` makes."""

    @property
    def open_inputs(self) -> OpenInputs:
        """The program's inputs."""
        return self.meta[_META][0]

    def remember(self, inputs: OpenInputs, state: frozenset[str]) -> None:
        """Keep the program's inputs, and the names of its state: what else is there is constant."""
        self.meta[_META] = (inputs, state)
        self._mark_constants()

    def _mark_constants(self) -> None:
        for name, buffer in list(self.named_buffers()):
            owner, _, last = name.rpartition(".")
            if name not in self.meta[_META][1]:
                self.get_submodule(owner).register_buffer(last, buffer, persistent=False)

    def __deepcopy__(self, memo: Any) -> ExportedLayers:
        """Return a copy; that of ``GraphModule`` makes constants part of the state."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch's own trees of inputs
            made = super().__deepcopy__(memo)
        assert isinstance(made, ExportedLayers)
        made._mark_constants()
        return made


def layers_of(program: ExportedProgram, *, functional: bool = True) -> ExportedLayers:
    """Return a module that computes what an exported program does, with its layers as submodules.

    ``lutcc.convert`` and ``lutcc.plan`` take it, and programs, as any module; ``lutcc.compile``
    needs no example inputs of it: sizes that the program leaves open stay so, within its bounds.
    Parameters are the program's own, and those that it shares stay shared. Numbers are the
    program's, bit by bit.

    A linear layer, 2-D convolution or embedding has the name of the module that it was, if the
    program still tells, else that of its weight: ``attention.in_proj`` is what
    ``torch.nn.MultiheadAttention`` multiplies by its ``in_proj_weight``.

    Parameters
    ----------
    program
        What ``torch.export.export`` made, decomposed or not.
    functional
        Whether products of parameters that no such layer owns become layers too.

    Raises
    ------
    FrontendError
        If the program is in training mode, draws random numbers, changes a buffer or an input, or
        has an open size that torch.export cannot be told again.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()).eval()
    >>> again = layers_of(torch.export.export(model, (torch.zeros(2, 4),)))
    >>> again.get_submodule("0")
    Linear(in_features=4, out_features=3, bias=True)
    """
    refuse_training_and_random(program)
    refuse_mutation(program)
    if any(map(_writes, program.graph.nodes)):
        with quiet_torch():  # only a functional graph tells what of it is there to stay
            functional_program = program.run_decompositions({})
        refuse_mutation(functional_program)
    inputs = OpenInputs.of(program)
    with quiet_torch():
        unlifted = program.module()
    made = _Layers(program, unlifted, functional).replaced()
    made.remember(inputs, frozenset(program.state_dict))
    return made


def as_module(model: Any) -> Any:
    """Return the layers of an exported program; anything else as it is."""
    return layers_of(model) if isinstance(model, ExportedProgram) else model


def exported_again(model: ExportedLayers) -> ExportedProgram:
    """Export a program's layers again, or what they were converted to.

    Sizes that the program left open are open again, within the same bounds.

    Raises
    ------
    FrontendError
        If torch cannot export it.
    """
    return model.open_inputs.export(model)


def _writes(node: Node) -> bool:
    """Tell whether an operation may write to what it is given."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


class _Layers:
    """Finds the layers of one graph and puts modules in their place."""

    def __init__(self, program: ExportedProgram, unlifted: GraphModule, functional: bool) -> None:
        self._program, self._unlifted, self._functional = program, unlifted, functional
        self._graph = unlifted.graph
        self._tensors = _canonical(program, unlifted)
        self._made: dict[tuple[Any, ...], torch.nn.Module] = {}
        self._names: dict[str, torch.nn.Module] = {}
        self._wanted: dict[tuple[str, int], str] = {}  # by what was wanted, and of which layer

    def replaced(self) -> ExportedLayers:
        """Return the module."""
        for node in list(self._graph.nodes):
            found = find_layer(node, self._parameter)
            if found is None or not (found.owned or self._functional):
                continue
            name = self._layer(found)
            with self._graph.inserting_before(node):
                call = self._graph.create_node("call_module", name, (found.input,))
            call.meta.update({k: v for k, v in node.meta.items() if k in ("val", "stack_trace")})
            node.replace_all_uses_with(call)
            self._graph.erase_node(node)
            for view in found.views:
                if not view.users:
                    self._graph.erase_node(view)
        parts = GraphModule(self._rest(), self._graph)
        place = {node: i for i, node in enumerate(self._graph.nodes)}
        for node in self._graph.find_nodes(op="get_attr"):
            if node.users:  # where it is read first: names then have the order of the calls
                min(node.users, key=place.__getitem__).prepend(node)
        made = ExportedLayers(parts, self._graph)  # from a module: in the order of the calls
        made.eval()
        return made

    def _parameter(self, node: Any) -> torch.nn.Parameter | None:
        """Return the parameter that a node reads."""
        if not isinstance(node, Node) or node.op != "get_attr":
            return None
        tensor = self._tensors.get(str(node.target))
        return tensor if isinstance(tensor, torch.nn.Parameter) else None

    def _layer(self, found: Found) -> str:
        """Return the name of a product's layer.

        The same parameters and options are the same layer, which may have several names.
        """
        key = (id(found.weight), id(found.bias), type(found.module), found.options)
        layer = self._made.setdefault(key, found.module)
        wanted = (found.name, id(layer))
        if wanted not in self._wanted:
            name = self._wanted[wanted] = self._free(found.name, found.source)
            self._names[name] = layer
        return self._wanted[wanted]

    def _free(self, *wanted: str) -> str:
        """Return a name that no layer has, and under which lies nothing but its own parameters."""
        taken = set(self._names)
        last = wanted[0].replace(".", "_")
        for name in itertools.chain(wanted, (f"{last}_{i}" for i in itertools.count(2))):
            if name not in taken and not self._within(name, taken) and not self._holds_more(name):
                return name
        raise AssertionError("numbers end")  # pragma: no cover

    @staticmethod
    def _within(name: str, taken: set[str]) -> bool:
        return any(name.startswith(f"{t}.") or t.startswith(f"{name}.") for t in taken)

    def _holds_more(self, name: str) -> bool:
        own = (f"{name}.weight", f"{name}.bias")
        return any(target.startswith(f"{name}.") and target not in own for target in self._tensors)

    def _rest(self) -> dict[str, Any]:
        """Return what the graph reads beside its layers, by name.

        A parameter of a layer that other operations read too gets a name of its own beside it: the
        layer may be replaced.
        """
        layers = self._names
        held = {id(t) for layer in layers.values() for t in layer.parameters()}
        rest: dict[str, Any] = {}
        for node in list(self._graph.nodes):
            if node.op == "call_module" and node.target == _GUARDS:
                rest[_GUARDS] = self._unlifted.get_submodule(_GUARDS)
            if node.op != "get_attr":
                continue
            target = str(node.target)
            owner = target if target in layers else target.rpartition(".")[0]
            if not node.users and (owner in layers or id(self._tensors.get(target)) in held):
                self._graph.erase_node(node)
                continue
            if owner in layers:
                tensor = self._tensors[target]
                node.target = target = self._beside(owner, target)
                self._tensors[target] = tensor
            rest[target] = self._tensors.get(target)
            if rest[target] is None:  # a submodule of control flow
                rest[target] = _attribute(self._unlifted, target)
        return rest | layers

    def _beside(self, layer: str, target: str) -> str:
        """Return a name for what a layer holds, outside of it."""
        name = f"{layer}_{target.removeprefix(layer).strip('.') or 'own'}"
        while name in self._tensors:
            name += "_"
        return name


def _attribute(root: torch.nn.Module, target: str) -> Any:
    owner, _, last = target.rpartition(".")
    return getattr(root.get_submodule(owner), last)


def _canonical(program: ExportedProgram, unlifted: GraphModule) -> dict[str, Any]:
    """Return the tensors that a graph reads, by name; what is one tensor is one object."""
    seen: dict[tuple[Any, ...], torch.Tensor] = {}
    tensors: dict[str, Any] = {}
    for node in unlifted.graph.nodes:
        if node.op != "get_attr":
            continue
        tensor = _attribute(unlifted, str(node.target))
        if not isinstance(tensor, torch.Tensor):
            continue
        tensors[str(node.target)] = seen.setdefault(_place(tensor), tensor)
    return tensors


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return what tells tensors of other values apart, and is the same for aliases."""
    if tensor.numel() == 0 or tensor.layout is not torch.strided:
        return (id(tensor),)
    kind = isinstance(tensor, torch.nn.Parameter)
    return (
        tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device, kind
    )  # fmt: skip
