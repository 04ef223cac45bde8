"""NaN and infinities come out of maxima, minima and what is made of them as torch gives them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lutcc

WIDE = 64  # reductions of this many are cut in parts


class Rows(nn.Module):
    """All at once: one compilation."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = torch.neg(torch.neg(x))
        other = x.flip(1)
        return (
            F.relu(x),
            F.relu6(x),
            F.elu(x),
            F.hardtanh(x),
            F.hardsigmoid(x),
            F.leaky_relu(x),
            F.silu(x),
            x.clamp(-0.5, 0.5),
            x.clamp(min=-0.5),
            x.clamp(max=0.5),
            torch.maximum(x, other),
            torch.minimum(x, other[:, :1]),
            x.amax(1),
            x.amin(-1, keepdim=True),
            x[:, :7].amax(1),
            x.argmax(1),
            x.argmin(0, keepdim=True),
            torch.trunc(x).argmax(),  # zeros of both signs, and equal numbers
            *x.max(1),
            torch.softmax(x, 1),
            torch.sigmoid(x),
            torch.tanh(x),
            F.layer_norm(x, (WIDE,)),
        )


class Images(nn.Module):
    """Windows with and without borders, cut off and spread out."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = torch.neg(torch.neg(x))
        return (
            F.max_pool2d(x, 3, 2, 1),
            F.max_pool2d(x, 2, ceil_mode=True),
            F.max_pool2d(x, 2, 1, dilation=2),
            F.max_pool2d(x, (1, 3), (2, 1), (0, 1)),
            F.avg_pool2d(x, 2, ceil_mode=True),
            F.max_pool1d(x[:, :, 0], 3, 2, 1),
            F.adaptive_max_pool2d(x, 1),
            x.amax((2, 3)),
        )


VALUES = [None, np.nan, np.inf, -np.inf, -np.nan]


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    "isa", [pytest.param(name, marks=pytest.mark.isa(name)) for name in ("avx2", "avx512")]
)  # loops of Relax are the same at the levels above
@pytest.mark.parametrize(
    ("model", "shape"), [(Rows(), (5, WIDE)), (Images(), (2, 3, 9, 10))], ids=["rows", "images"]
)
def test_as_torch(model: nn.Module, shape: tuple[int, ...], isa: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape)
    artifact = lutcc.compile(model.eval(), x, target=isa)
    for value in VALUES:
        given = x.clone()
        if value is not None:
            given.reshape(-1)[3::17] = value
        for got, want in zip(artifact(given), model(given), strict=True):
            torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5, equal_nan=True)
