"""The GPU benchmark: what it prints, and what it says without a GPU."""

from __future__ import annotations

import pytest
import torch

from lutcc.bench import gpu
from lutcc.bench.timing import Timing
from lutcc.errors import LutccError


def us(value: float) -> Timing:
    return Timing.of([round(1000 * value)] * 3)


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 1
    written = capsys.readouterr()
    assert "sees no GPU" in written.err
    assert "To mend it" in written.err
    assert not written.out
    with pytest.raises(LutccError):
        gpu.run(32, 2)


def test_wrong_usage(capsys):
    assert gpu.main(["--rounds", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err


def test_a_loss_is_printed_as_a_loss():
    rows = [
        gpu.TransformRow(512, "bfloat16", 64 << 20, us(20), us(22)),
        gpu.TransformRow(4096, "bfloat16", 512 << 20, us(200), us(400)),
    ]
    good, bad = gpu.transform_table(rows).splitlines()[2:]
    assert good.endswith("| 0.91 |")
    assert bad.endswith("| 0.50 (loss: below 0.8) |")
    times = {
        "dense forward": us(100),
        "lookup forward": us(50),
        "dense both": us(300),
        "lookup both": us(600),
        "atomic both": us(450),
    }
    lines = gpu.layer_table([gpu.LayerRow(512, 128, 8, times)]).splitlines()[2:]
    assert [line.split("|")[-2].strip() for line in lines] == [
        "2.00x faster",
        "loss: 2.00x slower",
        "loss: 1.50x slower",
    ]


@pytest.mark.gpu
def test_on_a_gpu(capsys):
    assert gpu.main(["--batch", "1024", "--rounds", "3", "--part", "lookup"]) == 0
    text = capsys.readouterr().out
    assert torch.cuda.get_device_name() in text
    assert text.count("\n| ") == 2 + 2 + 2 * len(gpu.TRANSFORMS) + 3 * len(gpu.LAYERS)
