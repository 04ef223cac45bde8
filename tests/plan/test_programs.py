"""lutcc plan of an exported program: a recipe that compile takes with the same file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

from lutcc import recipes
from lutcc.cli.main import main
from lutcc.cli.plan import labels_of
from lutcc.frontend.tracing import quiet_torch


class Attention(nn.Module):
    """Attention whose first product reads a parameter of its own, and a batch and a length."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.fc = nn.Linear(12, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x + self.attention(x, x, x, need_weights=False)[0])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model, x = Attention().eval(), torch.randn(40, 5, 12)
    np.save("x.npy", x.numpy())
    sizes = {0: Dim("n", min=1), 1: Dim("length", min=2, max=9)}
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with quiet_torch():
            torch.export.save(
                torch.export.export(model, (x[:3],), dynamic_shapes=(sizes,)), "m.pt2"
            )
            torch.export.save(torch.export.export(model, (x[:4],)), "four.pt2")
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return tmp_path


@pytest.mark.thorough
def test_plan_compile_run(folder: Path, monkeypatch, capfd):
    int8 = recipes.Exact(compute="int8")
    monkeypatch.setattr("lutcc.planning.api.default_candidates", lambda columns: [int8])
    # times of so small layers tell nothing: whatever is not exact is taken for faster
    monkeypatch.setattr("lutcc.planning.skipping.cheaper", lambda *args: True)
    monkeypatch.setattr("lutcc.planning.speed.TOTAL", 0.2)
    words = ["plan", "m.pt2", "-c", "x.npy", "--max-drop", "30%", "--rows", "2", "-t", "avx2"]
    assert main([*words, "-o", "r.toml", "--json", "-q"]) == 0
    facts = json.loads(capfd.readouterr().out)
    shapes = {layer["name"]: layer["shape"] for layer in facts["layers"]}
    assert shapes == {
        "attention.in_proj": "10 x 12 x 36",
        "attention.out_proj": "10 x 12 x 12",
        "fc": "10 x 12 x 7",
    }
    assert all(0 < layer["options"][1]["drop"] < 0.3 for layer in facts["layers"])
    assert facts["measure"] == "error"
    assert list(recipes.read_recipe("r.toml")) == list(shapes)

    Path("r.toml").write_text('["attention.*"]\nmethod = "exact"\ncompute = "int8"\n')
    assert main(["compile", "m.pt2", "-r", "r.toml", "-o", "m.lutcc", "-t", "avx2", "--json"]) == 0
    made = json.loads(capfd.readouterr().out)
    assert len(made["conversion"]["layers"]) == 2
    for rows, length in ((1, 9), (6, 2)):
        x = np.random.default_rng(0).normal(size=(rows, length, 12)).astype(np.float32)
        np.save("given.npy", x)
        assert main(["run", "m.lutcc", "given.npy", "-o", "y.npy", "-q"]) == 0
        wanted = torch.export.load("m.pt2").module()(torch.from_numpy(x)).detach().numpy()
        error = np.linalg.norm(np.load("y.npy") - wanted) / np.linalg.norm(wanted)
        assert 0 < error < 0.05
    np.save("given.npy", np.zeros((1, 10, 12), np.float32))
    assert main(["run", "m.lutcc", "given.npy", "-o", "y.npy", "-q"]) == 1


def test_labels_of_rows_that_fill_no_batch_are_left_out(tmp_path: Path):
    x, labels = torch.arange(22.0).reshape(11, 2), np.arange(11)
    np.save(tmp_path / "x.npy", x.numpy())
    batches = [{"x": x[:4]}, {"x": x[4:8]}]
    kept = labels_of(batches, labels, str(tmp_path / "x.npy"))
    np.testing.assert_array_equal(kept, labels[:8])
    np.savez(tmp_path / "x.npz", x=x.numpy(), scale=np.ones(1))
    kept = labels_of(batches, labels, str(tmp_path / "x.npz"))
    np.testing.assert_array_equal(kept, labels[:8])
    other = labels_of(batches, labels[:10], str(tmp_path / "x.npy"))
    assert len(other) == 10  # too few: lutcc.plan refuses them


@pytest.mark.thorough
def test_a_fixed_batch_is_timed_as_it_is(folder: Path, monkeypatch, capfd):
    monkeypatch.setattr("lutcc.planning.api.default_candidates", lambda columns: [])
    words = ["plan", "four.pt2", "-c", "x.npy", "--max-drop", "1%", "-o", "r.toml", "-t", "avx2"]
    assert main([*words, "--json", "-q"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["rows"] == 4
    assert facts["layers"][0]["shape"] == "20 x 12 x 36"
    assert main([*words, "--rows", "5", "-q"]) == 1
    assert "takes 4 rows at a time, not 5" in " ".join(capfd.readouterr().err.split())
    assert main([*words, "-w", "w.safetensors", "-q"]) == 2
    assert "a program has its own weights" in capfd.readouterr().err
