"""Torch models are compressed layer by layer, and go on when interrupted; activations count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lutcc.codebook_weights import CodebookWeights
from lutcc.compress import compress_model, load_compressed, load_into, read_records
from lutcc.errors import InputError
from lutcc.nn import conversion_codebook
from lutcc.nn.activation_memory import activation_bits
from lutcc.nn.codebook import CodebookLayer
from lutcc.recipes import Codebook

OPTIONS = Codebook(alpha=4.2, clustering="kmeans", steps=3)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(24, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
        nn.Linear(64, 10),
    ).eval()  # fmt: skip


def rows() -> torch.Tensor:
    return torch.rand(300, 24, generator=torch.Generator().manual_seed(1))


def test_model_is_written_and_read(tmp_path: Path) -> None:
    model, out = network(), tmp_path / "small.safetensors"
    made, converted = compress_model(model, out, OPTIONS, rows(), exact=["5"])
    assert list(tmp_path.iterdir()) == [out]
    assert list(made.records) == list(model.state_dict())
    assert read_records(out) == made
    first = made.records["0.weight"]
    assert (first.method, first.rows, first.shape) == ("codebook", 300, (64, 24))
    assert 0 < first.error < 0.2
    assert made.records["5.weight"].method == "exact"
    assert made.records["0.bias"].footprint.bits == 16 * 64
    assert made.activations == {"bits": activation_bits(model, rows()[:1]), "rows": 1}
    loaded = load_into(network(), out)
    state = converted.state_dict()
    for name, value in loaded.state_dict().items():
        assert torch.allclose(value.float(), state[name].float(), atol=1e-3), name
    assert isinstance(loaded.get_submodule("3"), CodebookLayer)
    stored = load_compressed(out)["3.weight"]
    assert isinstance(stored, CodebookWeights)
    assert stored.footprint() == made.records["3.weight"].footprint


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compress_model(network(), tmp_path / "whole.safetensors", OPTIONS, rows())
    fit, fitted = conversion_codebook.fit_matrix, []

    def count(layer: Any, *args: Any, **options: Any) -> Any:
        if len(fitted) == 2:
            raise KeyboardInterrupt
        fitted.append(layer)
        return fit(layer, *args, **options)

    monkeypatch.setattr(conversion_codebook, "fit_matrix", count)
    out = tmp_path / "out.safetensors"
    with pytest.raises(KeyboardInterrupt):
        compress_model(network(), out, OPTIONS, rows())
    assert not out.exists()
    for other in ((OPTIONS, rows()[:200]), (Codebook(alpha=5, steps=3), rows())):
        with pytest.raises(InputError, match=r"an interrupted run is there[\s\S]*--fresh"):
            compress_model(network(), out, *other)
    fitted[:] = [None]
    made, _ = compress_model(network(), out, OPTIONS, rows())
    assert len(fitted) == 2, "one layer was left"
    ours, whole = load_file(out), load_file(tmp_path / "whole.safetensors")
    assert ours.keys() == whole.keys()
    assert all(torch.equal(ours[name], whole[name]) for name in whole)
    other = read_records(tmp_path / "whole.safetensors").records
    assert {n: (r.error, r.rows, r.note) for n, r in made.records.items()} == {
        n: (r.error, r.rows, r.note) for n, r in other.items()
    }


def test_tied_layers_without_data(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(50, 32), nn.Linear(32, 50)
            self.head.weight = self.embed.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed(ids))

    out = tmp_path / "small.safetensors"
    made, _ = compress_model(Tied(), out, OPTIONS)
    shared = {r.same_as for r in made.records.values()}
    assert shared == {"", "embed.weight"}
    assert made.footprint.weights == 50 * 32 + 50
    loaded: Any = load_into(Tied(), out)
    assert loaded.head.holder is loaded.embed
    assert np.array_equal(
        loaded.head.to_weights().dequantize(), loaded.embed.to_weights().dequantize()
    )


class Skip(nn.Module):
    """What a skip connection keeps counts as long as it is needed."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 100), nn.Linear(100, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu_(self.up(x + 1))
        return self.down(y) + x


def test_activations_are_those_held_at_once() -> None:
    # x, y, the product and the sum; x + 1 is gone by then
    whole = torch.zeros(9, 8)
    assert activation_bits(Skip(), whole[:1]) == 16 * (8 + 100 + 8 + 8)
    assert activation_bits(Skip().double(), whole[:3].double()) == 3 * 16 * (8 + 100 + 8 + 8)
    embedding = nn.Embedding(10, 4)
    ids = torch.zeros(1, 5, dtype=torch.int64)
    assert activation_bits(embedding, ids) == 5 * 64 + 5 * 4 * 16
