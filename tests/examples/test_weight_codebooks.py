"""The comparison of weight codebooks: it runs, goes on where it stopped, and prints tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import nn

from lutcc.train.digit_networks import BasicBlock
from tests.examples.test_sampled_training import load


def short_resnet() -> nn.Sequential:
    """Return a network with every kind of layer that the example's has."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        BasicBlock(16, 32, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def test_methods_are_compared_at_equal_footprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = load("weight_codebooks")
    monkeypatch.setattr(example, "resnet", short_resnet)
    args = ["--models", "resnet", "--tables", "methods", "--alphas", "4.5", "--quick"]
    args += ["--output", str(tmp_path)]
    found = example.main(args)
    rows = {row["method"]: row for row in found["rows"]}
    assert set(rows) == {
        "exact",
        *example.BASELINES,
        "nothing learnt",
        example.JLCM,
        example.DISTILLED,
    }
    bits = [row["bits_per_weight"] for name, row in rows.items() if name != "exact"]
    assert max(bits) <= 16 / 4.5
    assert max(bits) - min(bits) < 0.1, "footprints are comparable"
    learnt, start = (
        rows[name]["figures"]["divergence"] for name in (example.JLCM, "nothing learnt")
    )
    assert learnt < start
    text = (tmp_path / "tables.md").read_text()
    assert text.count("| 4.5 |") == 6
    assert (tmp_path / "results.png").stat().st_size > 5000
    lines = (tmp_path / "results.jsonl").read_text()
    assert example.main(args)["rows"] == [json.loads(line) for line in lines.splitlines()]
    assert (tmp_path / "results.jsonl").read_text() == lines, "nothing is computed again"
