"""Plain conversion of a 64-30-30-30-10 MLP on real digits keeps its accuracy (no fine-tuning, 8-bit
tables)."""

from __future__ import annotations

import pytest
import torch

import lutcc
from lutcc.data import ImageSplit
from lutcc.data.digits import load
from lutcc.recipes import Maddness
from lutcc.report import digits

FLOORS = {16: 0.94, 30: 0.96}


def accuracy(model: torch.nn.Module, data: ImageSplit) -> float:
    with torch.no_grad():
        return digits.accuracy(model(torch.from_numpy(data.test_x)).numpy(), data.test_y)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_converted_network_keeps_its_accuracy(seed: int) -> None:
    data = load(seed=seed)
    model = digits.train(data, seed)
    exact = accuracy(model, data)
    assert exact > 0.94
    for ncodebooks, floor in FLOORS.items():
        converted = lutcc.convert(
            model, {"*": Maddness(ncodebooks=ncodebooks)}, torch.from_numpy(data.train_x)
        )
        assert accuracy(converted, data) >= floor * exact, ncodebooks
