"""The example of accuracy against time: a log with times, a report, and going on from results."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from lutcc.bench.network_speed import NetworkSpeed
from lutcc.report.accuracy_log import read_runs

ROOT = Path(__file__).resolve().parents[2]


def test_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "examples" / "accuracy_against_time.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look there
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "METHODS", ("itlumm-r2-kld", "finetuned"))
    monkeypatch.setattr(module, "PRECISIONS", {"exact-int8": "int8"})

    def speeds(exact: object, networks: dict[str, object], *_: object, **__: object):
        assert list(networks) == ["itlumm-r2-kld 4", "finetuned 4"]
        taken = {name: 2e-6 for name in networks}
        dense = {"lutcc int8": 8e-6, "int8_onednn": 4e-6, "fp32": 1e-6}
        return [NetworkSpeed(rows, taken, dense) for rows in (1, 1024)]

    monkeypatch.setattr(module, "network_speeds", speeds)
    page = tmp_path / "page.md"
    page.write_text("<!-- accuracy-time:begin -->\n<!-- accuracy-time:end -->\n", encoding="utf-8")
    known = {"method": "itlumm-r2-kld", "codebooks": 4, "seed": 0, "epochs": 0}
    results = tmp_path / "out" / "results.json"
    results.parent.mkdir()
    results.write_text(json.dumps([{**known, "value": 0.75, "exact": 0.96}]), encoding="utf-8")
    found = module.main(["--quick", "--output", str(results.parent), "--docs", str(page)])
    assert [point.method for point in found.points] == ["exact-int8", "itlumm-r2-kld", "finetuned"]
    assert found.points[0].value.mean > 0.9
    assert found.points[1].value.mean == 0.75  # it was there, and is not computed again
    assert found.points[2].trained == "3 epochs"
    assert [under.rows for under in found.conditions] == [1, 1024]
    assert found.gain(found.points[2], found.conditions[0]) == 2
    assert len(read_runs(results.parent / "accuracy.jsonl")) == 6
    assert "| finetuned |" in page.read_text(encoding="utf-8")
    for name in ("accuracy-against-time.png", "out/accuracy-against-time.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert "finetuned" in (results.parent / "accuracy-report.html").read_text(encoding="utf-8")
