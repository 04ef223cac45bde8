"""compile: factories and Hugging Face folders, converted first by a recipe or as they are."""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import lutcc
from lutcc.cli import tune
from lutcc.cli.console import Console
from lutcc.cli.source_options import lengths_of
from lutcc.errors import UsageError
from tests.cli.support import Files

FACTORY = """
import torch
from torch import nn

def small():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4))

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.first, self.second = nn.Linear(12, 3), nn.Linear(5, 3)
    def forward(self, x, other):
        return self.first(x) + self.second(other)
"""
MADDNESS = '["0"]\nmethod = "maddness"\nncodebooks = 6\n'
VOCABULARY, POSITIONS, LENGTH = 30, 20, 6


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "compiled_models.py").write_text(FACTORY)
    (tmp_path / "recipe.toml").write_text(MADDNESS)
    random = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", random.normal(size=(300, 12)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("compiled_models", None)
    return tmp_path


def test_a_factory_is_converted_and_compiled(lutcc_command, folder: Path):
    words = ["compiled_models:small", "-c", "x.npy", "-o", "m.lutcc", "-q"]
    done = lutcc_command("compile", *words, "-r", "recipe.toml", "-t", "avx2", "--json")
    assert done.code == 0, done.err
    methods = {layer["name"]: layer["method"] for layer in done.json["conversion"]["layers"]}
    assert methods == {"0": "maddness"}
    small = importlib.import_module("compiled_models").small
    x = np.load("x.npy")
    converted = lutcc.convert(small(), "recipe.toml", torch.from_numpy(x))
    with torch.inference_mode():
        expected = converted(torch.from_numpy(x)).numpy()
        exact = small()(torch.from_numpy(x)).numpy()
    assert lutcc_command("run", "m.lutcc", "x.npy", "-o", "y.npy", "-q").code == 0
    np.testing.assert_allclose(np.load("y.npy"), expected, rtol=1e-5, atol=1e-5)
    assert not np.allclose(expected, exact, atol=1e-3)  # it is the converted model


def test_a_factory_of_two_inputs_with_weights(lutcc_command, folder: Path):
    random = np.random.default_rng(1)
    x, other = (random.normal(size=(3, width)).astype(np.float32) for width in (12, 5))
    np.savez("two.npz", x=x, other=other)
    state = {"first.weight": torch.randn(3, 12), "second.weight": torch.randn(3, 5)}
    state |= {"first.bias": torch.ones(3), "second.bias": torch.ones(3)}
    save_file(state, "w.safetensors")
    words = ["compiled_models:Two", "-c", "two.npz", "-w", "w.safetensors", "-o", "m.lutcc"]
    done = lutcc_command("compile", *words, "-t", "avx2", "--json", "-q")
    assert done.code == 0, done.err
    assert done.json["conversion"] is None
    assert [spec.partition(":")[0] for spec in done.json["inputs"]] == ["x", "other"]
    assert lutcc_command("run", "m.lutcc", "two.npz", "-o", "y.npy", "-q").code == 0
    expected = x @ state["first.weight"].numpy().T + other @ state["second.weight"].numpy().T + 2
    np.testing.assert_allclose(np.load("y.npy"), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["compiled_models:small"], 2, "example inputs are needed to trace a model"),
        (["compiled_models:smal", "-c", "x.npy"], 2, "did you mean 'small'"),
        (["compiled_models:small", "-c", "nan.npz"], 1, "'x' holds NaN or infinity"),
        (["compiled_models:small", "-c", "x.npy", "--length", "8"], 2, "for Hugging Face folders"),
        (["compiled_models:small", "-c", "x.npy", "-r", "no.toml"], 2, "no file 'no.toml'"),
        (["compiled_models:small", "-c", "x.npy", "-r", "sampled.toml"], 1, "how a model is"),
        (["compiled_models:small", "-c", "x.npy", "-o", "no/m.lutcc"], 2, "mkdir -p no"),
        (["MODULE", "-r", "recipe.toml"], 2, "an IR module has no layers to convert"),
        (["MODULE", "-w", "w.safetensors"], 2, "into package.module:factory only"),
        (["ARTIFACT", "-c", "x.npy"], 2, "an artifact has no layers to convert"),
        (["MODULE", "-r", "recipe.toml"], 2, "name an exported program, a Hugging Face folder or"),
        (["ARTIFACT", "-r", "recipe.toml"], 2, "calibration) in Python before lutcc.compile"),
        (["m.pt2", "-r", "recipe.toml"], 1, "m.pt2: torch cannot read it"),
        (["m.pt2", "--length", "0"], 2, "'0' is no number of tokens"),
        (["m.pt2", "--length", "n"], 2, "'n' is the name of the batch size"),
        (["empty"], 2, "without manifest.json (an artifact) or config.json (Hugging Face)"),
    ],
)
def test_mistakes(lutcc_command, folder: Path, files: Files, words, code, message):
    np.savez("nan.npz", x=np.full((2, 12), np.nan, np.float32))
    Path("sampled.toml").write_text('["*"]\nmethod = "sampled"\n')
    Path("m.pt2").write_bytes(b"not looked at")
    Path("empty").mkdir()
    given = {"MODULE": files.module, "ARTIFACT": files.artifact}
    rest = [] if "-o" in words else ["-o", "m.lutcc"]
    done = lutcc_command("compile", *(given.get(word, word) for word in words), *rest, "-q")
    assert done.code == code
    assert message in done.err
    assert "Traceback" not in done.err
    assert not Path("m.lutcc").exists()


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BERT of random weights."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=POSITIONS,
    )  # fmt: skip
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("hf") / "bert"
    transformers.BertModel(config).save_pretrained(path)
    return path


def tokens(rows: int, length: int = LENGTH) -> dict[str, Any]:
    random = np.random.default_rng(rows)
    ids = random.integers(0, VOCABULARY, (rows, length))
    return {"input_ids": ids, "attention_mask": (np.arange(length) < 4 + 0 * ids).astype(int)}


def test_a_folder_is_converted_compiled_and_run(lutcc_command, bert: Path, tmp_path: Path):
    recipe, typical = tmp_path / "recipe.toml", tmp_path / "typical.npz"
    recipe.write_text('["encoder.layer.*.dense"]\nmethod = "codebook"\nalpha = 4\n')
    np.savez(typical, **tokens(40))
    out = tmp_path / "bert.lutcc"
    done = lutcc_command(
        "compile", bert, "-r", recipe, "-c", typical, "-o", out, "-t", "avx2", "--length", LENGTH,
        "--json", "-q",
    )  # fmt: skip
    assert done.code == 0, done.err
    layers = {r["name"]: r["method"] for r in done.json["conversion"]["layers"]}
    assert layers["encoder.layer.0.intermediate.dense"] == "codebook"
    assert done.json["inputs"] == [
        f"{name}: int64[n, {LENGTH}]" for name in ("input_ids", "attention_mask")
    ]
    few = tokens(3)
    np.savez(tmp_path / "few.npz", **few)
    done = lutcc_command("run", out, tmp_path / "few.npz", "-o", tmp_path / "y.npz", "-q")
    assert done.code == 0, done.err
    with np.load(tmp_path / "y.npz") as results:
        (hidden,) = (r for r in results.values() if r.ndim == 3)
    from lutcc.cli.hugging_face import calibration_batches, load_text_model

    model = load_text_model(bert)
    with torch.inference_mode():
        given = {name: torch.from_numpy(array) for name, array in few.items()}
        exact = model(**given).last_hidden_state.numpy()
        whole = {name: torch.from_numpy(array) for name, array in tokens(40).items()}
        batches = calibration_batches(model, whole, "here")
        converted = lutcc.convert(model, recipe, batches)(**given).last_hidden_state.numpy()
    attended = few["attention_mask"] > 0
    np.testing.assert_allclose(hidden[attended], converted[attended], atol=0.05)
    assert 1e-4 < np.abs(hidden - exact)[attended].max() < 1  # compressed, and still the model


@pytest.mark.thorough
def test_an_open_length(lutcc_command, bert: Path, tmp_path: Path):
    out, where = tmp_path / "open.lutcc", tmp_path / "given.npz"
    words = ["-o", out, "-t", "avx2", "--length", "tokens", "--json", "-q"]
    done = lutcc_command("compile", bert, *words)
    assert done.code == 0, done.err
    assert done.json["inputs"][0] == "input_ids: int64[n, tokens]"
    from lutcc.cli.hugging_face import load_text_model

    model = load_text_model(bert)
    for rows, length in ((1, 5), (3, POSITIONS)):
        given = tokens(rows, length)
        np.savez(where, **given)
        done = lutcc_command("run", out, where, "-o", tmp_path / "y.npz", "-q")
        assert done.code == 0, done.err
        with np.load(tmp_path / "y.npz") as results, torch.inference_mode():
            hidden = next(r for r in results.values() if r.ndim == 3)
            expected = model(**{name: torch.from_numpy(array) for name, array in given.items()})
        attended = given["attention_mask"] > 0
        exact = expected.last_hidden_state.numpy()
        np.testing.assert_allclose(hidden[attended], exact[attended], rtol=0, atol=1e-5)
    checked = lutcc_command("serve-check", out, "--seconds", 0.4, "--callers", 2, "--json", "-q")
    assert checked.code == 0, checked.err
    names = [times["name"] for times in checked.json["times"]]
    assert names == ["n=1, tokens=16", "n=2, tokens=7", f"n=7, tokens={POSITIONS}",
                     f"n=32, tokens={POSITIONS}", "all"]  # fmt: skip


def copy(bert: Path, tmp_path: Path, **config: Any) -> Path:
    path = shutil.copytree(bert, tmp_path / "copy")
    read = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(read | config))
    return path


def refused(lutcc_command, path: Path, *words: str, code: int = 1) -> str:
    done = lutcc_command("compile", path, "-o", path.parent / "m.lutcc", "-q", *words)
    assert done.code == code
    assert "Traceback" not in done.err
    assert "To mend it" in done.err
    assert not (path.parent / "m.lutcc").exists()
    return done.err


def test_folders_that_cannot_be_loaded(lutcc_command, bert: Path, tmp_path: Path):
    path = copy(bert, tmp_path, architectures=["NoSuchModel"])
    assert "has no model 'NoSuchModel'" in refused(lutcc_command, path)
    (path / "config.json").write_text("{")
    assert "config.json: is no JSON object" in refused(lutcc_command, path)
    shutil.copy(bert / "config.json", path)
    weights = load_file(path / "model.safetensors")
    del weights["pooler.dense.weight"]
    save_file(weights, path / "model.safetensors")
    told = refused(lutcc_command, path)
    assert "1 weights are missing, 'pooler.dense.weight' for one: they would be random" in told
    (path / "model.safetensors").write_bytes(b"damaged")
    assert "cannot load it" in refused(lutcc_command, path)
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    assert "holds no model.safetensors" in refused(lutcc_command, path)


def test_what_a_folder_is_not_taken_for(lutcc_command, bert: Path, tmp_path: Path):
    path = copy(bert, tmp_path, is_encoder_decoder=True)
    assert "has an encoder and a decoder" in refused(lutcc_command, path)
    assert "the model has 20 positions, not 128" in refused(lutcc_command, bert, code=2)
    done = lutcc_command("run", bert, "x.npy")
    assert done.code == 2
    assert "a model in Hugging Face's layout" in done.err
    for command in ("inspect", "tune"):
        assert "the model has 20 positions, not 128" in lutcc_command(command, bert).err


def test_tokens_that_do_not_fit_are_told(lutcc_command, bert: Path, tmp_path: Path):
    wrong = {
        "takes no 'ids'": {"ids": np.zeros((2, 4), int)},
        "given are torch.float32 (2, 4)": {"input_ids": np.zeros((2, 4), np.float32)},
        "given are none": {"attention_mask": np.ones((2, 4), int)},
        "tokens from 0 to 30, but the model knows 30": {"input_ids": np.array([[0, 30]])},
        "attention_mask has 3 rows, input_ids 2": {
            "input_ids": np.zeros((2, 4), int),
            "attention_mask": np.ones((3, 4), int),
        },
    }
    for message, arrays in wrong.items():
        np.savez(tmp_path / "c.npz", **arrays)
        path = str(tmp_path / "c.npz")
        assert message in refused(lutcc_command, bert, "-c", path, "--length", "4")


def test_without_transformers(lutcc_command, bert: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    told = refused(lutcc_command, bert)
    assert "the package transformers cannot be imported" in told
    assert 'pip install "transformers>=4.50"' in told


def test_examples_are_attended_tokens(bert: Path):
    from lutcc.cli.hugging_face import calibration_batches, example_tokens, load_text_model

    model: Any = load_text_model(bert)
    assert not model.training
    made = example_tokens(model, POSITIONS)
    assert made["input_ids"].shape == made["attention_mask"].shape == (2, POSITIONS)
    assert 0 <= made["input_ids"].min() < made["input_ids"].max() < VOCABULARY
    assert made["attention_mask"].all()
    assert (made["input_ids"] != 0).all()  # padding
    model.config.max_position_embeddings = 2 * POSITIONS  # some models count otherwise
    with pytest.raises(UsageError, match=f"the model fails on {POSITIONS + 1} tokens"):
        example_tokens(model, POSITIONS + 1)
    ids = torch.arange(20).reshape(5, 4)
    batches = calibration_batches(model, {"input_ids": ids}, "here", rows=2)
    assert [len(batch["input_ids"]) for batch in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([b["input_ids"] for b in batches]), ids)
    assert all(b["attention_mask"].all() for b in batches)


@pytest.mark.thorough
@pytest.mark.isa("avx2")
def test_a_folder_is_tuned_and_inspected(lutcc_command, bert: Path, tmp_path: Path, monkeypatch):
    """Kernels found at two lengths serve the one of an open length."""
    monkeypatch.chdir(tmp_path)
    Path("exact.toml").write_text('["*.query"]\nmethod = "exact"\ncompute = "int8"\n')
    words = [bert, "-r", "exact.toml", "-q"]
    shown = lutcc_command("inspect", *words, "--length", "5", "--json")
    assert shown.code == 0, shown.err
    assert any("dense(" in module["ir"] for module in shown.json["modules"].values())
    where = ["--length", "tokens=4,6", "--rows", "2", "-t", "avx2", "--effort", "none"]
    done = lutcc_command("tune", *words, *where, "--log-dir", "logs", "--json")
    assert done.code == 0, done.err
    rows = {k["rows"] for k in done.json[0]["kernels"] if k["op"] == "dense"}
    assert rows == {8, 12}
    compiled = ["-t", "avx2", "--length", "tokens", "-o", "m.lutcc", "--json"]
    made = lutcc_command("compile", *words, *compiled, "--tuning-logs", "logs")
    assert made.code == 0, made.err
    kernels = lutcc.load("m.lutcc").explain().kernels
    (source,) = {k.source for k in kernels if str(k.ops[0]).startswith("dense(")}
    assert source.startswith("tuned on")
    assert "(rows 8, 12)" in source


def test_a_folder_is_traced_at_each_length(bert: Path, monkeypatch):
    seen: list[Any] = []
    monkeypatch.setattr(tune, "import_source", lambda args, console: seen.append(args.length))
    for text in ("4,6", "tokens=4,6", "tokens", None):
        args = argparse.Namespace(length=None if text is None else lengths_of(text))
        tune._read(str(bert), args, Console())
    assert seen == [4, 6, "tokens", "tokens", None]


def test_a_factory_is_tuned(lutcc_command, folder: Path):
    words = ["compiled_models:small", "-c", "x.npy", "-t", "avx2", "--rows", "3", "-q"]
    done = lutcc_command("tune", *words, "--effort", "none", "--json")
    assert done.code == 0, done.err
    assert done.json[0]["kernels"]
    for more, message in (
        (["--length", "8"], "a length is for Hugging Face folders, and for programs"),
        (["--length", "tokens=8"], "'tokens' would name a size of a Hugging Face folder's"),
        (["--length", "8,x"], "'8,x' lists no lengths: write 16,128"),
    ):
        refused = lutcc_command("tune", *words, *more)
        assert refused.code == 2
        assert message in refused.err


def test_lengths_are_read() -> None:
    assert lengths_of("16,128,16") == (None, (16, 128))
    assert lengths_of("tokens") == ("tokens", ())
    for text in ("", "n=3", "0", "3,", "a b", "=3", "tokens=x", "1.5"):
        with pytest.raises(argparse.ArgumentTypeError):
            lengths_of(text)
