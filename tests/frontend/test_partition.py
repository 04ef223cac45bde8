"""Regions: maximal, anchored, and never part of a cycle."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx.node import map_arg

from lutcc import ir
from lutcc.errors import FrontendError
from lutcc.frontend import import_torch
from lutcc.frontend.export import export_program
from lutcc.frontend.graph import Graph
from lutcc.frontend.partition import find_regions, group, probe


class Sine(nn.Module):
    """What the IR has no op for."""

    def forward(self, x):
        return torch.sin(x)


def _mixed(model, *shape):
    imported = import_torch(model.eval(), torch.zeros(2, *shape))
    assert imported.kind == "mixed"
    return imported


def _ops(region):
    return [op.opcode for op in region.module.main.body if op.opcode != "constant"]


def test_mlp_with_sine_has_a_region_on_each_side():
    imported = _mixed(
        nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 5), Sine(), nn.Linear(5, 3)), 6
    )
    assert [_ops(r) for r in imported.regions] == [["linear", "relu", "linear"], ["linear"]]
    assert imported.notes == (
        "layer '3' (Sine): compiled through TVM Relax (the IR has no op for aten.sin.default)",
    )


def test_sequences_enter_regions_as_rows():
    imported = _mixed(nn.Sequential(nn.Linear(6, 7), Sine(), nn.Linear(7, 3)), 4, 6)
    for region in imported.regions:
        assert _ops(region) == ["linear"]
        assert len(region.module.main.params[0].type.shape) == 2


class _Around(nn.Module):
    """A relu both before and behind an op that only TVM has: joining them would close a cycle."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.b(h + torch.sin(h))


def test_no_region_spans_an_op_between_its_nodes():
    imported = _mixed(_Around(), 4)
    assert [_ops(r) for r in imported.regions] == [["linear", "relu"], ["linear"]]


class _Free(nn.Module):
    """Elementwise ops far from any layer."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x):
        return torch.relu(torch.sin(torch.relu(x) + 1)) * torch.sin(self.a(x))


def test_elementwise_ops_alone_are_no_region():
    assert [_ops(r) for r in _mixed(_Free(), 4).regions] == [["linear"]]


def test_several_results_of_one_region():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            h = torch.relu(self.a(x))
            return torch.sin(h), torch.sin(self.b(h))

    (region,) = _mixed(Two(), 4).regions
    assert len(region.outputs) == 2
    assert len(region.module.main.returns) == 2


def _without_cycle(graph, groups):
    """Contract every group to one node and sort topologically."""
    home = {n: i for i, g in enumerate(groups) for n in g}
    key = lambda n: home.get(n, n)  # noqa: E731
    used = [n for n in graph.nodes if n in graph.used]
    edges = {}
    for node in used:
        for operand in node.all_input_nodes:
            if operand in graph.used and key(operand) != key(node):
                edges.setdefault(key(node), set()).add(key(operand))
    done, remaining = set(), {key(n) for n in used}
    while remaining:
        ready = {n for n in remaining if edges.get(n, set()) <= done}
        if not ready:
            return False
        done |= ready
        remaining -= ready
    return True


class _Random(nn.Module):
    """A random graph of ops that the IR has and ops that it has not."""

    def __init__(self, seed):
        super().__init__()
        self.rng_seed = seed
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(6))

    def forward(self, x):
        rng = random.Random(self.rng_seed)
        values = [x]
        for layer in self.layers:
            a, b = rng.choice(values), rng.choice(values)
            values.append(layer(a))
            values.append(
                rng.choice([torch.relu, torch.tanh, lambda v: v + 1.0])(rng.choice(values))
            )
            values.append(values[-1] + b)
            values.append(torch.sin(rng.choice(values)))
        return tuple(values[-5:])


@pytest.mark.one_in(4)
@pytest.mark.parametrize("seed", range(12))
def test_contracted_graphs_have_no_cycle(seed):
    graph = Graph(export_program(_Random(seed).eval(), torch.zeros(2, 4)).program)
    found = probe(graph)
    groups = group(graph, found.expressible)
    assert groups
    assert _without_cycle(graph, groups)
    assert len({n for g in groups for n in g}) == sum(len(g) for g in groups)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("seed", range(4))
def test_regions_compute_what_the_graph_does(seed):
    model = _Random(seed).eval()
    graph = Graph(export_program(model, torch.zeros(2, 4)).program)
    regions = find_regions(graph, probe(graph))
    of = {node: region for region in regions for node in region.nodes}
    x = torch.randn(3, 4)
    values = {graph.input_nodes[0]: x.numpy()}

    def value(node):
        if node in graph.constants:
            return graph.constants[node]
        if node not in values and node in of:
            region = of[node]
            arrays = [torch.as_tensor(value(i)).numpy() for i in region.inputs]
            values.update(zip(region.outputs, ir.interpret(region.module, arrays), strict=True))
        elif node not in values:
            args, kwargs = map_arg(
                (node.args, dict(node.kwargs)), lambda n: torch.as_tensor(value(n))
            )
            values[node] = node.target(*args, **kwargs).detach().numpy()
        return values[node]

    for node, expected in zip(graph.output_nodes, model(x), strict=True):
        torch.testing.assert_close(
            torch.as_tensor(value(node)), expected.detach(), rtol=1e-5, atol=1e-5
        )


class _Narrow(nn.Module):
    """A gather from bfloat16 tables; ``widened``: torch reads them, too."""

    tables: torch.Tensor

    def __init__(self, widened: bool) -> None:
        super().__init__()
        self.widened = widened
        values = torch.tensor([[[1.5, -2.25, 3e38], [0, 1, 2]]])
        self.register_buffer("tables", values.bfloat16())

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        codes, scores = torch.ops.lutcc.sign_hash(z, 1)
        y = torch.ops.lutcc.weighted_gather(codes, scores, self.tables)
        return y + self.tables.float()[0, 0] if self.widened else y


def test_bfloat16_tables_come_as_they_are():
    import lutcc.ops  # noqa: F401

    graph = Graph(export_program(_Narrow(False).eval(), torch.zeros(2, 1)).program)
    (node,) = (n for n, t in graph.constants.items() if t.dtype is torch.bfloat16)
    array = graph.array(node)
    assert array.dtype.name == "bfloat16"
    assert not array.flags.writeable
    wanted = graph.constants[node].float().numpy()
    np.testing.assert_array_equal(array.astype(np.float32), wanted)
    with pytest.raises(FrontendError, match="parameter 'tables': has dtype bfloat16, and lutcc"):
        export_program(_Narrow(True).eval(), torch.zeros(2, 1))
