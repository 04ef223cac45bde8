"""Models converted to look-up layers: one to one into the IR, and beside exact layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lutcc
from lutcc.frontend import import_torch
from lutcc.nn import MaddnessConv2d, MaddnessLinear

LOOK_UP = ["tree_encode", "lut_accumulate", "lut_dequantize"]


class Sine(nn.Module):
    """What the IR has no op for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x)


def _ops(module):
    return [op.opcode for op in module.main.body if op.opcode != "constant"]


def _converted_mlp(**maddness):
    x = torch.randn(300, 16)
    first = MaddnessLinear.from_linear(nn.Linear(16, 12), x, ncodebooks=4, **maddness)
    hidden = torch.relu(first(x)).detach()
    second = MaddnessLinear.from_linear(nn.Linear(12, 10), hidden, ncodebooks=3, **maddness)
    return nn.Sequential(first, nn.ReLU(), second)


@pytest.mark.parametrize(
    ("options", "encode"),
    [
        ({}, "tree_encode"),
        ({"encoder": "nearest"}, "nearest_encode"),
        ({"accumulate": "mean", "upcast_every": 4}, "tree_encode"),
    ],
)
def test_look_up_layers_map_one_to_one_and_bit_exactly(assert_interpreted, options, encode):
    model = _converted_mlp(**options)
    imported = assert_interpreted(model, torch.randn(5, 16), torch.randn(1, 16), atol=0)
    layer = [encode, *LOOK_UP[1:]]
    assert _ops(imported.module) == [*layer, "relu", *layer]


def test_look_up_layers_on_sequences(assert_interpreted):
    layer = MaddnessLinear.from_linear(nn.Linear(16, 12), torch.randn(300, 16), ncodebooks=4)
    imported = assert_interpreted(nn.Sequential(layer, nn.ReLU()), torch.randn(2, 3, 16), atol=0)
    assert _ops(imported.module) == ["reshape", *LOOK_UP, "relu", "reshape"]


def _converted_conv():
    images = torch.randn(6, 3, 8, 8)
    return MaddnessConv2d.from_conv(nn.Conv2d(3, 8, 3, padding=1), images, ncodebooks=4)


def test_converted_cnn(assert_interpreted):
    model = nn.Sequential(
        _converted_conv(),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
        nn.Flatten(),
        nn.Linear(256, 5),
    )
    imported = assert_interpreted(model, torch.randn(3, 3, 8, 8), torch.randn(1, 3, 8, 8))
    tail = ["batch_norm", "relu", "reshape", "conv2d", "rows_to_nchw", "reshape", "linear"]
    assert _ops(imported.module) == ["im2col", *LOOK_UP, *tail]


def test_look_ups_beside_exact_layers(tmp_path):
    first, _, second = _converted_mlp()
    model = nn.Sequential(first, Sine(), nn.GroupNorm(3, 12), second).eval()
    imported = import_torch(model, torch.zeros(2, 16))
    assert [_ops(r.module) for r in imported.regions] == [LOOK_UP, LOOK_UP]
    artifact = lutcc.compile(model, torch.zeros(2, 16), target="avx2")
    artifact.save(tmp_path / "mixed.lutcc")
    loaded = lutcc.load(tmp_path / "mixed.lutcc")
    for rows in (1, 7, 64):
        x = torch.randn(rows, 16)
        with torch.no_grad():
            torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-4)


def test_converted_convolution_before_a_pooling_layer():
    model = nn.Sequential(
        _converted_conv(), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)
    )
    artifact = lutcc.compile(model.eval(), torch.zeros(2, 3, 8, 8), target="avx2")
    for rows in (1, 3):
        x = torch.randn(rows, 3, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(artifact(x), model(x), rtol=1e-4, atol=1e-4)


def test_batch_norms_send_no_image_elsewhere():
    """Folded, they round the sums of look-ups in another way: never to a threshold's other side."""
    torch.manual_seed(0)

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        norm = nn.BatchNorm2d(outputs, momentum=None)  # one batch says all
        return [nn.Conv2d(inputs, outputs, 3, padding=1), norm, nn.ReLU()]

    layers = [*block(1, 12), *block(12, 16), nn.MaxPool2d(2), *block(16, 16), *block(16, 16)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 5))
    x, images = torch.rand(400, 1, 8, 8), torch.rand(500, 1, 8, 8)
    model(x)
    recipe = {str(at): lutcc.recipes.Maddness(ncodebooks=8) for at in (3, 7, 10)}
    small = lutcc.convert(model.eval(), recipe, x)
    with torch.no_grad():
        wanted = small(images)
        apart = (lutcc.compile(small, images[:2])(images) - wanted).abs().amax(1)
    assert int((apart > 1e-5 * wanted.abs().max()).sum()) <= 2  # the exact layer, too, rounds
