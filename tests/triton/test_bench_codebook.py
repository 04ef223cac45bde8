"""The GPU benchmark of layers written with codebooks: its pieces, on the CPU with tiny sizes."""

from __future__ import annotations

from typing import Any

import torch

from lutcc.bench import gpu_codebook
from lutcc.bench.timing import Timing


def test_what_is_timed_are_layers_and_their_gradients(monkeypatch):
    monkeypatch.setattr(gpu_codebook, "WAYS", ((3, "float32"),))
    calls: dict[str, Any] = gpu_codebook.codebook_calls(5, 32, "cpu", torch.float64)
    assert [name for name in calls if name.endswith("forward")] == [
        "dense forward",
        "3 bits, float32 forward",
    ]
    assert calls["3 bits, float32 forward"]().shape == calls["dense forward"]().shape == (5, 32)
    assert [g.shape for g in calls["3 bits, float32 both"]()] == [(5, 32), (32, 8)]
    assert [g.shape for g in calls["dense both"]()] == [(5, 32), (32, 32)]


def test_the_table_says_what_is_slower():
    times = {
        name: Timing.of([us * 1000] * 3)
        for name, us in {"dense forward": 10, "4 bits, int8 forward": 20}.items()
    }
    table = gpu_codebook.codebook_table([gpu_codebook.CodebookRow(1, 64, times)])
    assert table.splitlines()[2].startswith("| 1 | 64^2 | 4 bits, int8 | forward |")
    assert "loss: 2.00x slower" in table
