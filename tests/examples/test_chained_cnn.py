"""The example of chained convolutions runs, and tells how near torch the compiled network is."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = ROOT / "examples" / "chained_cnn.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.thorough
def test_quick(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    kept = example.main(["--rows", "200", "--steps", "40"])
    assert 0.3 < kept < 1.1
    told = capsys.readouterr().out
    assert "of 540 images are the same to rounding" in told
    assert "1 of 2 layers stay in integers" in told


def test_images_that_differ_are_counted(example: ModuleType) -> None:
    expected = np.array([[1, 4], [2, 3], [0, 1]], np.float32)
    found = expected + np.array([[0, 1e-6], [0.5, 0], [0, 0]], np.float32)
    assert example.agreement(found, expected).startswith("2 of 3 images are the same")
    assert example.agreement(found, expected).endswith("within 5.0e-01")
