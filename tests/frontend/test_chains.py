"""Look-ups that feed look-ups, from torch: what stays in integers, and what is told of the rest."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lutcc
from lutcc import ir
from lutcc.frontend import import_torch
from lutcc.ir.passes import PIPELINE, DeadColumns, IntegerChains, LookupNote, run_pipeline
from lutcc.nn.fused_paths import leave_fused_paths
from lutcc.recipes import Maddness

RECIPE = {"*": Maddness(ncodebooks=8)}


class Between(nn.Module):
    """Two look-ups, and a function between them."""

    def __init__(self, layers: nn.Sequential, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.first, self.last = layers[0], layers[1]
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.function(self.first(x)))


@pytest.fixture(scope="module")
def layers() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 24), nn.Linear(24, 7))
    converted = lutcc.convert(model, RECIPE, torch.randn(400, 20))
    assert isinstance(converted, nn.Sequential)
    return converted


def _normed(negative: bool) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(24).eval()
    nn.init.uniform_(norm.weight, -2 if negative else 0.5, 2)
    nn.init.normal_(norm.bias)
    norm.running_mean = torch.randn(24)
    return norm


MONOTONE: dict[str, Callable[[Any], Any]] = {
    "relu": torch.relu,
    "relu6": F.relu6,
    "hardtanh": nn.Hardtanh(-0.3, 0.4),
    "clamp": lambda x: x.clamp(-0.2, 2),
    "clamp from below": lambda x: x.clamp(min=0.1),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardsigmoid": F.hardsigmoid,
    "leaky relu": nn.LeakyReLU(0.1),
    "elu": nn.ELU(0.5),
    "celu": nn.CELU(0.7),
    "selu": nn.SELU(),
    "softplus": nn.Softplus(),
    "sharp softplus": nn.Softplus(2, 30),
    "negative": torch.neg,
    "dropout": nn.Dropout(),
    "affine": lambda x: x * torch.linspace(-1, 1, 24) + 0.3,
    "batch norm": nn.Sequential(_normed(False), nn.ReLU()),
    "batch norm that falls": nn.Sequential(_normed(True), nn.ReLU6(), nn.Flatten()),
    "fake quantisation": lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 7, 0, 255),
    "shapes": lambda x: x.unflatten(1, (4, 6)).relu().flatten(1),
}
TURNING: dict[str, Callable[[Any], Any]] = {
    "gelu": F.gelu,
    "gelu tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "hardswish": F.hardswish,
    "mish": F.mish,
    "leaky relu that falls": nn.LeakyReLU(-0.5),
    "abs": torch.abs,
    "gelu and batch norm": nn.Sequential(nn.GELU(), _normed(True)),
}


def told(model: nn.Module, x: torch.Tensor) -> tuple[ir.Module, ir.Module, list[LookupNote]]:
    """Return a model without and with chains in integers, and what the passes say."""
    module = import_torch(model.eval(), x).module
    assert module is not None
    notes: list[LookupNote] = []
    unfused = [step for step in PIPELINE if not isinstance(step, IntegerChains | DeadColumns)]
    return run_pipeline(module, unfused), run_pipeline(module, notes=notes), notes


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", [*MONOTONE, *TURNING])
def test_functions_between_look_ups(layers: nn.Sequential, name: str) -> None:
    function = (MONOTONE | TURNING)[name]
    x = torch.randn(500, 20)
    model = Between(layers, function)
    module, changed, (first, last) = told(model, x)
    assert first.integers, first.reason
    assert (first.layer, last.layer) == ("first", "last")
    assert not last.cut
    opcodes = {op.opcode for f in changed.functions for op in f.body} - {"constant", "repack"}
    assert opcodes - {"call", "interval_encode", "reshape"} == {
        "tree_encode",
        "lut_accumulate",
        "lut_dequantize",
    }
    assert ("interval_encode" in opcodes) == (name in TURNING)
    (want,), (got,) = (ir.interpret(m, [x.numpy()]) for m in (module, changed))
    np.testing.assert_array_equal(got, want)
    with torch.no_grad():  # a rounding of torch may send a row elsewhere, but hardly many
        same = np.isclose(model(x).numpy(), want, atol=1e-4).all(1)
    assert same.mean() > 0.99


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ["relu6", "elu", "mish", "gelu and batch norm"])
def test_compiled_chains(layers: nn.Sequential, name: str) -> None:
    x = torch.randn(300, 20)
    model = Between(layers, (MONOTONE | TURNING)[name])
    artifact = lutcc.compile(model.eval(), x[:2])
    module, _, notes = told(model, x[:2])
    (want,) = ir.interpret(module, [x.numpy()])
    for rows in (1, 33, 300):
        np.testing.assert_array_equal(artifact(x[:rows].numpy()), want[:rows])
    row, _ = artifact.explain().lookups
    assert (row.integers, row.columns, row.computed) == (True, 24, notes[0].computed)


def test_functions_stand_anywhere() -> None:
    """They are compiled behind exact layers, too, and over images."""

    class Everything(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(2, 5, 1), nn.Linear(5 * 9, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = F.elu(F.softplus(F.leaky_relu(self.conv(x), -0.2).clamp(max=3)), 0.3)
            return F.mish(F.celu(self.linear(F.hardtanh(y, 0.1, 2).flatten(1)), 2)).abs()

    model, x = Everything().eval(), torch.randn(5, 2, 3, 3)
    artifact = lutcc.compile(model, x[:2])
    assert artifact.kind == "ir"
    with torch.no_grad():
        torch.testing.assert_close(artifact(x), model(x), rtol=1e-5, atol=1e-5)


class Mixed(nn.Module):
    """Chains that a cat, a softmax and a residual cut."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(40, 20)
        self.d, self.e, self.f = nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(20, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.b(F.gelu(self.a(x))))
        k = self.c(torch.cat([h, x], 1)).softmax(-1)
        k = self.d(k) + x
        return self.f(torch.relu(self.e(k)))


def test_what_is_told_of_a_mixed_model(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = lutcc.convert(Mixed().eval(), RECIPE, torch.randn(300, 20))
    artifact = lutcc.compile(model, torch.zeros(2, 20))
    assert artifact.kind == "relax"
    path = artifact.save(tmp_path / "mixed.lutcc")
    x = torch.randn(40, 20)
    with torch.no_grad():
        torch.testing.assert_close(artifact(x), model(x), rtol=1e-4, atol=1e-4)
    explained = lutcc.load(path).explain()
    rows = {row.layer: row for row in explained.lookups}
    assert [name for name, row in rows.items() if row.integers] == ["a", "e"]
    assert rows["a"].behind == ("gelu",)
    assert rows["b"].reason == "cat reads it outside the region"
    assert rows["b"].cut
    assert rows["c"].reason == "softmax looks at whole rows"
    assert rows["d"].reason == "add joins it with another value"
    assert rows["f"].reason == "it is returned"
    assert not rows["f"].cut
    assert {row.region for row in rows.values()} == {"region0", "region1"}
    text = str(explained)
    assert "look-ups  2 of 6 layers stay in integers" in text
    assert "3 cut short, marked !" in text
    assert "! region0  b " in text
    assert explained.to_dict()["lookups"][0]["layer"] == "a"


def test_feed_forward_pairs_of_transformers() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, activation="gelu", batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(60, 5, 16)
    model = lutcc.convert(encoder, RECIPE, x)
    with torch.no_grad():
        wanted = model(x)
    artifact = lutcc.compile(model, x[:2])
    rows = artifact.explain().lookups
    assert [(row.layer, row.integers) for row in rows] == [
        ("layers.0.linear1", True),
        ("layers.0.linear2", False),
        ("layers.1.linear1", True),
        ("layers.1.linear2", False),
    ]
    # of 300 rows few: attention rounds as each processor does, and a value may pass a threshold
    near = (artifact(x) - wanted).abs().amax(-1) < 1e-3
    assert near.float().mean() >= 0.98


def test_one_replaced_layer_is_enough_to_leave_fused_paths() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    x = torch.randn(3, 4, 8)
    with torch.no_grad():
        wanted = encoder.eval()(x, src_key_padding_mask=torch.zeros(3, 4, dtype=torch.bool))
        last: Any = encoder.layers[1]
        last.linear1 = nn.Sequential(last.linear1)
        leave_fused_paths(encoder)
        found = encoder(x, src_key_padding_mask=torch.zeros(3, 4, dtype=torch.bool))
    torch.testing.assert_close(found, wanted)
