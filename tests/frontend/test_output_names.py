"""Outputs are called what a returned dictionary calls them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lutcc
from lutcc.frontend import import_torch


class Returns(torch.nn.Module):
    def __init__(self, keys: tuple[Any, ...]) -> None:
        super().__init__()
        self.keys, self.layer = keys, torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> dict[Any, torch.Tensor]:
        return {key: self.layer(x) + i for i, key in enumerate(self.keys)}


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (("states", "pooled"), ["states", "pooled"]),
        (("scores",), ["scores"]),
        (("x", "y"), ["output0", "output1"]),  # x is the input
        (("a b", "y"), ["output0", "output1"]),
        ((1, 2), ["output0", "output1"]),
    ],
    ids=str,
)
def test_names(keys: tuple[Any, ...], names: list[str]):
    found = import_torch(Returns(keys).eval(), torch.zeros(2, 4))
    assert [port.name for port in found.outputs] == names


class Sums(Returns):
    def forward(self, x: torch.Tensor) -> dict[Any, torch.Tensor]:
        return super().forward(x.cumsum(1))  # what TVM compiles: not a module of the IR alone


def test_an_artifact_keeps_names_and_order():
    model, x = Sums(("z", "a")).eval(), torch.rand(3, 4)
    artifact = lutcc.compile(model, (x,), target="avx2")
    assert [spec.name for spec in artifact.outputs] == ["z", "a"]
    with torch.no_grad():
        for found, expected in zip(artifact(x), model(x).values(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
