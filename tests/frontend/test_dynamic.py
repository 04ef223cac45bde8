"""Several open sizes: batch and sequence length in one artifact, with padding masks."""

from __future__ import annotations

import os

os.environ.setdefault("TVM_BIND_THREADS", "0")

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lutcc
from lutcc.data import minilm
from lutcc.errors import FrontendError, InputError
from lutcc.frontend import import_torch

BOTH = {0: "n", 1: "length"}


class _Encoder(nn.Module):
    """Two layers over at most 40 positions, as padded text has it."""

    positions: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
        self.tokens, self.places = nn.Embedding(11, 16), nn.Embedding(40, 16)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)
        self.register_buffer("positions", torch.arange(40)[None])

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        places = self.places(self.positions[:, : ids.shape[1]])
        x = self.layers(self.tokens(ids) + places, src_key_padding_mask=mask == 0)
        return self.head(x), (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def _text(batch: int, length: int, tokens: int = 11) -> dict[str, torch.Tensor]:
    mask = torch.ones(batch, length, dtype=torch.int64)
    for row in range(batch):
        mask[row, max(1, length - 2 * row) :] = 0
    return {"ids": torch.randint(0, tokens, (batch, length)), "mask": mask}


@pytest.fixture(scope="module")
def encoder() -> tuple[nn.Module, lutcc.Artifact]:
    torch.manual_seed(0)
    model = _Encoder().eval()
    # an example of one row of one token: torch would take these sizes for fixed
    return model, lutcc.compile(model, _text(1, 1), dynamic=BOTH, target="avx2")


@pytest.mark.one_in(6)
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 7), (3, 1), (1, 33), (5, 16), (2, 40)])
def test_transformer_encoder(encoder: tuple[Any, Any], batch: int, length: int) -> None:
    model, artifact = encoder
    text = _text(batch, length)
    with torch.inference_mode():
        expected = model(**text)
    for ours, theirs in zip(artifact(*text.values()), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_model_s_own_bound_is_found_told_and_kept(
    encoder: tuple[Any, Any], tmp_path: Path
) -> None:
    _, artifact = encoder
    assert [str(spec) for spec in artifact.inputs] == [
        "ids: int64[n, length]",
        "mask: int64[n, length]",
    ]
    explained = artifact.explain()
    assert explained.open_sizes == ("n (at least 1)", "length (1 to 40)")
    assert "open sizes  n (at least 1), length (1 to 40)" in str(explained)
    assert any("attention(nxlengthx" in op for k in explained.kernels for op in k.ops)
    artifact.save(tmp_path / "encoder.lutcc")
    loaded = lutcc.load(tmp_path / "encoder.lutcc")
    with pytest.raises(InputError, match="length is 41, and the model takes 1 to 40"):
        loaded(*_text(2, 41).values())
    with pytest.raises(InputError, match="length"):  # the tensors disagree
        loaded(_text(2, 5)["ids"], _text(2, 6)["mask"])
    with pytest.raises(InputError, match="length is 0"):
        loaded(*_text(2, 0).values())


def test_regions_see_rows_of_both_sizes() -> None:
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)).eval()
    imported = import_torch(model, torch.randn(2, 3, 6), dynamic={0: "n", 1: "length"})
    (region,) = imported.regions
    assert str(region.module.main.params[0].type) == "float32[length.n, 6]"
    artifact = lutcc.compile(model, torch.randn(2, 3, 6), dynamic=[("n", "length")], target="avx2")
    for shape in ((1, 1, 6), (3, 5, 6), (2, 130, 6)):
        x = torch.randn(shape)
        torch.testing.assert_close(artifact(x), model(x).detach(), rtol=1e-4, atol=1e-4)


def test_look_ups_see_rows_of_both_sizes() -> None:
    x = torch.randn(64, 8)
    recipe = {"*": lutcc.recipes.Maddness(ncodebooks=4)}
    model = lutcc.convert(nn.Sequential(nn.Linear(8, 5)).eval(), recipe, x).eval()
    artifact = lutcc.compile(model, x[:6].reshape(2, 3, 8), dynamic=BOTH, target="avx2")
    whole = artifact(x.reshape(4, 16, 8))
    assert whole.shape == (4, 16, 5)
    np.testing.assert_array_equal(whole, artifact(x.reshape(64, 1, 8)).reshape(4, 16, 5))
    torch.testing.assert_close(whole, model(x.reshape(4, 16, 8)).detach(), rtol=1e-4, atol=1e-4)


def test_names_of_an_exported_program() -> None:
    sizes = {0: torch.export.Dim("rows", min=1), 1: torch.export.Dim("columns", min=1, max=9)}
    program = torch.export.export(nn.Softmax(-1), (torch.randn(3, 5),), dynamic_shapes=(sizes,))
    imported = import_torch(program)
    assert str(imported.inputs[0]) == "input: float32[n, columns]"
    assert imported.graph is not None
    assert imported.graph.bounds == {"n": (1, None), "columns": (1, 9)}
    with pytest.raises(FrontendError, match="has its open sizes already"):
        import_torch(program, dynamic=BOTH)


class _Halves(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], 2, 3)


@pytest.mark.parametrize(
    ("model", "dynamic", "told"),
    [
        (nn.Softmax(-1), {"y": {0: "n"}}, "no input 'y' among input"),
        (nn.Softmax(-1), {"input": {2: "n"}}, "no dimension 2"),
        (nn.Softmax(-1), {"input": {0: 7}}, "size 7 is no name"),
        (nn.Softmax(-1), [{0: "n"}, None], "lists 2 inputs"),
        (nn.Softmax(-1), {0: "n", 1: "n"}, "n is 2 in example input 'input' and 6"),
        (_Halves(), {0: "n", 1: "width"}, "does not take every n and width"),
    ],
)
def test_what_does_not_fit_is_refused(model: nn.Module, dynamic: Any, told: str) -> None:
    with pytest.raises(FrontendError, match=told) as caught:
        import_torch(model.eval(), torch.randn(2, 6), dynamic=dynamic)
    assert caught.value.fix


def test_inputs_behind_a_star_keep_their_batch_open() -> None:
    class Sum(nn.Module):
        def forward(self, *parts: torch.Tensor) -> torch.Tensor:
            return parts[0] + parts[1]

    imported = import_torch(Sum().eval(), (torch.zeros(2, 3), torch.zeros(2, 3)))
    assert [str(port).split(": ")[1] for port in imported.inputs] == ["float32[n, 3]"] * 2


@pytest.mark.thorough
@pytest.mark.skipif(not minilm.available(), reason="all-MiniLM-L6-v2 is not installed")
def test_minilm_at_every_batch_and_length() -> None:
    model = minilm.load().model
    names = ("input_ids", "token_type_ids", "attention_mask")

    def text(batch: int, length: int) -> dict[str, torch.Tensor]:
        made = _text(batch, length, tokens=30000)
        return dict(zip(names, (made["ids"], made["ids"] * 0, made["mask"]), strict=True))

    artifact = lutcc.compile(model, text(2, 5), dynamic=BOTH, target="avx2")
    assert artifact.explain().open_sizes == ("n (at least 1)", "length (1 to 512)")
    for batch, length in ((1, 1), (8, 1), (3, 7), (8, 7), (1, 16), (5, 16), (1, 128), (2, 128)):
        inputs = text(batch, length)
        with torch.inference_mode():
            expected = model(**inputs)
        states, pooled = artifact(*inputs.values())
        torch.testing.assert_close(states, expected[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(pooled, expected[1], rtol=1e-4, atol=1e-4)
