"""Codebook layers trained together: the latent weights, their gradients, and what training does."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import lutcc
from lutcc.codebook_weights import CodebookWeights, Outliers
from lutcc.errors import ConvertError
from lutcc.nn import CodebookLinear
from lutcc.nn.codebook import CodebookLayer
from lutcc.recipes import Codebook
from lutcc.train.codebook_distillation import distil_codebooks
from lutcc.train.latent_weights import (
    LatentWeights,
    NearestCodeword,
    multiplied_with,
    nearest_indices,
)

RNG = np.random.default_rng(0)


def weights(segmented: bool) -> CodebookWeights:
    """Return a matrix (6, 70) with unsorted codebooks, scales, an order and outliers."""
    outliers = Outliers(
        np.array([0, 1, 1, 1, 1, 1, 2], np.int32),
        np.array([3, 9], np.int32),
        np.array([1, -2], np.float16),
    )
    return CodebookWeights.of(
        RNG.integers(0, 8, (6, 70)),
        RNG.normal(size=(18 if segmented else 2, 8)),
        bits=3,
        scales=RNG.uniform(0.5, 2, 3),
        segment_size=32 if segmented else 0,
        order=RNG.permutation(6),
        outliers=outliers,
    )


@pytest.mark.parametrize("segmented", [False, True])
def test_latent_weights_start_and_end_where_the_layer_is(segmented: bool) -> None:
    layer = CodebookLinear.from_weights(weights(segmented), np.zeros(6), compute="float32")
    before = layer.dequantize()
    latent = LatentWeights(layer)
    torch.testing.assert_close(latent.weight().detach(), before)
    x = torch.randn(2, 70)
    with multiplied_with(layer, latent):
        torch.testing.assert_close(layer(x), x @ before.T)
    latent.finish()
    torch.testing.assert_close(layer.dequantize(), before)
    assert not layer.training


def test_gradients_pass_straight_through_and_by_index() -> None:
    latent = torch.tensor([[-3.0, -1.1, 0.2, 1.4, 9.0]], requires_grad=True)
    tables = torch.tensor([[-1.0, 0.0, 1.0, 2.0]], requires_grad=True)
    found = NearestCodeword.apply(latent, tables)
    assert found.tolist() == [[-1, -1, 0, 1, 2]]
    found.backward(torch.tensor([[1.0, 2.0, 3.0, 4.0, -5.0]]))
    assert latent.grad is not None
    assert latent.grad.numpy().tolist() == [[0, 2, 3, 4, 0]], "those that are driven out stay"
    assert tables.grad is not None
    assert tables.grad.numpy().tolist() == [[3, 3, 4, -5]]
    assert nearest_indices(latent, tables).tolist() == [[0, 0, 1, 2, 3]]


def test_training_lowers_what_the_compressed_model_misses() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 64)]
    exact = nn.Sequential(*layers, nn.ReLU(), nn.Linear(64, 10)).eval()
    x, held_out = torch.randn(256, 4, 4, 4), torch.randn(128, 4, 4, 4)
    small = lutcc.convert(exact, {"*": Codebook(alpha=6.5, learn="none", compute="float32")})
    before = copy.deepcopy(small)
    batches = list(x.split(64))
    losses = distil_codebooks(small, exact, batches, steps=120, learning_rate=0.02)
    assert losses[-1] < losses[0]
    with torch.no_grad():
        missed = [float((m(held_out) - exact(held_out)).square().mean()) for m in (before, small)]
    assert missed[1] < 0.85 * missed[0]
    moved = 0
    for old, new in zip(before.modules(), small.modules(), strict=True):
        if isinstance(new, CodebookLayer) and isinstance(old, CodebookLayer):
            assert new.footprint() == old.footprint()
            moved += int((new.indices != old.indices).sum())
    assert moved, "indices are trained"
    assert all(p.grad is None for p in small.parameters())
    again = copy.deepcopy(before)
    assert (
        distil_codebooks(again, exact, batches, steps=2)
        == losses[:1] + distil_codebooks(copy.deepcopy(before), exact, batches, steps=2)[1:]
    )


def test_what_cannot_be_trained() -> None:
    exact = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(ConvertError, match="0 layers to train, 1 batches"):
        distil_codebooks(exact, exact, [torch.zeros(1, 8)])
    small = nn.Sequential(CodebookLinear.from_linear(nn.Linear(64, 64), alpha=5))
    before = small[0].dequantize()  # type: ignore[operator]
    with pytest.raises(ConvertError, match="the loss is nan at step 0"):
        distil_codebooks(small, nn.Sequential(nn.Linear(64, 64)), [torch.full((2, 64), torch.nan)])
    assert torch.equal(small[0].dequantize(), before)  # type: ignore[operator]
