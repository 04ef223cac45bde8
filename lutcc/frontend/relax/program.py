"""A mixed model as one Relax module: TVM imports the exact ops, regions become calls."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.export.graph_signature import (
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx import Graph as FxGraph
from torch.fx import GraphModule, Node

from lutcc.errors import FrontendError
from lutcc.frontend.checks import op_name, place_of
from lutcc.frontend.graph import Graph
from lutcc.frontend.partition import Region
from lutcc.frontend.relax.kernels import RegionKernel
from lutcc.frontend.relax.promotion import promote
from lutcc.frontend.symbols import PRODUCT
from lutcc.ir.types import Array, Dim, Sym
from lutcc.runtime.threads import THREADS

_RENAMING = (
    "aten.expand.",
    "aten.clone.",
    "aten.alias.",
    "aten.view.",
    "aten.contiguous.",
    "aten.detach.",
)
_INLINE_ELEMENTS = 1
"""Constants of at most this many elements go into the code; larger ones are parameters."""


def lutcc_region(*inputs: object, region: str) -> object:
    """Mark the place of a region in the graph that TVM's importer reads."""
    raise RuntimeError(f"{region} is compiled, not called")


def lutcc_region_result(outputs: object, index: int) -> object:
    """Mark one result of a region."""
    raise RuntimeError("a region's results are compiled, not called")


@dataclass(frozen=True, slots=True)
class RelaxProgram:
    """A Relax module whose ``main`` takes the model's inputs and then ``params`` in order."""

    module: Any
    params: Mapping[str, Array]


def to_relax(
    graph: Graph, regions: Iterable[Region], kernels: Mapping[str, RegionKernel]
) -> RelaxProgram:
    """Import a mixed model.

    Parameters
    ----------
    graph, regions
        The exported graph and the parts of it that are kernels of lutcc.
    kernels
        The kernel of each region by name.

    Raises
    ------
    FrontendError
        If TVM has no importer for an op outside the regions; the message names the layer.

    Examples
    --------
    >>> program = to_relax(imported.graph, imported.regions, kernels)
    >>> list(program.params)
    ['norm1.weight', 'norm1.bias', 'region0.blob', ...]
    """
    from tvm import relax

    from lutcc.frontend.relax.importer import Importer

    contracted = _Contracted(graph, regions, kernels)
    contracted.emit()
    region_calls = _RegionCalls(graph, {r.name: r for r in regions}, kernels)
    importer = Importer(
        {
            lutcc_region.__name__: region_calls.convert,
            lutcc_region_result.__name__: region_calls.result,
        }
    )
    try:
        module = importer.from_exported_program(
            contracted.as_program(),
            keep_params_as_input=False,
            unwrap_unit_return_tuple=True,
            no_bind_return_tuple=False,
            custom_convert_map=None,
        )
    except FrontendError:
        raise
    except Exception as error:  # the importer raises what its asserts and operators raise
        raise FrontendError(
            f"TVM's importer failed: {type(error).__name__}: {error}",
            where="an exact layer of a mixed model",
            fix="replace the layer, or compile the parts of the model around it separately",
        ) from error
    bound = {name: _numpy(tensor) for name, tensor in contracted.inlined.items()}
    module = relax.transform.BindParams("main", bound)(module) if bound else module
    return RelaxProgram(module, contracted.params)


@dataclass
class _Contracted:
    """The graph with every region as one node, and every constant as an input."""

    graph: Graph
    regions: Iterable[Region]
    kernels: Mapping[str, RegionKernel]
    fx: FxGraph = field(default_factory=FxGraph)
    params: dict[str, Array] = field(default_factory=dict)
    inlined: dict[str, torch.Tensor] = field(default_factory=dict)

    def emit(self) -> None:
        """Fill the new graph."""
        self.env: dict[Node, Node] = {}
        self.calls: dict[str, Node] = {}
        self.of = {node: region for region in self.regions for node in region.nodes}
        for node in self.graph.input_nodes:
            self.env[node] = self._placeholder(node.name, node.meta["val"])
        outside = [n for n in self.graph.nodes if n in self.graph.used and n not in self.of]
        wanted = [i for n in outside for i in n.all_input_nodes] + [
            n for n in self.graph.output_nodes if n
        ]
        for node in dict.fromkeys(n for n in wanted if n in self.graph.constants):
            self.env[node] = self._constant(node)
        self.blobs = {name: self._blob(name, kernel.blob) for name, kernel in self.kernels.items()}
        self.threads = self._threads()
        for output in self.graph.output_nodes:
            if output is not None:
                self._compute(output)
        self.fx.output(tuple(self.env[n] for n in self.graph.output_nodes if n is not None))

    def _compute(self, wanted: Node) -> None:
        """Emit ``wanted`` and all before it; a region waits for all its inputs."""
        stack = [wanted]
        while stack:
            node = stack[-1]
            if node in self.env:
                stack.pop()
                continue
            region = self.of.get(node)
            before = region.inputs if region is not None else node.all_input_nodes
            missing = [n for n in before if n not in self.env]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            if region is not None:
                self._call(region)
            elif _changes_nothing(node):
                self.env[node] = self.env[node.all_input_nodes[0]]
            else:
                self.env[node] = self.fx.node_copy(node, lambda n: self.env[n])
                promote(self.env[node])

    def _call(self, region: Region) -> None:
        arguments = [*(self.env[n] for n in region.inputs), self.blobs[region.name]]
        if self.kernels[region.name].takes_threads and self.threads is not None:
            arguments.append(self.threads)
        call = self.fx.call_function(lutcc_region, tuple(arguments), {"region": region.name})
        for index, node in enumerate(region.outputs):
            result = self.fx.call_function(lutcc_region_result, (call, index))
            result.meta = dict(node.meta)
            self.env[node] = result

    def _placeholder(self, name: str, value: Any) -> Node:
        node = self.fx.placeholder(name)
        node.meta["val"] = value
        return node

    def _constant(self, node: Node) -> Node:
        tensor = self.graph.constants[node]
        placeholder = self._placeholder(node.name, tensor)
        if tensor.numel() <= _INLINE_ELEMENTS:
            self.inlined[placeholder.name] = tensor
        else:
            self.params[self.graph.constant_name(node)] = _numpy(tensor)
        return placeholder

    def _blob(self, name: str, blob: Array) -> Node:
        self.params[f"{name}.blob"] = blob
        return self._placeholder(f"{name}_blob", torch.from_numpy(blob))

    def _threads(self) -> Node | None:
        """Return the number of threads as a parameter, which the runtime replaces."""
        if not any(kernel.takes_threads for kernel in self.kernels.values()):
            return None
        self.params[THREADS] = np.ones(1, np.int64)
        return self._placeholder("lutcc_threads", torch.from_numpy(self.params[THREADS]))

    def as_program(self) -> Any:
        """Return what the importer reads of an ExportedProgram; every parameter is an input."""
        self.fx.lint()
        module = GraphModule({}, self.fx)
        placeholders = [n for n in self.fx.nodes if n.op == "placeholder"]
        inputs = [
            InputSpec(InputKind.USER_INPUT, TensorArgument(n.name), None) for n in placeholders
        ]
        results = [n for n in self.graph.output_nodes if n is not None]
        outputs = [
            OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(self.env[n].name), None)
            for n in results
        ]
        return SimpleNamespace(
            graph=self.fx,
            graph_module=module,
            graph_signature=SimpleNamespace(input_specs=inputs, output_specs=outputs),
            range_constraints={},  # bounds would make Relax plan memory for the largest batch
            constants={},
            tensor_constants={},
            state_dict={},
            named_buffers=lambda: iter(()),
            named_parameters=lambda: iter(()),
        )


def outline(
    graph: Graph, regions: Iterable[Region], kernels: Mapping[str, RegionKernel]
) -> tuple[str | None, Mapping[str, Array]]:
    """Return a text that says all that :func:`to_relax` reads of a graph, and its parameters.

    Equal texts, kernels and versions of TVM mean equal modules. The functions of kernels are not
    looked at. The text is None where a graph holds what a text cannot say, such as graphs in it.
    """
    contracted = _Contracted(graph, regions, kernels)
    contracted.emit()
    lines = [f"{symbol} = {name}" for symbol, name in graph.symbols.items()]
    for node in contracted.fx.nodes:
        if node.op == "get_attr":
            return None, contracted.params
        value = node.meta.get("val")
        kind = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else ""
        lines.append(f"{node.format_node()} {kind}")
    for name, tensor in contracted.inlined.items():  # of one element
        lines.append(f"{name} = {tensor.dtype} {_numpy(tensor).tobytes()!r}")
    for region in regions:
        main = region.module.main
        types = [str(value.type) for value in (*main.params, *main.returns)]
        lines.append(f"{region.name}: {', '.join(types)}")
    return "\n".join(lines), contracted.params


class _RegionCalls:
    """Emits the calls of regions while TVM's importer walks the graph."""

    def __init__(
        self, graph: Graph, regions: Mapping[str, Region], kernels: Mapping[str, RegionKernel]
    ) -> None:
        self.graph, self.regions, self.kernels = graph, regions, kernels

    def convert(self, node: Node, importer: Any) -> list[Any]:
        """Emit the call of a region; returns its results under their torch shapes."""
        from tvm import relax

        region = self.regions[str(node.kwargs["region"])]
        variables = importer.variables()
        sizes = {name: variables[str(s)] for s, name in self.graph.symbols.items()}
        emit = importer.block_builder.emit
        given = [importer.env[n] for n in node.args]
        values, more = given[: len(region.inputs)], given[len(region.inputs) :]
        arguments = [
            self._reshaped(emit, value, self.graph.shape(source), param.type.shape, sizes)
            for value, source, param in zip(
                values, region.inputs, region.module.main.params, strict=True
            )
        ]
        function = self.kernels[region.name].function.with_attrs(
            {"tirx.is_scheduled": True, "op_pattern": 8}
        )
        symbol = importer.block_builder.add_func(function, f"lutcc_{region.name}")
        types = [
            relax.TensorType(_sizes(v.type.shape, sizes), v.type.dtype)
            for v in region.module.main.returns
        ]
        call = emit(
            relax.call_tir(symbol, [*arguments, *more], types[0] if len(types) == 1 else types)
        )
        parts = (
            [call]
            if len(types) == 1
            else [emit(relax.TupleGetItem(call, i)) for i in range(len(types))]
        )
        return [
            self._reshaped(emit, part, value.type.shape, self.graph.shape(source), sizes)
            for part, value, source in zip(
                parts, region.module.main.returns, region.outputs, strict=True
            )
        ]

    def result(self, node: Node, importer: Any) -> Any:
        """Return one result of a region."""
        return importer.env[node.args[0]][node.args[1]]

    def _reshaped(
        self,
        emit: Any,
        value: Any,
        have: tuple[Dim, ...],
        want: tuple[Dim, ...],
        sizes: Mapping[str, Any],
    ) -> Any:
        from tvm import relax

        return value if have == want else emit(relax.op.reshape(value, _sizes(want, sizes)))


def _changes_nothing(node: Node) -> bool:
    """Tell whether a node only renames its input: TVM would copy it."""
    if not op_name(node).startswith(_RENAMING):
        return False
    value, source = node.meta.get("val"), node.all_input_nodes[0].meta.get("val")
    if not (isinstance(value, torch.Tensor) and isinstance(source, torch.Tensor)):
        return False
    same_shape = len(value.shape) == len(source.shape) and all(
        str(a) == str(b) for a, b in zip(value.shape, source.shape, strict=True)
    )
    return same_shape and value.dtype == source.dtype


def _sizes(shape: Iterable[Dim], variables: Mapping[str, Any]) -> list[Any]:
    from tvm import tirx

    return [
        math.prod(
            (v for name, v in variables.items() if name in dim.name.split(PRODUCT)),
            start=dim.factor,
        )
        if isinstance(dim, Sym)
        else tirx.IntImm("int64", dim)
        for dim in shape
    ]


def refuse_unknown_ops(graph: Graph, regions: Iterable[Region]) -> None:
    """Check that TVM's importer knows every op outside the regions.

    Raises
    ------
    FrontendError
        For the first op that it does not know; the message names the layer.
    """
    from lutcc.frontend.relax.importer import Importer

    known = Importer({}).convert_map
    inside = {node for region in regions for node in region.nodes}
    for node in graph.nodes:
        if node not in graph.used or node in inside or node.op != "call_function":
            continue
        if op_name(node).startswith("lutcc."):  # TVM may know another op of that name
            raise FrontendError(
                f"{op_name(node)} is compiled for constant weights, and sizes that are fixed but "
                "for the batch; here something is not",
                where=place_of(node),
                fix="fix the other sizes, or leave the layer outside the compiled model",
            )
        if getattr(node.target, "__name__", "") not in known:
            raise FrontendError(
                f"{op_name(node)} has neither an op in lutcc's IR nor an importer in TVM",
                where=place_of(node),
                fix=(
                    "replace the layer by one made of common torch operations, or leave "
                    "it outside the compiled model"
                ),
            )


def _numpy(tensor: torch.Tensor) -> Array:
    return np.ascontiguousarray(tensor.detach().numpy())
