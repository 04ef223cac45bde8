"""Exported programs (.pt2) are converted and compressed as other models are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

import lutcc
from lutcc.compress import load_into
from lutcc.frontend.tracing import quiet_torch

N = Dim("n", min=1)
RECIPE = '["0"]\nmethod = "maddness"\nncodebooks = 6\n["*2"]\nmethod = "exact"\ncompute = "int8"\n'


class Two(nn.Module):
    """Rows of two kinds, and a scale that is not one for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc = nn.Embedding(10, 12), nn.Linear(12, 4)

    def forward(self, ids: torch.Tensor, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.fc(self.table(ids) + x) * scale


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 5)).eval()


def save(model: nn.Module, args: tuple[Any, ...], path: str, dynamic: Any = None) -> None:
    with quiet_torch():
        program = torch.export.export(model.eval(), args, dynamic_shapes=dynamic)
        torch.export.save(program, path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    np.save("x.npy", random.normal(size=(200, 12)).astype(np.float32))
    Path("r.toml").write_text(RECIPE)
    save(small(), (torch.zeros(3, 12),), "open.pt2", ({0: N},))
    save(small(), (torch.zeros(8, 12),), "eight.pt2")
    two = torch.zeros(3, dtype=torch.int64), torch.zeros(3, 12), torch.ones(4)
    torch.manual_seed(0)
    save(Two(), two, "two.pt2", ({0: Dim("n", min=2, max=50)}, {0: Dim("n", min=2, max=50)}, None))
    ids = random.integers(0, 10, 90).astype(np.int32)
    rows = random.normal(size=(90, 12)).astype(np.float32)
    np.savez("two.npz", ids=ids, x=rows, scale=np.arange(1, 5, dtype=np.float32))
    return tmp_path


def test_a_recipe_is_for_programs_too(lutcc_command, folder: Path):
    words = ["open.pt2", "-r", "r.toml", "-c", "x.npy", "-o", "m.lutcc", "-t", "avx2"]
    done = lutcc_command("compile", *words, "--json", "-q")
    assert done.code == 0, done.err
    methods = {layer["name"]: layer["method"] for layer in done.json["conversion"]["layers"]}
    assert methods == {"0": "maddness", "2": "exact"}
    assert done.json["inputs"] == ["input: float32[n, 12]"]
    x = torch.from_numpy(np.load("x.npy"))
    converted = lutcc.convert(small(), "r.toml", x)  # as the model that it was made from
    with torch.inference_mode():
        wanted = converted(x).numpy()
    assert lutcc_command("run", "m.lutcc", "x.npy", "-o", "y.npy", "-q").code == 0
    np.testing.assert_allclose(np.load("y.npy"), wanted, rtol=1e-3, atol=1e-3)

    done = lutcc_command("convert", *words[:5], "-o", "again.pt2", "--json", "-q")
    assert done.code == 0, done.err
    assert 0 < done.json["normalized_squared_error"] < 0.5
    again = torch.export.load("again.pt2").module()
    np.testing.assert_allclose(again(x[:7]).detach().numpy(), wanted[:7], rtol=1e-4, atol=1e-4)


def test_a_program_of_several_inputs_and_bounds(lutcc_command, folder: Path):
    Path("fc.toml").write_text('["fc"]\nmethod = "maddness"\nncodebooks = 6\n')
    words = ["convert", "two.pt2", "-r", "fc.toml", "-c", "two.npz", "-o", "m.pt2", "-q", "--json"]
    done = lutcc_command(*words)
    assert done.code == 0, done.err
    [layer] = done.json["layers"]
    assert (layer["name"], layer["rows"]) == ("fc", 90)  # in batches of 50 and 40
    assert 0 < done.json["normalized_squared_error"] < 1
    program = torch.export.load("m.pt2")
    assert [(int(r.lower), int(r.upper)) for r in program.range_constraints.values()] == [(1, 50)]


def test_a_program_of_a_fixed_batch(lutcc_command, folder: Path):
    words = ["eight.pt2", "-r", "r.toml", "-c", "x.npy", "-o", "m.pt2", "--json", "-q"]
    done = lutcc_command("convert", *words)
    assert done.code == 0, done.err
    assert done.json["layers"][0]["rows"] == 200
    np.save("few.npy", np.zeros((5, 12), np.float32))
    done = lutcc_command("convert", *words[:4], "few.npy", *words[5:])
    assert done.code == 1
    assert "the program takes 8 rows at a time, not 5" in " ".join(done.err.split())


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["open.pt2", "-r", "r.toml"], 1, "look-ups are fitted on data"),
        (["open.pt2", "-r", "no.toml"], 2, "no file 'no.toml'"),
        (["open.pt2", "-r", "r.toml", "-c", "two.npz"], 1, "the program takes no 'ids'"),
        (["two.pt2", "-r", "r.toml", "-c", "x.npy"], 1, "the program also takes x, scale"),
        (["two.pt2", "-r", "r.toml", "-c", "float.npz"], 1, "'ids' is float32, the program takes"),
        (["open.pt2", "-r", "r.toml", "-c", "wide.npy"], 1, "(6, 13), the program takes (n, 12)"),
        (["open.pt2", "-w", "w.safetensors"], 2, "into package.module:factory only"),
        (["open.pt2", "-r", "other.toml"], 1, "no layer of the model is called 'first'"),
    ],
)
def test_mistakes(lutcc_command, folder: Path, words, code, message):
    arrays = dict(np.load("two.npz"))
    np.savez("float.npz", **{**arrays, "ids": np.float32(arrays["ids"])})
    np.save("wide.npy", np.zeros((6, 13), np.float32))
    Path("other.toml").write_text('["first"]\nmethod = "exact"\ncompute = "int8"\n')
    done = lutcc_command("compile", *words, "-o", "m.lutcc", "-q")
    assert message in " ".join(done.err.split())
    assert done.code == code
    assert "Traceback" not in done.err
    assert not Path("m.lutcc").exists()


def test_weights_of_a_program_are_compressed(lutcc_command, folder: Path):
    words = ["--alpha", 4, "--learn", "none", "--clustering", "kmeans", "--json", "-q"]
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True).eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        save(layer, (torch.zeros(2, 5, 32),), "layer.pt2", ({0: N},))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    done = lutcc_command("compress", "layer.pt2", "-o", "small.safetensors", *words)
    assert done.code == 0, done.err
    methods = {t["name"]: t["method"] for t in done.json["tensors"]}
    assert methods.keys() == layer.state_dict().keys()
    assert {n for n, m in methods.items() if m != "exact"} == {"linear1.weight", "linear2.weight"}
    loaded = load_into(nn.TransformerEncoderLayer(32, 2, 64, batch_first=True), "small.safetensors")
    x = torch.randn(2, 5, 32)
    with torch.no_grad():
        wanted, found = layer(x), loaded(x)
    assert 0 < (found - wanted).norm() < 0.3 * wanted.norm()
    done = lutcc_command("compress", "two.pt2", "-c", "two.npz", "-o", "s.safetensors", *words)
    assert (done.code, Path("s.safetensors").exists()) == (2, False)
    assert "of a single input" in done.err
