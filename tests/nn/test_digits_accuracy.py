"""Plain conversion of a 64-30-30-30-10 MLP on real digits keeps its accuracy (no fine-tuning, 8-bit
tables)."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import lutcc
from lutcc.data import ImageSplit, digits
from lutcc.recipes import Maddness

FLOORS = {16: 0.94, 30: 0.96}


def train(data: ImageSplit, seed: int) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    widths = (64, 30, 30, 30, 10)
    layers: list[torch.nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    x, y = torch.from_numpy(data.train_x), torch.from_numpy(data.train_y)
    epochs, batches = 60, 20
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=epochs * batches)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).chunk(batches):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def accuracy(model: torch.nn.Module, data: ImageSplit) -> float:
    with torch.no_grad():
        return float((model(torch.from_numpy(data.test_x)).argmax(1).numpy() == data.test_y).mean())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_converted_network_keeps_its_accuracy(seed: int) -> None:
    data = digits.load(seed=seed)
    model = train(data, seed)
    exact = accuracy(model, data)
    assert exact > 0.94
    for ncodebooks, floor in FLOORS.items():
        converted = lutcc.convert(
            model, {"*": Maddness(ncodebooks=ncodebooks)}, torch.from_numpy(data.train_x)
        )
        assert accuracy(converted, data) >= floor * exact, ncodebooks
