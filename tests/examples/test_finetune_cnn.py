"""The example of a convolutional network: it learns, is compiled, timed and told."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lutcc.report.accuracy_log import read_runs

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = ROOT / "examples" / "finetune_cnn.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_quick(example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the times, which take long: what they are of has been compiled elsewhere."""

    def measure(exact: Any, tuned: dict[str, Any], images: torch.Tensor, _: Any) -> Any:
        assert exact(images[:2]).shape == (2, 10)
        return {"1": dict.fromkeys([*tuned, "torch float32", "a bfloat16", "lutcc int8"], 2.0)}

    monkeypatch.setattr(example, "measure", measure)
    page, log = tmp_path / "page.md", tmp_path / "log.jsonl"
    blocks = ("cnn", "cnn-speed")
    page.write_text("".join(f"<!-- {b}:begin -->\n<!-- {b}:end -->\n" for b in blocks))
    found = example.main(
        ["--quick", "--output", str(tmp_path), "--docs", str(page), "--log", str(log)]
    )
    (run,) = found["runs"]
    assert run["fine-tuned"] > run["converted"] > 0.1
    assert json.loads((tmp_path / "results.json").read_text()) == found
    text = page.read_text()
    assert "| 16 and 32 |" in text
    assert "look-ups, 16 and 32 codebooks" in text
    runs = read_runs(log)
    assert [each.value for each in runs] == [run["converted"], run["fine-tuned"]]
    assert runs[0].time_us == 2000.0


def test_int8_of_torch_computes_nearly_the_same(example: ModuleType) -> None:
    torch.manual_seed(0)
    exact, images = example.network().eval(), torch.rand(64, 1, 8, 8)
    with torch.no_grad():
        wanted, found = exact(images), example.static_int8(exact, images)(images)
    assert float((found - wanted).norm()) < 0.1 * float(wanted.norm())


def test_a_loss_is_told(example: ModuleType) -> None:
    times = {"1": {"2 codebooks": 2.0, "a float32": 4.0, "b bfloat16": 1.0, "c int8": 3.0}}
    text = example.speeds(times, "here")
    assert "2.000; float32: 2.00x; bfloat16: a loss, 2.00x slower; int8: 1.50x" in text
