"""Speeds of whole networks: every precision is timed, a loss is below 1."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lutcc
from lutcc.bench.network_speed import NetworkSpeed, network_speeds


@pytest.mark.thorough
def test_a_network_and_the_exact_one_are_timed() -> None:
    torch.manual_seed(0)
    exact = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    x = torch.randn(100, 16)
    small = lutcc.convert(exact, {"*": lutcc.recipes.Maddness(ncodebooks=4)}, x)
    speeds = network_speeds(exact, {"four": small}, x.numpy(), (1, 130), seconds=0.001, rounds=1)
    assert [speed.rows for speed in speeds] == [1, 130]
    for speed in speeds:
        assert set(speed.networks) == {"four"}
        assert {"lutcc float32", "lutcc bfloat16", "lutcc int8", "fp32", "int8_x86"} <= set(
            speed.exact
        )
        for precision in ("float32", "bfloat16", "int8"):
            assert 0 < speed.fastest(precision) < 1
            assert speed.faster("four", precision) == pytest.approx(
                speed.fastest(precision) / speed.networks["four"]
            )


def test_the_faster_of_ours_and_torchs_counts() -> None:
    exact = {"lutcc int8": 3.0, "int8_x86": 2.0, "bf16_onednn/amx": 1.0, "lutcc bfloat16": 5.0}
    speed = NetworkSpeed(1, {"a": 4.0}, exact)
    assert speed.fastest("bfloat16") == 1.0
    assert speed.faster("a", "int8") == 0.5
