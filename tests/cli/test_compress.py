"""`lutcc compress`: checkpoints and models, options, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lutcc.compress import compress as compression
from lutcc.compress import read_records
from tests.cli.support import Outcome

Command = Callable[..., Outcome]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "exact"
    folder.mkdir()
    random = torch.Generator().manual_seed(0)
    state = {f"layers.{i}.fc.weight": torch.randn(64, 32, generator=random) for i in range(3)}
    save_file(state | {"norm.weight": torch.ones(32)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def test_checkpoint(lutcc_command: Command, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    words = ["--alpha", 4, "--clustering", "kmeans", "--exact", "layers.2.*"]
    done = lutcc_command("compress", checkpoint, "-o", out, *words)
    assert done.code == 0
    assert [line.split("] ")[1] for line in done.err.splitlines()] == [
        "layers.0.fc.weight", "layers.1.fc.weight", "layers.2.fc.weight", "norm.weight",
    ]  # fmt: skip
    assert "2 exact tensors" in done.out
    assert f"written: {out}" in done.out
    assert "layers.0.fc.weight and 1 more: alpha=4 is met with 3 bits" in done.out
    assert {p.name for p in out.iterdir()} == {"model.safetensors", "config.json"}
    quiet = lutcc_command("compress", checkpoint, "-o", out, *words, "-q", "--json")
    assert quiet.err == ""
    whole = read_records(out).footprint
    assert quiet.json["alpha"] == pytest.approx(whole.alpha)
    assert quiet.json["bytes"] == -(-whole.bits // 8)
    first, *_, last = quiet.json["tensors"]
    assert (first["method"], last["method"]) == ("codebook", "exact")
    assert first["alpha"] >= 4


def test_interrupted(
    lutcc_command: Command, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, fitted = compression._fit, []

    def stop(weights: np.ndarray, options: dict) -> object:
        fitted.append(weights)
        if len(fitted) == 2:
            raise KeyboardInterrupt
        return fit(weights, options)

    monkeypatch.setattr(compression, "_fit", stop)
    words = ["compress", checkpoint, "-o", tmp_path / "a.safetensors", "--clustering", "kmeans"]
    first = lutcc_command(*words, "--alpha", 4)
    assert first.code == 130
    assert "the same command goes on with it" in first.err
    other = lutcc_command(*words, "--alpha", 5)
    assert other.code == 1
    assert "an interrupted run is there that had alpha=4.0" in other.err
    assert lutcc_command(*words, "--alpha", 4, "-q").code == 0
    assert len(fitted) == 4, "one was finished, two were left"


def test_model(lutcc_command: Command, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((200, 64), np.float32)
    np.save(tmp_path / "x.npy", rows)
    out = tmp_path / "small.safetensors"
    done = lutcc_command(
        "compress", "digits-mlp", "-o", out, "-c", tmp_path / "x.npy", "--alpha", 4, "--steps", 2,
        "--clustering", "kmeans", "--exact", "6", "--json",
    )  # fmt: skip
    assert done.code == 0
    found = {t["name"]: t for t in done.json["tensors"]}
    assert found["0.weight"]["rows"] == 200
    assert found["6.weight"]["method"] == "exact"
    assert read_records(out).activations["bits"] > 0


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (["MODEL", "--alpha", "0"], "alpha=0.0 is not a number above 0", 1),
        (["MODEL", "--clustering", "kmean"], "kmeans", 1),
        (["MODEL", "--learn", "all"], "invalid choice", 2),
        (["MODEL", "--layers", "layer"], "no tensor is called 'layer'", 1),
        (["MODEL", "--layers", "norm"], "norm.weight: cannot be compressed", 1),
        (["MODEL", "--layers", "layers.0.fc", "--alpha", "9"], "out of reach for 64 x 32", 1),
        (["MODEL", "-c", "x.npy"], "from its values alone", 2),
        (["nowhere"], "there is no such file", 1),
        (["model.pt2"], "no file", 2),
        (["nowhere:model"], "no module 'nowhere'", 2),
        (["digits-mlp", "--layers", "fc*"], "no layer of the model is called", 1),
    ],
)
def test_wrong_use(
    lutcc_command: Command, checkpoint: Path, tmp_path: Path, words: list, message: str, code: int
) -> None:
    words = [checkpoint if word == "MODEL" else word for word in words]
    done = lutcc_command("compress", *words, "-o", tmp_path / "out.safetensors")
    assert message in done.err
    assert done.code == code
    assert not (tmp_path / "out.safetensors").exists()
