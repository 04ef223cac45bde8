"""Cut an exported graph into regions that lutcc compiles and the rest, which Relax compiles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch.fx import Node

from lutcc import ir
from lutcc.frontend.checks import op_name
from lutcc.frontend.graph import Graph, NotExpressible
from lutcc.frontend.lower_ops import is_anchor, lower_node
from lutcc.frontend.lowered import RegionBuilder, as_rows
from lutcc.frontend.rules_attention import stands_alone
from lutcc.ir.types import Dim, Sym

_MOVEMENT = (
    "aten.view.",
    "aten._unsafe_view.",
    "aten.reshape.",
    "aten.flatten.",
    "aten.unflatten.",
    "aten.squeeze.",
    "aten.unsqueeze.",
    "aten.permute.",
    "aten.transpose.",
    "aten.clone.",
    "aten.expand.",
    "aten.alias.",
    "aten.contiguous.",
)
_NORMS = ("aten.native_layer_norm.", "aten.layer_norm.")
_IMAGE_OPS = (
    "aten.conv",
    "lutcc.im2col",
    "aten._native_batch_norm",
    "aten.batch_norm",
    "aten.max_pool2d",
    "aten.permute",
    "aten.transpose",
)


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a graph as an IR module of its own.

    ``inputs`` and ``outputs`` are nodes of the exported graph, in the order of the module's
    parameters and results; the module may hold them under another shape with as many elements.
    """

    name: str
    module: ir.Module
    nodes: frozenset[Node]
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """What the IR can express of a graph, the reasons for the rest, and the IR of the whole.

    Those ``alone`` make a region each: their kernels take several open sizes.
    """

    expressible: frozenset[Node]
    alone: frozenset[Node]
    reasons: Mapping[Node, NotExpressible]
    whole: RegionBuilder


def probe(graph: Graph) -> Probe:
    """Try every node of a graph on the IR."""
    region = RegionBuilder(graph)
    for node in graph.input_nodes:
        _declare(region, node)
    expressible, alone, reasons = set[Node](), set[Node](), dict[Node, NotExpressible]()
    for node in graph.nodes:
        if node not in graph.used or not graph.is_tensor_op(node):
            continue
        try:
            if stands_alone(graph, node):
                _build(graph, "trial", frozenset({node}), frozenset({node}))
                alone.add(node)
                _declare(region, node)
            else:
                lower_node(region, node)
            expressible.add(node)
        except NotExpressible as reason:
            reasons[node] = reason
            _declare(region, node)
    return Probe(frozenset(expressible), frozenset(alone), reasons, region)


def _declare(region: RegionBuilder, node: Node) -> None:
    try:
        region.input(node)
    except (NotExpressible, ir.VerifyError):
        return  # its users then have no form in the IR either


def find_regions(graph: Graph, found: Probe) -> tuple[Region, ...]:
    """Return the maximal regions of expressible nodes with at least one look-up or dense layer.

    Replacing each region by one node leaves a graph without cycles.
    """
    expressible = set(found.expressible)
    while True:
        regions: list[Region] = []
        for nodes in group(graph, expressible, found.alone):
            try:
                regions.append(_build(graph, f"region{len(regions)}", nodes, found.alone))
            except NotExpressible:
                # expressible only beside nodes that fell to another region
                expressible -= nodes
                break
        else:
            return tuple(regions)


def group(
    graph: Graph, expressible: Iterable[Node], alone: frozenset[Node] = frozenset()
) -> list[frozenset[Node]]:
    """Return the groups of nodes that become regions, in the graph's order."""
    groups = _Groups(graph, frozenset(expressible), alone)
    for node in graph.nodes:
        if node in groups.expressible:
            groups.place(node)
    trimmed = [_trim(graph, members) for members in groups.members.values()]
    position = {node: i for i, node in enumerate(graph.nodes)}
    kept = [members for members in trimmed if any(is_anchor(n) for n in members)]
    return sorted(kept, key=lambda members: min(position[n] for n in members))


class _Groups:
    """Groups grow along edges, and only where no path leaves a group and comes back.

    Those ``alone`` are groups that do not grow.
    """

    def __init__(self, graph: Graph, expressible: frozenset[Node], alone: frozenset[Node]) -> None:
        self.graph = graph
        self.expressible = expressible
        self.alone = alone
        self.members: dict[int, set[Node]] = {}
        self.of: dict[Node, int] = {}

    def operands(self, node: Node) -> list[Node]:
        """Return what must be computed before ``node``; regions do not read sizes off the graph."""
        used = [n for n in node.all_input_nodes if n in self.graph.used]
        if node in self.expressible:
            used = [n for n in used if self.graph.is_tensor_op(n) or n.op == "placeholder"]
        return used

    def place(self, node: Node) -> None:
        """Put ``node`` into its operands' groups where that makes no cycle, else into its own."""
        home: int | None = None
        before = [n for n in self.operands(node) if n in self.of and n not in self.alone]
        for number in sorted({self.of[n] for n in before if node not in self.alone}):
            together = self.members[number] | ({node} if home is None else self.members[home])
            if not self._is_convex(together):
                continue
            if home is not None:
                del self.members[home]
            home = number
            self.members[home] = together
            self.of.update(dict.fromkeys(together, home))
        if home is None:
            home = max(self.members, default=-1) + 1
            self.members[home] = {node}
            self.of[node] = home

    def _is_convex(self, nodes: set[Node]) -> bool:
        seen: set[Node] = set()
        stack = [n for node in nodes for n in self.operands(node) if n not in nodes]
        while stack:
            node = stack.pop()
            if node in nodes:
                return False
            if node in seen:
                continue
            # a group runs as a whole, so whatever any of its nodes waits for, all wait for
            whole = self.members[self.of[node]] - nodes if node in self.of else {node}
            seen |= whole
            for member in whole:
                stack.extend(n for n in self.operands(member) if n not in seen)
        return True


def _trim(graph: Graph, members: Iterable[Node]) -> frozenset[Node]:
    """Drop what follows no anchor, and data movement at the end: Relax fuses or views it."""
    kept: set[Node] = set()
    for node in graph.nodes:
        if node in members and (is_anchor(node) or any(n in kept for n in node.all_input_nodes)):
            kept.add(node)
    kept |= _leading(graph, frozenset(members), kept)
    for node in reversed(graph.nodes):
        if (
            node in kept
            and op_name(node).startswith(_MOVEMENT)
            and not any(u in kept for u in node.users)
        ):
            kept.remove(node)
    return frozenset(kept)


def _leading(graph: Graph, members: frozenset[Node], kept: set[Node]) -> set[Node]:
    """Return the norms that lead to what is kept, and what is between them."""
    behind: set[Node] = set()
    for node in graph.nodes:
        if node in members and (
            op_name(node).startswith(_NORMS) or any(n in behind for n in node.all_input_nodes)
        ):
            behind.add(node)
    leading: set[Node] = set()
    for node in reversed(graph.nodes):
        if node in behind and any(u in kept or u in leading for u in node.users):
            leading.add(node)
    return leading


def _build(graph: Graph, name: str, nodes: frozenset[Node], alone: frozenset[Node]) -> Region:
    ordered = [n for n in graph.nodes if n in nodes]
    inputs: list[Node] = []
    for node in ordered:
        for operand in node.all_input_nodes:
            outside = (
                operand not in nodes and operand not in graph.constants and operand not in inputs
            )
            if outside and (graph.is_tensor_op(operand) or operand.op == "placeholder"):
                inputs.append(operand)
    results = set(graph.output_nodes)
    outputs = [
        n
        for n in ordered
        if n in results or any(u in graph.used and u not in nodes for u in n.users)
    ]
    region = RegionBuilder(graph, open_sizes=nodes <= alone)
    for node in inputs:
        region.input(node, _stored_shape(graph, node, nodes))
    for node in ordered:
        lower_node(region, node)
    region.builder.returns(*(region.result(n, torch_shape=False) for n in outputs))
    module = region.builder.module()
    if len(module.main.symbols) > 1 and not nodes <= alone:
        raise NotExpressible(f"several open sizes ({', '.join(module.main.symbols)})")
    return Region(name, module, nodes, tuple(inputs), tuple(outputs))


def _stored_shape(graph: Graph, node: Node, nodes: frozenset[Node]) -> tuple[Dim, ...]:
    """Return the shape a region takes an input under: rows, if no reader needs the torch shape."""
    shape = graph.shape(node)
    readers = [u for u in node.users if u in nodes]
    if len(shape) < 3 or any(op_name(u).startswith(_IMAGE_OPS) for u in readers):
        return shape
    return shape if isinstance(shape[-1], Sym) else as_rows(shape)
