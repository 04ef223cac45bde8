"""lutcc plan: from a model to a recipe that convert takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lutcc import recipes
from lutcc.cli.main import main

FACTORY = """
import torch

def small():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(12, 9), torch.nn.ReLU())
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "planned_models.py").write_text(FACTORY)
    random = np.random.default_rng(0)
    low_rank = random.normal(size=(300, 2)) @ random.normal(size=(2, 12))
    np.save(tmp_path / "x.npy", low_rank.astype(np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_plan_then_convert(folder: Path, monkeypatch, capfd):
    one = recipes.Maddness(ncodebooks=6)
    monkeypatch.setattr("lutcc.planning.api.default_candidates", lambda columns: [one])
    words = ["plan", "planned_models:small", "-c", "x.npy", "--max-drop", "100%"]
    words += ["--measure", "error", "--rows", "16", "-o", "r.toml"]
    assert main(words) == 0
    out, err = capfd.readouterr()
    assert "[1/1] layer 0" in err
    assert "16 x 12 x 9" in out
    assert "relative error of the output: " in out
    assert "the prediction is" in out
    kept = json.loads((folder / "r.toml.plan.json").read_text())
    assert kept["origin"]["batch"] == "16"
    assert (folder / "r.png").stat().st_size > 1000

    assert main([*words, "--json", "-q"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["layers"][0]["exact_seconds"] > 0
    assert recipes.read_recipe("r.toml") == {
        "0": recipes.config_from_dict(
            next(
                option["config"]
                for option in facts["layers"][0]["options"]
                if option["label"] == facts["layers"][0]["choice"]
            )
        )
    }
    words = ["convert", "planned_models:small", "-c", "x.npy", "-r", "r.toml", "-o", "m.pt2", "-q"]
    assert main(words) == 0
    assert (folder / "m.pt2").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["-c", "x.npy", "--max-drop", "1"], 1, "'1' is no percentage"),
        (["-c", "y.npy", "--max-drop", "1%"], 2, "no file 'y.npy'"),
        (["-c", "nan.npy", "--max-drop", "1%"], 1, "NaN"),
        (["-c", "x.npy", "--max-drop", "1%", "-t", "z80"], 1, "no target 'z80'"),
        (["-c", "x.npy", "--max-drop", "1%", "-o", "no/r.toml"], 2, "cannot be written"),
        (["-c", "x.npy", "--max-drop", "1%", "-o", "r.json"], 2, "written as TOML"),
        (["-c", "x.npy", "--max-drop", "1%", "-o", "."], 2, "is a folder"),
        (["-c", "x.npy", "--max-drop", "1%", "--png", "."], 2, "is a folder"),
        (["-c", "x.npy"], 2, "--max-drop"),
    ],
)
def test_mistakes_are_told(folder: Path, capfd, words, code, message):
    np.save(folder / "nan.npy", np.full((20, 12), np.nan, np.float32))
    assert main(["plan", "planned_models:small", "-o", "r.toml", *words]) == code
    assert message in capfd.readouterr().err
    assert not (folder / "r.toml").exists()


def test_an_interruption_says_what_is_kept(folder: Path, monkeypatch, capfd):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("lutcc.planning.measuring.compiled", stop)
    words = ["plan", "planned_models:small", "-c", "x.npy", "--max-drop", "1%", "-o", "r.toml"]
    assert main(words) == 130
    assert "what was measured is kept in r.toml.plan.json" in capfd.readouterr().err
