"""Columns that are chosen again on a GPU: the same every time, useful, and by the same sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import lutcc
from lutcc.nn.tree_splits import bucket_sums
from lutcc.recipes import Maddness
from tests.triton.test_gpu import DEVICE

pytestmark = pytest.mark.gpu


def test_buckets_add_up_to_the_same_bits_every_time() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4000, 30, generator=generator)
    buckets = torch.randint(0, 256, (4000,), generator=generator)
    found = [bucket_sums(values.to(DEVICE), buckets.to(DEVICE), 256) for _ in range(5)]
    assert all(torch.equal(found[0], each) for each in found)
    wanted = bucket_sums(values.double(), buckets, 256)
    torch.testing.assert_close(found[0].cpu().double(), wanted, rtol=1e-4, atol=1e-4)


def test_the_same_seed_chooses_the_same_useful_columns() -> None:
    torch.manual_seed(0)
    exact = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 3)).eval()
    with torch.no_grad():
        weight = exact.get_parameter("0.weight")
        weight[:, 4:] = 0
        weight.mul_(4)
    x = torch.rand(900, 16)
    small = lutcc.convert(exact, {"0": Maddness(ncodebooks=4)}, x).to(DEVICE)
    given: dict[str, Any] = {"epochs": 10, "batch_size": 100, "resplit": 2}
    given["teacher"] = exact.to(DEVICE)
    first, again = (lutcc.finetune(small, (x, None), **given) for _ in range(2))
    for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert int((first.get_buffer("0.splitdims") < 4).sum()) >= 12
