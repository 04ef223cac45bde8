"""Checkpoints are compressed tensor by tensor in little memory, and go on when interrupted."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lutcc.codebook_weights import CodebookWeights
from lutcc.compress import (
    Checkpoint,
    compress_checkpoint,
    load_compressed,
    load_into,
    read_records,
)
from lutcc.compress import compress as compression
from lutcc.errors import ConvertError, InputError
from lutcc.nn.codebook import CodebookLayer
from lutcc.recipes import Codebook
from tests.compress.llama import Llama, write_checkpoint

OPTIONS = Codebook(alpha=4.2, clustering="kmeans")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    write_checkpoint(folder, Llama(), dtype=torch.bfloat16)
    return folder


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compressed")
    compress_checkpoint(source, folder, OPTIONS, exact=["lm_head"])
    return folder


def test_what_is_stored(source: Path, made: Path) -> None:
    compressed, stored, exact = read_records(made), load_compressed(made), Checkpoint(source)
    assert list(stored) == list(compressed.records) == list(exact.tensors)
    assert {p.name for p in made.iterdir()} == {"model.safetensors", "config.json"}
    for name, record in compressed.records.items():
        tensor = exact.tensor(name)
        assert record.shape == tuple(tensor.shape)
        found = stored[name]
        if name == "lm_head.weight" or tensor.dim() == 1:
            assert isinstance(found, torch.Tensor)
            assert torch.equal(found, tensor.half())
            assert record.footprint.bits == 16 * tensor.numel()
            continue
        assert isinstance(found, CodebookWeights)
        weights, matrix = tensor.float().numpy(), found.dequantize()
        assert record.error == pytest.approx(
            np.linalg.norm(matrix - weights) / np.linalg.norm(weights), rel=1e-4
        )
        assert 0.02 < record.error < 0.3
        assert record.footprint == found.footprint()
        assert record.footprint.alpha >= 4.2
    # the file is no larger than what is counted, apart from its header
    file = made / "model.safetensors"
    with file.open("rb") as opened:
        (header,) = struct.unpack("<Q", opened.read(8))
    scales = sum(2 for w in stored.values() if isinstance(w, CodebookWeights) if len(w.scales) == 1)
    assert file.stat().st_size - 8 - header == compressed.footprint.bits // 8 + scales


def check_loaded(model: nn.Module, path: Path) -> None:
    """Compare every layer with what is stored."""
    parameters = dict(model.named_parameters())
    for name, value in load_compressed(path).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(parameters[name], value.float())
            continue
        layer = model.get_submodule(name.removesuffix(".weight"))
        assert isinstance(layer, CodebookLayer)
        assert not layer.training
        assert np.array_equal(layer.to_weights().dequantize(), value.dequantize())


def test_model_that_holds_it(made: Path) -> None:
    with torch.device("meta"):
        empty = Llama()
    for model in (Llama(), empty):
        loaded = load_into(model, made, compute="float32")
        kinds = {name: type(m).__name__ for name, m in loaded.named_modules()}
        assert kinds["model.embed_tokens"] == "CodebookEmbedding"
        assert kinds["model.layers.1.mlp.down_proj"] == "CodebookLinear"
        assert kinds["lm_head"] == "Linear"
        check_loaded(loaded, made)
        # the file is the state_dict of the model with these layers
        assert set(loaded.state_dict()) == set(load_file(made / "model.safetensors"))
        loaded.load_state_dict(load_file(made / "model.safetensors"))


def test_an_interrupted_run_goes_on(
    source: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[str] = []
    fit = compression._fit
    out = tmp_path / "out.safetensors"

    def count(weights: Any, options: Any) -> Any:
        if len(fitted) == 5 and not out.with_name("killed").exists():
            out.with_name("killed").touch()
            raise KeyboardInterrupt
        fitted.append("fitted")
        return fit(weights, options)

    monkeypatch.setattr(compression, "_fit", count)
    run: dict[str, Any] = {"exact": ["lm_head"]}
    with pytest.raises(KeyboardInterrupt):
        compress_checkpoint(source, out, OPTIONS, **run)
    work = tmp_path / "out.safetensors.partial"
    assert not out.exists()
    parts = sorted(work.glob("*.safetensors"))
    assert len([p for p in parts if "proj" in p.name or "embed" in p.name]) == 5
    with pytest.raises(
        InputError, match=r"interrupted run is there that had alpha=4.2[\s\S]*fresh"
    ):
        compress_checkpoint(source, out, Codebook(alpha=5, clustering="kmeans"), **run)
    damaged = next(p for p in parts if "embed" in p.name)
    damaged.write_bytes(damaged.read_bytes()[:-7])
    fitted.clear()
    compress_checkpoint(source, out, OPTIONS, **run)
    assert len(fitted) == 15 - 5 + 1, "all but what was finished, and what was damaged"
    assert {p.name for p in tmp_path.iterdir()} == {out.name, "killed"}
    ours, whole = load_file(out), load_file(made / "model.safetensors")
    assert ours.keys() == whole.keys()
    assert all(torch.equal(ours[name], whole[name]) for name in whole)


def test_changed_tensors_are_made_again_and_fresh_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    state = {"a.weight": torch.randn(32, 64), "b.weight": torch.randn(32, 64)}
    file, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(state, file)
    fitted: list[float] = []
    fit = compression._fit

    def fail_at_b(weights: Any, options: Any) -> Any:
        fitted.append(float(weights[0, 0]))
        if len(fitted) == 2:
            raise KeyboardInterrupt
        return fit(weights, options)

    monkeypatch.setattr(compression, "_fit", fail_at_b)
    for options in (OPTIONS, OPTIONS):
        fitted.clear()
        with pytest.raises(KeyboardInterrupt):
            compress_checkpoint(file, out, options)
        state["a.weight"] = state["a.weight"] + 1
        save_file(state, file)
    fitted[:] = [0.0, 0.0]
    compress_checkpoint(file, out, Codebook(alpha=5, clustering="kmeans"), fresh=True)
    assert fitted[2:] == [float(state["a.weight"][0, 0]), float(state["b.weight"][0, 0])]


def test_weights_that_are_shared_or_equal(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tied = Llama(1, tied=True)
    state = {name: t.detach().clone() for name, t in tied.state_dict().items()}
    save_file(state, tmp_path / "both.safetensors")
    del state["lm_head.weight"]
    save_file(state, tmp_path / "one.safetensors")
    for name in ("both", "one"):
        out = tmp_path / f"{name}-small.safetensors"
        made = compress_checkpoint(tmp_path / f"{name}.safetensors", out, OPTIONS)
        if name == "both":
            assert made.records["lm_head.weight"].same_as == "model.embed_tokens.weight" or (
                made.records["model.embed_tokens.weight"].same_as == "lm_head.weight"
            )
        model: Any = load_into(Llama(1, tied=True), out, compute="float32")
        assert model.lm_head.holder is model.model.embed_tokens.holder
        check_loaded(model, out)
        assert len(model.state_dict()) == len(load_file(out))


def test_convolutions_and_what_stays_exact(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.Conv2d(32, 32, 3, groups=2))
    state = {name: t.clone() for name, t in net.state_dict().items()}
    state["1.weight"] = torch.full((32,), 1e6)
    extra = {"pos": torch.randn(4, 64), "code.weight": torch.ones(8, 8, dtype=torch.int8),
             "tiny.weight": torch.randn(2, 2), "cube.weight": torch.randn(4, 4, 64)}  # fmt: skip
    save_file(state | extra, tmp_path / "a.safetensors")
    out = tmp_path / "b.safetensors"
    made = compress_checkpoint(tmp_path / "a.safetensors", out, OPTIONS)
    notes = {n: r.note for n, r in made.records.items() if r.method == "exact" and r.note}
    assert notes.keys() == {"pos", "code.weight", "tiny.weight", "cube.weight", "1.weight"}
    assert notes["code.weight"] == "left exact: I8 is not compressed"
    assert "out of reach for 2 x 2 weights" in notes["tiny.weight"]
    assert "3 dimensions" in notes["cube.weight"]
    assert notes["1.weight"] == "kept in float32: too large"
    stored = load_compressed(out)
    conv = stored["2.weight"]
    assert isinstance(conv, CodebookWeights)
    assert conv.shape == (32, 16 * 9)
    assert len(conv.codebooks) == 1, "convolutions have scales"
    assert torch.equal(stored["1.weight"], state["1.weight"])  # pyright: ignore
    assert stored["1.num_batches_tracked"].dtype == torch.int64  # pyright: ignore
    with pytest.raises(ConvertError, match="tensors too many"):
        load_into(net, out)
    small = tmp_path / "c.safetensors"
    compress_checkpoint(
        tmp_path / "a.safetensors", small, OPTIONS, layers=["[0-9].*"], exact=["1.*"]
    )
    for name in ("cube.weight", "tiny.weight"):
        with pytest.raises(InputError, match=name):
            compress_checkpoint(
                tmp_path / "a.safetensors", small, OPTIONS, layers=[name], fresh=True
            )


def test_bad_checkpoints(source: Path, tmp_path: Path) -> None:
    def refused(path: Path, message: str, **options: Any) -> None:
        with pytest.raises(InputError, match=message):
            compress_checkpoint(path, tmp_path / "out.safetensors", OPTIONS, **options)

    (tmp_path / "pickled").mkdir()
    refused(tmp_path / "pickled", r"holds no \*\.safetensors")
    (tmp_path / "pickled" / "model.bin").touch()
    refused(tmp_path / "pickled", "pickles are not read")
    refused(tmp_path / "none.safetensors", "there is no such file")
    torch.save({"a": torch.zeros(3)}, tmp_path / "torch.safetensors")
    refused(tmp_path / "torch.safetensors", "cut off or no safetensors file")
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in source.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    shard = copy / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    refused(copy, "cut off")
    shard.unlink()
    refused(copy, r"the shard model-00002-of-00002.safetensors with \d+ tensors is missing")
    shard.write_bytes(whole)
    index = copy / "model.safetensors.index.json"
    entries = json.loads(index.read_text())
    entries["weight_map"]["ghost.weight"] = shard.name
    index.write_text(json.dumps(entries))
    refused(copy, "1 tensors of the index are in no shard, 'ghost.weight'")
    index.write_text("{")
    refused(copy, "is no index of shards")
    save_file({"a.weight": torch.full((64, 64), float("nan"))}, tmp_path / "nan.safetensors")
    refused(tmp_path / "nan.safetensors", r"4096 of the weights are NaN[\s\S]*--exact a.weight")
    refused(source, "did you mean 'lm_head.weight'", layers=["lm_haed"])
    refused(source, "no tensor is called 'norm'", exact=["norm"])
    with pytest.raises(InputError, match="is the checkpoint itself"):
        compress_checkpoint(tmp_path / "nan.safetensors", tmp_path / "nan.safetensors", OPTIONS)


def test_bad_compressed_files(source: Path, made: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no compressed model"):
        load_compressed(source / "model-00001-of-00002.safetensors")
    with pytest.raises(InputError, match="there is no such file"):
        load_compressed(tmp_path)
    bytes_ = (made / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(bytes_[:-10])
    with pytest.raises(InputError, match="cut off or damaged"):
        load_compressed(tmp_path)
    newer = bytes_.replace(b'"version": "1"', b'"version": "9"')
    (tmp_path / "model.safetensors").write_bytes(newer)
    with pytest.raises(InputError, match="has version 9, this lutcc reads 1"):
        load_compressed(tmp_path)
    with pytest.raises(ConvertError, match="has no layer 'model"):
        load_into(Llama(1), made)


MEMORY = """
import resource, sys
import torch
from lutcc.compress import compress_checkpoint
from lutcc.recipes import Codebook
from lutcc.fit import WeightCodebooks
torch.set_num_threads(1)
options = Codebook(alpha=7.5, clustering="random", reorder="never")
compress_checkpoint(sys.argv[1], sys.argv[2] + "1", options)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
compress_checkpoint(sys.argv[3], sys.argv[2] + "2", options)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_memory_is_that_of_one_layer(tmp_path: Path) -> None:
    """Twelve layers take no more memory than one of them, and the compressed model, do."""
    random = torch.Generator().manual_seed(0)
    layers = {f"{i}.weight": torch.randn(512, 1024, generator=random).half() for i in range(12)}
    size = layers["0.weight"].nbytes
    save_file({"0.weight": layers["0.weight"]}, tmp_path / "one.safetensors")
    save_file(layers, tmp_path / "all.safetensors")
    files = [tmp_path / "one.safetensors", tmp_path / "out", tmp_path / "all.safetensors"]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *map(str, files)], capture_output=True, text=True, check=True
    )
    compressed = (tmp_path / "out2" / "model.safetensors").stat().st_size
    assert compressed < 12 * size / 7
    assert int(done.stdout) < compressed + 2 * size
    with safe_open(tmp_path / "out2" / "model.safetensors", "np") as opened:
        assert len(list(opened.keys())) == 36
