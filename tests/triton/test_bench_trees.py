"""The GPU benchmark of look-ups by trees: its pieces, on the CPU with tiny sizes."""

from __future__ import annotations

from typing import Any

import torch

from lutcc.bench import gpu_trees
from lutcc.bench.timing import Timing
from tests.triton.references import relative_error


def test_what_is_timed_are_layers_and_their_gradients():
    torch.manual_seed(0)
    calls: dict[str, Any] = gpu_trees.tree_calls((12, 7, 3, 16), 20, "cpu", torch.float32)
    assert calls["look-up forward"]().shape == calls["dense forward"]().shape == (20, 7)
    assert [g.shape for g in calls["dense both"]()] == [(20, 12), (7, 12)]
    plain, kernels = calls["torch's operators both"](), calls["kernels both"]()
    assert [g.shape for g in plain] == [(20, 12), (3, 16), (3, 1), (3, 16, 7), (7,)]
    assert all(relative_error(a, b) <= 1e-5 for a, b in zip(kernels, plain, strict=True))
    rounded = calls["kernels, gradients in bfloat16 both"]()
    assert 1e-5 < relative_error(rounded[0], plain[0]) < 0.05


def test_the_table_says_what_is_slower():
    us = {"dense forward": 10, "look-up forward": 20, "dense both": 30, "kernels both": 15}
    times = {name: Timing.of([taken * 1000] * 3) for name, taken in us.items()}
    row = gpu_trees.TreeRow(512, 64, 8, 16, times, dict.fromkeys(us, 3 << 20))
    lines = gpu_trees.tree_table([row]).splitlines()
    assert lines[3] == (
        "| 512 to 64 | C=8, K=16 | look-up | forward | 20.0 (20.0-20.0) | loss: 2.00x slower | 3 |"
    )
    assert "2.00x faster" in lines[5]
