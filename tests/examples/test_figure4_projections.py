"""The figure's example: its files, and the orderings that the paper claims."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("figure4")


@pytest.fixture(scope="module")
def points(folder: Path) -> list[Any]:
    path = ROOT / "examples" / "figure4_projections.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module.main(["--quick", "-o", str(folder)])


def of(points: list[Any], *families: str) -> list[Any]:
    return [p for p in points if p.family in families]


@pytest.mark.thorough
def test_files_hold_every_point(points: list[Any], folder: Path) -> None:
    result = json.loads((folder / "figure4.json").read_text(encoding="utf-8"))
    assert (result["size"], result["steps"]) == (32, 100)
    assert [p["error"] for p in result["points"]] == [p.error for p in points]
    with (folder / "figure4.csv").open(encoding="utf-8") as file:
        assert [row["name"] for row in csv.DictReader(file)] == [p.name for p in points]
    assert (folder / "figure4.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert {p.family for p in points} == set(
        ["bh1", "bh2", "bh3", "bh4", "bh6", "bh8", "shuffle", "acdc", "hadamard"]
    )


def test_blocks_beat_diagonals_at_like_flops(points: list[Any]) -> None:
    best = of(points, "bh4")
    compared = 0
    for rival in of(points, "acdc", "hadamard"):
        cheaper = [p.error for p in best if p.flops <= rival.flops]
        if cheaper:
            compared += 1
            assert min(cheaper) < 0.9 * rival.error
    assert compared >= 2
    assert min(p.error for p in of(points, "acdc", "hadamard")) > 0.7  # depth does not help them


def test_more_factors_of_blocks_beat_one(points: list[Any]) -> None:
    for four in of(points, "bh4"):
        one = [p.error for p in of(points, "bh1") if p.parameters == four.parameters]
        assert all(four.error < error for error in one)


def test_shuffle_net_is_a_bh1(points: list[Any]) -> None:
    shuffle = {p.block_size: p for p in of(points, "shuffle")}
    for one in of(points, "bh1"):
        twin = shuffle[one.block_size]
        assert twin.parameters == one.parameters
        assert twin.error == pytest.approx(one.error, abs=0.1)
    assert len(shuffle) >= 3
