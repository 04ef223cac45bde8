"""Attention in compiled models: one kernel a layer, any mask, several open sizes, nothing moved."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import lutcc
from lutcc.frontend import import_torch
from lutcc.frontend.export import export_program

F = nn.functional


class Heads(nn.Module):
    """Projections and attention, as models write them."""

    def __init__(self, width: int = 24, heads: int = 4, groups: int = 4, **options: Any) -> None:
        super().__init__()
        self.heads, self.groups, self.options = heads, groups, options
        size = width // heads
        self.q, self.o = nn.Linear(width, width), nn.Linear(width, width)
        self.k, self.v = nn.Linear(width, groups * size), nn.Linear(width, groups * size)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        n, length, width = x.shape

        def split(y: torch.Tensor, heads: int) -> torch.Tensor:
            return y.view(n, length, heads, width // self.heads).transpose(1, 2)

        q = split(self.q(x), self.heads)
        k, v = split(self.k(x), self.groups), split(self.v(x), self.groups)
        gqa = self.groups != self.heads
        y = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=gqa, **self.options)
        return self.o(y.transpose(1, 2).reshape(n, length, width))


def compiled(model: nn.Module, *example: torch.Tensor) -> Any:
    names = {0: "n", 1: "length"}
    dynamic: list[Any] = [names]
    if len(example) > 1:
        dynamic.append({0: "n", 2: "length", 3: "length"})
    return lutcc.compile(model.eval(), example, dynamic=dynamic)


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"scale": 0.2}, {"groups": 2}], ids=str
)
def test_projections_and_attention(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Heads(**options).eval()
    artifact = compiled(model, torch.randn(2, 5, 24))
    assert "attention(" in str(artifact.explain())
    for n, length in ((1, 1), (3, 7), (2, 131), (0, 4)):
        x = torch.randn(n, length, 24)
        with torch.inference_mode():
            torch.testing.assert_close(artifact(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32], ids=str)
def test_masks(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Heads().eval()

    def mask(n: int, length: int) -> torch.Tensor:
        flags = torch.rand(n, 1, length, length) > 0.5
        flags[..., 0, :] = False  # nothing to see: zeros
        return flags if dtype is torch.bool else torch.where(flags, 0.0, -torch.inf)

    artifact = compiled(model, torch.randn(2, 5, 24), mask(2, 5))
    for n, length in ((1, 4), (3, 17)):
        x, m = torch.randn(n, length, 24), mask(n, length)
        with torch.inference_mode():
            torch.testing.assert_close(artifact(x, m), model(x, m), rtol=1e-4, atol=1e-5)


def test_what_has_no_heads_is_computed_as_before() -> None:
    class Plain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(x, x, x)

    artifact = lutcc.compile(Plain().eval(), torch.randn(2, 5, 8))
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(artifact(x), Plain()(x), rtol=1e-4, atol=1e-5)


def test_nothing_moves_between_layers_and_masks_are_made_once() -> None:
    """Two layers: no permutation is left, and the mask of both is one node."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Heads(), Heads()

        def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
            y = self.a(x, (seen > 0)[:, None, None, :])
            return self.b(y, (seen > 0)[:, None, None, :])

    example = (torch.randn(2, 5, 24), torch.ones(2, 5))
    program = export_program(Two().eval(), example, dynamic={0: "n", 1: "length"}).program
    targets = [str(node.target) for node in program.graph.nodes]
    assert not [t for t in targets if "permute" in t or "clone" in t or "view" in t]
    assert targets.count("aten.gt.Scalar") == 1
    imported = import_torch(Two().eval(), example, dynamic={0: "n", 1: "length"})
    ops = [[op.opcode for op in region.module.main.body] for region in imported.regions]
    assert sum("attention" in region for region in ops) == 2


@pytest.mark.one_in(2)
@pytest.mark.parametrize("compute", ["bfloat16", "int8"])
def test_between_rounded_layers_attention_is_rounded(compute: str) -> None:
    model = lutcc.convert(Heads().eval(), {"*": lutcc.recipes.Exact(compute=compute)})
    imported = import_torch(model, torch.randn(2, 5, 24), dynamic={0: "n", 1: "length"})
    (op,) = (
        op
        for region in imported.regions
        for op in region.module.main.body
        if op.opcode == "attention"
    )
    assert op.attr("compute") == "bfloat16"
    artifact = compiled(model, torch.randn(2, 5, 24))
    x = torch.randn(3, 40, 24)
    with torch.inference_mode():
        torch.testing.assert_close(artifact(x), model(x), rtol=0.1, atol=0.02)


def test_one_open_size_joins_the_layers_around_it() -> None:
    """With the length fixed, projections and attention are one module of the IR."""
    imported = import_torch(Heads().eval(), torch.randn(2, 5, 24))
    assert imported.kind == "ir"
    model = Heads().eval()
    artifact = lutcc.compile(model, torch.randn(2, 5, 24))
    for n in (1, 3, 40):
        x = torch.randn(n, 5, 24)
        with torch.inference_mode():
            torch.testing.assert_close(artifact(x), model(x), rtol=1e-4, atol=1e-5)
