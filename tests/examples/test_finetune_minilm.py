"""The example of an encoder of sentences, on a small random BERT."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import lutcc
from lutcc.bench.machine import has_bfloat16
from lutcc.data import minilm
from lutcc.nn import DenseLinear
from lutcc.recipes import Exact
from lutcc.report.accuracy_log import read_runs
from lutcc.report.minilm import PRECISIONS
from lutcc.report.minilm_lookups import FFN, block, with_others
from lutcc.runtime import cpu

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
    compiled: dict[str, list[str]] = {}

    def compile_to(path: Path, model: nn.Module, precision: str, vocabulary: int) -> Any:
        path.write_bytes(b"1234")
        compute = PRECISIONS[precision]
        small = lutcc.convert(model, {"*": Exact(compute=compute)}) if compute else model
        exact = [m for m in small.modules() if isinstance(m, nn.Linear | DenseLinear)]
        compiled[path.stem] = sorted({getattr(layer, "compute", "none") for layer in exact})
        return (lambda ids, mask: small(ids, mask)), 0.0

    def measure(names: list[str], *_: Any) -> dict[str, Any]:
        times = dict(zip(example.PRECISIONS, (4.0, 2.0, 3.0), strict=True))
        exact = {f"exact, {precision}": [t, t] for precision, t in times.items()}
        return {"1 x 16": exact | {name: [1.0 + 3 * i, 9.0] for i, name in enumerate(names)}}

    monkeypatch.setattr(example, "compile_to", compile_to)
    monkeypatch.setattr(example, "measure", measure)
    page, log = tmp_path / "page.md", tmp_path / "log.jsonl"
    page.write_text("<!-- sentences:begin -->\n<!-- sentences:end -->\n")
    given = ["--tiny", "--lessons", "64", "--held-out", "40", "--epochs", "2", "--docs", str(page)]
    given += ["--output", str(tmp_path / "out"), "--settings", "96-192-96", FFN]
    given += ["--untrained", "24-96", FFN]
    found = example.main([*given, "--log", str(log)])
    assert compiled == {
        "exact-float32": ["none"], "exact-bfloat16": ["bfloat16"], "exact-int8": ["int8"],
        "96-192-96": [], FFN: ["int8"], "24-96": ["int8"],
    }  # fmt: skip
    assert found["exact"]["float32"]["cosine"] == pytest.approx(1, abs=1e-5)
    assert 0.9 < found["exact"]["int8"]["cosine"] < 1
    assert [run["name"] for run in found["runs"]] == ["96-192-96", FFN]
    for run in found["runs"]:
        assert run["converted"]["cosine"] - 0.005 < run["distilled"]["cosine"] <= 1
        assert run["distilled"]["cosine"] == pytest.approx(
            run["distilled_float32"]["cosine"], abs=0.02
        )
        assert run["steps"] == 4
    text = page.read_text()
    assert "1.00, 2.00x" in text
    assert "4.00, a loss, 2.00x slower" in text
    assert "| 24-96, not distilled |  |  |  |  |  | 7.00, a loss, 3.50x slower |" in text
    assert json.loads(page.with_suffix(".json").read_text()) == [found]
    assert page.with_suffix(".png").stat().st_size > 10_000
    logged = {(each.method, each.time_us): each.value for each in read_runs(log)}
    assert logged["exact-int8", 3000.0] == found["exact"]["int8"]["cosine"]
    assert logged["lookup-ffn", 4000.0] == found["runs"][1]["distilled"]["cosine"]
    assert len(logged) == 5
    picture = page.with_suffix(".png")
    picture.unlink()
    example.main([*given, "--redraw"])
    assert picture.exists()
    assert page.read_text() == text


def test_a_teacher_computes_each_batch_once(example: ModuleType) -> None:
    calls: list[int] = []

    class Teacher(nn.Module):
        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            calls.append(int(ids.sum()))
            return ids * mask

    teacher, ids = example.Remembered(Teacher()), torch.arange(6).view(2, 3)
    for mask in (torch.ones_like(ids), torch.zeros_like(ids)):
        for _ in range(2):
            assert torch.equal(teacher(ids.clone(), mask), ids * mask)
    assert calls == [15, 15]


def test_the_quality_of_longer_runs_elsewhere_stands_beside_times_here() -> None:
    def results(machine: str, steps: int, cosine: float) -> dict[str, Any]:
        quality = {"sentences": 40, "cosine": cosine, "cosine_p5": 0.5, "top1": 0.4, "top10": 0.3}
        run = {"name": "48-192", "steps": steps, "converted": quality, "distilled": quality}
        run |= {"distil_s": 9.0, "lessons": 64, "batch_size": 32}
        times = {f"exact, {p}": [4.0, 4.0] for p in PRECISIONS} | {"48-192": [2.0, 2.0]}
        return {"machine": machine, "rest": "int8", "runs": [run], "times": {"1 x 16": times}}

    here, there = results("A (avx2), 1", 10, 0.8), results("B (avx512), 1", 30, 0.9)
    there["runs"].append(there["runs"][0] | {"name": FFN, "steps": 20})
    for each in (here, there):
        each["times"]["1 x 16"] |= {FFN: [5.0, 5.0], "96-192-96": [1.0, 1.0]}
    here["untrained"] = [FFN, "96-192-96"]
    first, second = block(with_others(here, [there])).split("B (avx512):")
    assert "| 48-192, 10 steps | 0.800 | 0.800 | 0.500 | 0.400 | 0.300 | 2.00, 2.00x |" in first
    assert "| 48-192, 30 steps, lent | 0.900 |" in first
    assert f"| {FFN}, 20 steps, lent | 0.900 |" in first
    assert "| 96-192-96, not distilled |  |  |  |  |  | 1.00, 4.00x |" in first
    assert "lent" not in second


def test_bfloat16_is_for_cpus_that_multiply_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, wanted in (("avx2", False), ("avx512_bf16", True), ("amx_bf16", True)):
        monkeypatch.setattr(cpu, "flags", lambda flags=flags: frozenset({flags}))
        assert has_bfloat16() is wanted
