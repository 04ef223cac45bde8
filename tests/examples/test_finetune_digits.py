"""The fine-tuning example: compiled is what was trained, and better than what was converted."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

from lutcc.report.accuracy_log import read_runs

ROOT = Path(__file__).resolve().parents[2]


def test_quick(tmp_path: Path) -> None:
    path = ROOT / "examples" / "finetune_digits.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look there
    spec.loader.exec_module(module)
    page = tmp_path / "page.md"
    page.write_text("<!-- finetune:begin -->\n<!-- finetune:end -->\n", encoding="utf-8")
    log = tmp_path / "log.jsonl"
    (run,) = module.main(
        ["--quick", "--output", str(tmp_path), "--docs", str(page), "--log", str(log)]
    )
    assert run["compiled"] == run["fine-tuned"] > run["converted"]
    assert json.loads((tmp_path / "results.json").read_text())["runs"] == [run]
    assert "| 8 |" in page.read_text(encoding="utf-8")
    assert [logged.value for logged in read_runs(log)] == [run["converted"], run["fine-tuned"]]
