"""The example of pre-training, in its tiny form: everything happens, nothing is learnt."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lutcc.errors import InputError, UsageError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = ROOT / "examples" / "lookupffn_mlm.py"
    spec = importlib.util.spec_from_file_location("lookupffn_mlm", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["lookupffn_mlm"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    lines = [
        f"line {n}: {n * n} is the square of {n}, and {n + 1} follows it\n" for n in range(900)
    ]
    path.write_text("".join(lines))
    return path


@pytest.mark.thorough
def test_trains_compiles_and_reports(example, text, tmp_path, capsys):
    output, page = tmp_path / "out", tmp_path / "page.md"
    page.write_text("# Page\n<!-- training:begin -->\n<!-- training:end -->\n")
    arguments = ["--recipe", "tiny", "--text", str(text), "--output", str(output)]
    gap = example.main([*arguments, "--docs", str(page)])
    printed = capsys.readouterr()
    assert math.isfinite(gap)
    assert "| FFN | h | tau | MFLOP per token |" in printed.out
    assert "| LookupFFN, h = 16 | 16 | 8 |" in printed.out
    assert "dense: step 6 of 6" in printed.err
    names = {path.name for path in output.iterdir()}
    assert {"losses.jsonl", "comparison.png", "lookup16.lutcc", "dense.safetensors"} <= names
    assert (output / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((output / "results.json").read_text())
    assert [row["name"] for row in results["rows"]] == ["dense", "lookup16", "lookup8", "none"]
    # The compiled model is the trained one, up to codes that rounding decides.
    assert results["compiled"]["artifact"]["within"] > 0.95
    assert results["compiled"]["log_perplexity"] == pytest.approx(
        results["rows"][1]["log_perplexity"], abs=0.01
    )
    assert "the artifact" in page.read_text()
    assert "![" in page.read_text()

    # Again: what is trained is read, and nothing changes.
    before = (output / "losses.jsonl").read_text()
    assert example.main([*arguments, "--no-compile"]) == gap
    assert (output / "losses.jsonl").read_text() == before
    with pytest.raises(InputError, match="seed 0 -> 1"):
        example.main([*arguments, "--no-compile", "--seed", "1"])


def test_a_budget_decides_the_steps_once(example, text, tmp_path, capsys):
    arguments = ["--recipe", "tiny", "--text", str(text), "--output", str(tmp_path)]
    arguments += ["--no-compile", "--models", "dense,lookup8", "--steps", "5000"]
    example.main([*arguments, "--budget", "0.5s"])
    steps = json.loads((tmp_path / "steps.json").read_text())["steps"]
    assert 1 <= steps < 5000
    example.main([*arguments, "--budget", "2h"])
    assert f"{steps} steps of each model" in capsys.readouterr().err
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["recipe"]["steps"] == steps
    assert len(results["rows"]) == 2


def test_the_small_recipe_keeps_the_papers_ratios(example):
    full, small = example.SETUPS["full"], example.SETUPS["small"]
    costs = [[b.mflop(s.sizes.width) for b in s.blocks] for s in (full, small)]
    assert [round(cost, 2) for cost in costs[0]] == [4.19, 1.38, 0.69, 0.0]
    for of_full, of_small in zip(*costs, strict=True):
        assert of_small / costs[1][0] == pytest.approx(of_full / costs[0][0], abs=0.04)


@pytest.mark.parametrize("budget", ["0", "ten", "5d", "-3m"])
def test_budgets_that_are_none(example, budget, capsys):
    with pytest.raises(SystemExit) as caught:
        example.parse([f"--budget={budget}"])
    assert caught.value.code == 2
    assert "no duration such as" in capsys.readouterr().err


def test_unknown_models(example, tmp_path):
    with pytest.raises(UsageError, match=r"(?s)--models dense,big.*lookup64, lookup32, none"):
        example.main(["--models", "dense,big", "--output", str(tmp_path)])
