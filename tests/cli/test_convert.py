"""convert: from a torch model and a recipe to an exported program that compiles."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lutcc.data import digits

RECIPE = '["*"]\nmethod = "maddness"\nncodebooks = 8\n'
FACTORY = """
import torch
from torch import nn

def small():
    return nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4))

not_a_factory = 3

def needs_arguments(width, depth=2):
    return nn.Linear(width, width)

def raises():
    return {}["no such key"]

class FailsWhenRun(nn.Module):
    def forward(self, x):
        return self.nothing(x)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mymodels.py").write_text(FACTORY)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    random = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", random.normal(size=(300, 12)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_convert_compile_run(lutcc_command, folder: Path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(12, 9), torch.nn.ReLU(), torch.nn.Linear(9, 4))
    save_file(model.state_dict(), folder / "w.safetensors")
    done = lutcc_command(
        "convert", "mymodels:small", "-w", "w.safetensors", "-r", "recipe.toml", "-c", "x.npy",
        "-o", "m.pt2", "--json", "-q",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert [layer["name"] for layer in done.json["layers"]] == ["0", "2"]
    assert 0 < done.json["normalized_squared_error"] < 1
    assert lutcc_command("compile", "m.pt2", "-o", "m.lutcc", "-q").code == 0
    assert lutcc_command("run", "m.lutcc", "x.npy", "-o", "y.npy", "-q").code == 0
    x = np.load("x.npy")
    expected = torch.export.load("m.pt2").module()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_array_equal(np.load("y.npy"), expected)
    inspected = lutcc_command("inspect", "m.pt2", "--json")
    assert inspected.code == 0, inspected.err
    assert inspected.json["modules"]["main"]["cost"]["total"]["lookups"] == 1024 * (8 * 9 + 8 * 4)


def test_the_built_in_model(lutcc_command, folder: Path):
    np.save("digits.npy", digits.load().train_x[:200])
    done = lutcc_command(
        "convert", "digits-mlp", "-r", "recipe.toml", "-c", "digits.npy", "-o", "d.pt2", "-q"
    )
    assert done.code == 0, done.err
    assert Path("d.pt2").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["digits-mpl"], 2, "did you mean 'digits-mlp'"),
        (["nosuchmodule:f"], 2, "no module 'nosuchmodule'"),
        (["mymodels:smal"], 2, "did you mean 'small'"),
        (["mymodels:needs_arguments"], 2, "needs arguments: width\n"),
        (["mymodels:raises"], 1, "mymodels:raises: the model factory fails: KeyError"),
        (["mymodels:FailsWhenRun"], 1, "no attribute 'nothing'"),
        (["brokenmodels:f"], 1, "importing brokenmodels fails: SyntaxError"),
        (["mymodels:small", "-c", "nan.npy"], 1, "row 3, column 2 is NaN; 1 of 60 values"),
        (["mymodels:not_a_factory"], 2, "gives a int, not a torch module"),
        (["mymodels:small", "-r", "recip.toml"], 2, "did you mean 'recipe.toml'"),
        (["mymodels:small", "-c", "wide.npy"], 1, "wide.npy: the model fails"),
        (["mymodels:small", "-w", "recipe.toml"], 1, "recipe.toml: cannot be read"),
        (["mymodels:small", "-w", "other.safetensors"], 1, "0.weight"),
        (["mymodels:small", "-r", "typo.toml"], 1, "no layer of the model is called 'haed'"),
        (["mymodels:small", "-r", "option.toml"], 1, "did you mean 'ncodebooks'"),
        (["mymodels:small", "-r", "broken.toml"], 1, "broken.toml"),
    ],
)
def test_mistakes(lutcc_command, folder: Path, arguments, code, message):
    np.save("wide.npy", np.zeros((5, 13), np.float32))
    np.save("nan.npy", np.where(np.arange(60).reshape(5, 12) == 38, np.nan, 1).astype(np.float32))
    Path("brokenmodels.py").write_text("def f(:\n")
    save_file({"fc.weight": torch.zeros(2, 2)}, "other.safetensors")
    Path("typo.toml").write_text(RECIPE.replace("*", "haed"))
    Path("option.toml").write_text(RECIPE.replace("ncodebooks", "ncodeboks"))
    Path("broken.toml").write_text(RECIPE.replace("]", "", 1))
    rest = [] if "-r" in arguments else ["-r", "recipe.toml"]
    rest += [] if "-c" in arguments else ["-c", "x.npy"]
    done = lutcc_command("convert", *arguments, *rest, "-o", "m.pt2", "-q")
    assert done.code == code
    assert message in done.err
    assert "Traceback" not in done.err
    assert not Path("m.pt2").exists()


def test_the_output_folder_is_checked_before_fitting(lutcc_command, folder: Path):
    words = ["mymodels:small", "-r", "recipe.toml", "-c", "x.npy", "-o", "nodir/c.pt2"]
    done = lutcc_command("convert", *words)
    assert done.code == 2
    assert "the folder 'nodir' does not exist" in done.err
    assert "mkdir -p nodir" in done.err
    assert "fitting" not in done.err


@pytest.mark.one_in(2)
@pytest.mark.parametrize("data", [b"PK\x03\x04" + b"0" * 100, b"junk"], ids=repr)
def test_a_damaged_exported_program(folder: Path, data: bytes):
    """In a process of its own: torch logs to the stream that it found when it was imported."""
    Path("bad.pt2").write_bytes(data)
    command = [sys.executable, "-m", "lutcc.cli.main", "compile", "bad.pt2", "-o", "m.lutcc", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("lutcc: bad.pt2: torch cannot read it: ")
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 2


def test_sampled_recipes_are_for_training(lutcc_command, folder: Path):
    (folder / "recipe.toml").write_text('["*"]\nmethod = "sampled"\n')
    done = lutcc_command(
        "convert", "mymodels:small", "-r", "recipe.toml", "-c", "x.npy", "-o", "m.pt2", "-q"
    )
    assert done.code == 1
    assert "changes how a model is trained" in done.err
    assert "To mend it" in done.err
    assert not (folder / "m.pt2").exists()
