"""The example of an encoder of sentences, on a small random BERT."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lutcc.data import minilm
from lutcc.report.accuracy_log import read_runs

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = ROOT / "examples" / "finetune_minilm.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not minilm.available(), reason="all-MiniLM-L6-v2's tokenizer is not installed")
def test_tiny(example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but compiling and timing, whose kernels are tested elsewhere."""
    compiled: list[Any] = []

    def compile_to(path: Path, model: Any, precision: str, vocabulary: int) -> None:
        ids = torch.arange(12).view(2, 6)
        compiled.append(model(ids, torch.ones_like(ids)))
        path.write_bytes(b"1234")

    def measure(names: list[str], *_: Any) -> dict[str, Any]:
        exact = {f"exact, {p}": [t, t] for p, t in zip(example.PRECISIONS, (4.0, 2.0, 3.0))}  # noqa: B905
        return {"1 x 16": exact | {name: [1.0 + 3 * i, 9.0] for i, name in enumerate(names)}}

    monkeypatch.setattr(example, "compile_to", compile_to)
    monkeypatch.setattr(example, "measure", measure)
    page, log = tmp_path / "page.md", tmp_path / "log.jsonl"
    page.write_text("<!-- sentences:begin -->\n<!-- sentences:end -->\n")
    given = ["--tiny", "--lessons", "64", "--held-out", "40", "--epochs", "2", "--docs", str(page)]
    given += ["--output", str(tmp_path / "out"), "--settings", "96-192-96", example.FFN]
    found = example.main([*given, "--log", str(log)])
    assert [run["name"] for run in found["runs"]] == ["96-192-96", example.FFN]
    for run in found["runs"]:
        assert run["converted"]["cosine"] - 0.005 < run["distilled"]["cosine"] <= 1
        assert run["steps"] == 4
    assert all(states.isfinite().all() for states in compiled)
    text = page.read_text()
    assert "1.00, 2.00x" in text
    assert "4.00, a loss, 2.00x slower" in text
    assert json.loads(page.with_suffix(".json").read_text()) == found
    assert page.with_suffix(".png").stat().st_size > 10_000
    assert [each.time_us for each in read_runs(log)] == [1000.0, 4000.0]
    picture = page.with_suffix(".png")
    picture.unlink()
    example.main([*given, "--redraw"])
    assert picture.exists()
