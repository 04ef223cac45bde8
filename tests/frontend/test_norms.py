"""Layer norm, softmax and activations in regions: what a transformer has between its products."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lutcc
from lutcc import ir
from lutcc.codegen.lower import prepare
from lutcc.frontend import import_torch
from lutcc.frontend.export import export_program
from lutcc.frontend.graph import Graph
from lutcc.frontend.partition import find_regions, probe


class Sine(nn.Module):
    """What the IR has no op for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x)


def _ops(module: ir.Module) -> list[str]:
    return [op.opcode for op in module.main.body if op.opcode not in ("constant", "reshape")]


class _Net(nn.Module):
    """Whatever a function makes of the results of a layer."""

    def __init__(self, behind: Any) -> None:
        super().__init__()
        self.layer, self.behind = nn.Linear(6, 20), behind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.behind(self.layer(x))


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    "behind",
    [
        F.gelu,
        lambda v: F.gelu(v, approximate="tanh"),
        F.silu,
        torch.sigmoid,
        torch.tanh,
        F.hardswish,
        F.hardsigmoid,
        lambda v: torch.softmax(v, -1),
        lambda v: F.layer_norm(v, (20,)),
        lambda v: F.layer_norm(v.unflatten(-1, (4, 5)), (4, 5), torch.ones(4, 5) * 3),
        lambda v: torch.tanh(v.unflatten(-1, (2, 5, 2)) + 1),
        nn.LayerNorm(20, eps=0.1, elementwise_affine=False),
    ],
)
def test_each_is_expressible(assert_interpreted: Any, behind: Any) -> None:
    assert_interpreted(_Net(behind), torch.randn(3, 6), torch.randn(1, 6))
    assert_interpreted(_Net(behind), torch.randn(2, 4, 6))


@pytest.mark.parametrize(
    ("behind", "reason"),
    [
        (lambda v: torch.softmax(v, 0), "softmax over dimension 0, which is not the last"),
        (lambda v: torch.softmax(v.double(), -1).float(), "change of dtype"),
    ],
)
def test_what_is_left_to_relax(behind: Any, reason: str) -> None:
    imported = import_torch(_Net(behind).eval(), torch.zeros(2, 6))
    assert imported.kind == "mixed"
    assert any(reason in note for note in imported.notes)


class _Block(nn.Module):
    """A transformer's layer, as BERT has it."""

    def __init__(self, width: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.out(attended))
        return self.norm2(x + self.narrow(F.gelu(self.wide(x))))


def test_between_two_attentions_there_is_one_region() -> None:
    """Output projection, residual, norm, feed-forward part, residual, norm, next projections."""
    model = nn.Sequential(_Block(), _Block()).eval()
    dims = ({0: torch.export.Dim("b", min=1), 1: torch.export.Dim("t", min=1)},)
    program = torch.export.export(model, (torch.randn(3, 5, 32),), dynamic_shapes=dims)
    graph = Graph(export_program(program).program)
    regions = [_ops(r.module) for r in find_regions(graph, probe(graph))]
    middle = ["linear", "add", "layer_norm", "linear", "activation", "linear", "add", "layer_norm"]
    assert [ops for ops in regions if ops != ["attention"]] == [
        ["linear"],
        ["linear"],
        ["linear"],
        [*middle, "linear", "linear", "linear"],
        middle,
    ]


def test_a_norm_before_the_first_layer_joins_it() -> None:
    model = nn.Sequential(Sine(), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 8), nn.Sigmoid())
    (region,) = import_torch(model.eval(), torch.zeros(2, 8)).regions
    assert _ops(region.module) == ["layer_norm", "activation", "linear", "activation"]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("norm_first", [False, True])
def test_feed_forward_part_equals_torch(norm_first: bool) -> None:
    """With residual and norm, in one stage, whose kernels agree with torch."""
    torch.manual_seed(1)
    width = 24

    class FeedForward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.a, self.b = (
                nn.LayerNorm(width),
                nn.Linear(width, 70),
                nn.Linear(70, width),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.norm(x) if norm_first else x
            h = x + self.b(F.gelu(self.a(h)))
            return h if norm_first else self.norm(h)

    model = FeedForward().eval()
    module = import_torch(model, torch.zeros(2, 5, width)).module
    assert module is not None
    assert [op.opcode for op in prepare(module).main.body if op.opcode != "reshape"] == ["call"]
    artifact = lutcc.compile(model, torch.zeros(2, 5, width), target="avx2")
    for shape in ((1, 5, width), (7, 5, width)):
        x = torch.randn(shape)
        with torch.inference_mode():
            want = model(x).numpy()
        np.testing.assert_allclose(np.asarray(artifact(x)), want, atol=1e-5)
