"""lutcc plan of a Hugging Face folder: from sentences to a recipe that compile takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lutcc import recipes
from lutcc.cli.main import main
from lutcc.planning.calibration import read_calibration
from lutcc.planning.drop import Judge

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two", "three", "four", "five"]
SIX = ["--length", "6"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BERT of random weights and a tokenizer of few words."""
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("hf") / "bert"
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=12,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "pad_token": "[PAD]"})
    )
    return path


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    path = tmp_path / "s.txt"
    random = np.random.default_rng(0)
    lines = [" ".join(random.choice(WORDS[5:], 1 + i % 7)) for i in range(70)]
    path.write_text("\n\n".join(lines) + "\n")
    return path


@pytest.mark.thorough
def test_sentences_become_a_recipe_that_compile_takes(
    bert: Path, sentences: Path, tmp_path: Path, monkeypatch, capfd
):
    int8 = recipes.Exact(compute="int8")
    monkeypatch.setattr("lutcc.planning.api.default_candidates", lambda columns: [int8])
    # times of so small layers tell nothing: whatever is not exact is taken for faster
    monkeypatch.setattr("lutcc.planning.skipping.cheaper", lambda *args: True)
    recipe = tmp_path / "r.toml"
    words = ["plan", str(bert), "-c", str(sentences), "--length", "6", "--max-drop", "50%"]
    assert main([*words, "-t", "avx2", "-o", str(recipe), "--json", "-q"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["measure"] == "error"
    assert facts["rows"] == 1
    shapes = {layer["name"]: layer["shape"] for layer in facts["layers"]}
    assert shapes["encoder.layer.0.attention.self.query"] == "6 x 8 x 8"
    assert facts["rest_seconds"] >= 0
    for layer in facts["layers"]:
        assert 0 < layer["options"][1]["drop"] < 0.5
        assert layer["options"][1]["damage"] == layer["options"][1]["change"] ** 2
    out = tmp_path / "m.lutcc"
    words = ["compile", str(bert), "-r", str(recipe), "-o", str(out), "--length", "6"]
    assert main([*words, "-t", "avx2", "--json", "-q"]) == 0
    made = json.loads(capfd.readouterr().out)
    assert made["bytes"] == out.stat().st_size
    assert len(made["conversion"]["layers"]) == len(shapes)


@pytest.mark.parametrize(
    ("content", "words", "code", "message"),
    [
        (b"\n \n", SIX, 1, "s.txt holds no text"),
        (b"\xff\xfe", SIX, 1, "is not UTF-8 text"),
        (None, SIX, 2, "no file"),
        (b"one\n" * 20, ["--length", "13"], 2, "the model has 12 positions, not 13"),
        (b"one\n" * 20, ["-w", "w.safetensors"], 2, "a folder has its own weights"),
        (b"one\n" * 3, SIX, 1, "3 rows cannot be cut"),
    ],
)
def test_mistakes_are_told(bert: Path, tmp_path: Path, capfd, content, words, code, message):
    path = tmp_path / "s.txt"
    if content is not None:
        path.write_bytes(content)
    recipe = tmp_path / "r.toml"
    given = ["plan", str(bert), "-c", str(path), "--max-drop", "1%", "-o", str(recipe), *words]
    assert main(given) == code
    told = capfd.readouterr().err
    assert message in " ".join(told.split())
    assert "Traceback" not in told
    assert not recipe.exists()


def test_what_has_no_layers_any_more_is_refused(tmp_path: Path, capfd):
    (tmp_path / "m.ir").write_bytes(b"not looked at")
    given = ["plan", str(tmp_path / "m.ir"), "-c", "x.npy", "--max-drop", "1%"]
    assert main([*given, "-o", str(tmp_path / "r.toml")]) == 2
    assert "its layers are no longer there to be swapped" in capfd.readouterr().err


def test_tokens_that_are_masked_do_not_count():
    class Wrong(torch.nn.Module):
        def __init__(self, at: int) -> None:
            super().__init__()
            self.at = at

        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return (x + (attention_mask == self.at))[..., None].expand(-1, -1, 3)

    x = torch.rand(16, 5) + 1
    mask = (torch.arange(5) < 3).long().expand(16, 5)
    exact = Wrong(at=2)
    judge = Judge(exact, read_calibration(exact, {"x": x, "attention_mask": mask}))
    assert judge.drop(Wrong(at=0), "check").drop == 0
    assert judge.drop(Wrong(at=1), "check").drop > 0.3
