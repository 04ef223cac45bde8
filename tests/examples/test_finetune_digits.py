"""The fine-tuning example: compiled is what was trained, and better than what was converted."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_quick(tmp_path: Path) -> None:
    path = ROOT / "examples" / "finetune_digits.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = tmp_path / "page.md"
    page.write_text("<!-- finetune:begin -->\n<!-- finetune:end -->\n", encoding="utf-8")
    (run,) = module.main(["--quick", "--output", str(tmp_path), "--docs", str(page)])
    assert run["compiled"] == run["fine-tuned"] > run["converted"]
    assert json.loads((tmp_path / "results.json").read_text())["runs"] == [run]
    assert "| 8 |" in page.read_text(encoding="utf-8")
