"""The fine-tuning example: compiled is what was trained, and better than what was converted."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from lutcc.report.accuracy_log import read_runs

ROOT = Path(__file__).resolve().parents[2]


def example() -> Any:
    path = ROOT / "examples" / "finetune_digits.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_quick(tmp_path: Path) -> None:
    module = example()
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


def test_columns_chosen_again_are_compared_seed_by_seed() -> None:
    """Seeds of which one half is missing do not count."""
    module = example()
    name = "4, and 64 columns of noise"
    base = {"network": "resplit", "exact": 0.8, "converted": 0.4}
    runs = [
        base | {"codebooks": name + end, "seed": seed, "fine-tuned": value}
        for end, values in (("", [0.64, 0.72, 0.1]), (", chosen again", [0.72, 0.68]))
        for seed, value in enumerate(values)
    ]
    told = module.resplit_table(runs)
    assert f"| {name} | 0.500 (0.500 to 0.500) | 0.850 (0.800 to 0.900)" in told
    assert "| 0.875 (0.850 to 0.900) | +0.025, better with 1 of 2 seeds |" in told
    plain, again = (module.NETWORKS["resplit"][name + end] for end in ("", ", chosen again"))
    assert plain.widths == again.widths == (128, 30, 30, 30, 10)
    assert (plain.resplit, again.resplit, again.idle) == (None, 10, 64)
