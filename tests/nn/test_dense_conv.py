"""DenseConv2d: alone, made by recipes, exported and compiled."""

from __future__ import annotations

import os

os.environ.setdefault("TVM_BIND_THREADS", "0")

from typing import Any

import pytest
import torch
from torch import nn

import lutcc
from lutcc.errors import InputError
from lutcc.nn import DenseConv2d, DenseLinear
from lutcc.recipes import Exact

COMPUTE = ["float32", "bfloat16", "int8"]
BOUNDS = {"float32": 1e-6, "bfloat16": 0.01, "int8": 0.02}


def images(*lead: int, channels: int = 4) -> torch.Tensor:
    return torch.randn(*lead, channels, 9, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1, "stride": 2},
        {"padding": "same", "kernel_size": (2, 3), "bias": False},
        {"padding": (2, 1), "padding_mode": "reflect", "groups": 2},
        {"groups": 4, "dilation": 2, "out_channels": 4},
    ],
)
def test_near_the_layer_it_is_made_from(compute: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    given: dict[str, Any] = {"in_channels": 4, "out_channels": 6, "kernel_size": 3} | options
    conv, x = nn.Conv2d(**given), images(3)
    made, want = DenseConv2d.from_conv(conv, compute=compute), conv(x)
    bound = BOUNDS[compute]
    assert (made(x) - want).norm() <= bound * want.norm()
    assert (made.dequantize() - conv.weight).norm() <= bound * conv.weight.norm()
    torch.testing.assert_close(made(x[0]), made(x)[0], rtol=1e-4, atol=1e-5)
    assert made(x.half()).dtype is torch.float16
    assert str(conv.stride) in repr(made)
    assert repr(made).endswith(f"compute={compute!r})")


def test_the_state_is_what_is_stored() -> None:
    for compute, dtype in zip(COMPUTE, (torch.float32, torch.bfloat16, torch.int8), strict=True):
        made = DenseConv2d.from_conv(nn.Conv2d(4, 6, 3), compute=compute)
        state = made.half().float().state_dict()
        assert state["weight"].dtype is dtype or compute == "bfloat16"
        assert ("scales" in state) == (compute == "int8")
        fresh = DenseConv2d(4, 6, 3, compute=compute)
        fresh.load_state_dict(state)
        torch.testing.assert_close(fresh(images(2)), made(images(2)), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("compute", COMPUTE)
def test_training_lowers_the_loss(compute: str) -> None:
    torch.manual_seed(0)
    layer, x = DenseConv2d(4, 6, 3, compute=compute), images(4)
    target = nn.Conv2d(4, 6, 3)(x).detach()
    rate = 5e-5 if compute == "int8" else 0.01  # scales are some 0.001
    optimizer = torch.optim.Adam(layer.parameters(), lr=rate)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < (0.99 if compute == "int8" else 0.95) * losses[0]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv, self.norm = nn.Conv2d(4, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.next, self.last = nn.Conv2d(32, 5, 3, 2), nn.Linear(60, 3)
        self.norm.load_state_dict({n: torch.rand(32) for n in ("weight", "bias")}, strict=False)
        self.norm(torch.randn(64, 32, 2, 2) * 2 + 1)  # what it is in evaluation comes from here

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.next(self.norm(self.conv(x)).relu()).flatten(1))


def test_recipes_convert_convolutions() -> None:
    net = Net().eval()
    converted: Any = lutcc.convert(net, {"*": Exact(compute="int8"), "next": Exact()})
    assert isinstance(converted.conv, DenseConv2d)
    assert isinstance(converted.last, DenseLinear)
    assert type(converted.next) is nn.Conv2d
    first = converted.conversion_report.layers[0]
    assert (first.name, first.method, first.out_features) == ("conv", "exact", 32)
    assert 0 < first.relative_error < 0.02
    want = net(images(3))
    assert (converted(images(3)) - want).norm() <= 0.02 * want.norm()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="compute"):
        DenseConv2d(3, 4, 3, compute="int4")
    with pytest.raises(InputError, match="divisible by groups"):
        DenseConv2d(3, 4, 3, groups=2)
    with pytest.raises(InputError, match="padding"):
        DenseConv2d(3, 4, 3, padding="sane")
    with pytest.raises(InputError, match="must be 4"):
        DenseConv2d(4, 4, 3)(images(2, channels=3))
    with pytest.raises(InputError, match="pass larger images"):
        DenseConv2d(4, 4, 10)(images(2))
    broken = nn.Conv2d(4, 4, 3)
    broken.weight.data[0, 0] = torch.inf
    with pytest.raises(InputError, match="not all finite"):
        DenseConv2d.from_conv(broken)
