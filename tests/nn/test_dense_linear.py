"""DenseLinear: alone, made by recipes, exported and compiled."""

from __future__ import annotations

import os

os.environ.setdefault("TVM_BIND_THREADS", "0")

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lutcc
from lutcc.errors import ConvertError, InputError, RecipeError
from lutcc.frontend import import_torch
from lutcc.nn import DenseLinear
from lutcc.recipes import Exact, config_from_dict, config_to_dict

COMPUTE = ["float32", "bfloat16", "int8"]


def linear(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(40, 24, bias)


def rows(*lead: int) -> torch.Tensor:
    return torch.randn(*lead, 40, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.last = nn.Linear(40, 24), nn.Linear(24, 5, bias=False)
        self.conv = nn.Conv1d(1, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).relu())


@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize("bias", [True, False])
def test_near_the_layer_it_is_made_from(compute: str, bias: bool) -> None:
    layer, x = linear(bias), rows(3, 4)
    made, want = DenseLinear.from_linear(layer, compute=compute), layer(x)
    bound = {"float32": 1e-6, "bfloat16": 0.01, "int8": 0.02}[compute]
    assert (made(x) - want).norm() <= bound * want.norm()
    assert (made.dequantize() - layer.weight).norm() <= bound * layer.weight.norm()
    assert made(x.half()).dtype is torch.float16


def test_the_state_is_what_is_stored(tmp_path: Path) -> None:
    made = {c: DenseLinear.from_linear(linear(), compute=c) for c in COMPUTE}
    found = {c: layer.state_dict() for c, layer in made.items()}
    assert found["int8"]["weight"].dtype is torch.int8
    assert found["int8"]["scales"].dtype is torch.float32
    assert found["bfloat16"]["weight"].dtype is torch.bfloat16
    assert found["float32"]["weight"].dtype is torch.float32
    for compute, state in found.items():
        fresh = DenseLinear(40, 24, compute=compute)
        fresh.load_state_dict(state)
        assert torch.equal(fresh(rows(3)), made[compute](rows(3)))


def test_casts_and_copies_leave_the_integers_alone() -> None:
    layer = DenseLinear.from_linear(linear())
    want = layer(rows(3))
    other = copy.deepcopy(layer).half().float()
    assert other.scales is not None
    assert layer.scales is not None
    assert torch.equal(other.scales, layer.scales)
    assert other.weight.dtype is torch.int8
    torch.testing.assert_close(other(rows(3)), want, rtol=1e-3, atol=1e-3)  # the bias was cast


@pytest.mark.parametrize("compute", COMPUTE)
def test_training_lowers_the_loss(compute: str) -> None:
    layer, x = DenseLinear.from_linear(linear(), compute=compute).train(), rows(64)
    target = x @ torch.randn(40, 24, generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]


def test_recipes_make_linear_layers_only() -> None:
    model = Net().train()
    converted: Any = lutcc.convert(model, {"*": Exact(compute="int8"), "last": Exact()})
    assert isinstance(converted.first, DenseLinear)
    assert type(converted.last) is nn.Linear
    assert converted.training
    assert type(model.first) is nn.Linear, "the model itself is not changed"
    first, last = converted.conversion_report.layers[:2]
    assert (first.name, first.method, last.relative_error) == ("first", "exact", 0)
    assert 0 < first.relative_error < 0.02
    assert "int8" in first.note


def test_embeddings_are_refused() -> None:
    net = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 2))
    converted: Any = lutcc.convert(net, {"*": Exact(compute="bfloat16")})
    assert type(converted[0]) is nn.Embedding
    assert converted[1].compute == "bfloat16"
    with pytest.raises(ConvertError, match="matches only Embedding, which cannot be converted"):
        lutcc.convert(net, {"0": Exact(compute="bfloat16")})


def test_recipes_as_text(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('["*"]\nmethod = "exact"\ncompute = "bfloat16"\n', encoding="utf-8")
    converted: Any = lutcc.convert(Net(), path)
    assert converted.first.compute == "bfloat16"
    for config in (Exact(), Exact(compute="int8")):
        assert config_from_dict(config_to_dict(config)) == config
    with pytest.raises(RecipeError, match="compute"):
        config_from_dict({"method": "exact", "compute": "int4"})


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="compute"):
        DenseLinear(3, 4, compute="int4")
    with pytest.raises(InputError, match="must be 40"):
        DenseLinear.from_linear(linear())(torch.zeros(2, 3))
    broken = linear()
    broken.weight.data[0, 0] = torch.nan
    with pytest.raises(InputError, match="not all finite"):
        DenseLinear.from_linear(broken)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("compute", COMPUTE)
def test_exported_and_compiled(compute: str) -> None:
    converted = lutcc.convert(Net(), {"*": Exact(compute=compute)}).eval()
    x = rows(9)
    dynamic = {"x": {0: torch.export.Dim("n")}}
    program = torch.export.export(converted, (x,), dynamic_shapes=dynamic)
    assert torch.equal(program.module()(x), converted(x))
    module = import_torch(program).module
    assert module is not None
    chain = [op.opcode for op in module.main.body if op.opcode != "constant"]
    assert chain == ["dense", "relu", "dense"]
    stored = {a.dtype.name for a in module.constants.values() if a.ndim == 2}
    assert stored == {compute}
    artifact = lutcc.compile(program, target="avx2")
    for n in (1, 9):
        got = artifact(x[:n].numpy())
        want = converted(x[:n]).detach().numpy()
        bound = 1e-5 if compute == "float32" else 0.02 * np.abs(want).max()
        assert np.abs(got - want).max() <= bound
