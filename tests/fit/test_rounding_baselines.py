"""Grids, AdaRound and k-means of channels: what they are, at the footprint that is asked for."""

from __future__ import annotations

import numpy as np
import pytest

from lutcc.fit.codebook_plan import plan_codebooks
from lutcc.fit.rounding_baselines import adaround, channel_kmeans, round_to_nearest
from tests.fit.test_codebook_learning import layer, output_error

REGIONS = [(1, 0), (5, 0), (12, 0), (36, 32)]


@pytest.mark.parametrize(("regions", "segment_size"), REGIONS)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_rounding_takes_the_nearest_point(bits: int, regions: int, segment_size: int) -> None:
    W, _, _ = layer()
    weights = round_to_nearest(W, bits, regions=regions, segment_size=segment_size)
    half = 2 ** (bits - 1)
    assert weights.codebooks.tolist() == [list(range(-half, half))]
    assert weights.footprint().scales == 16 * regions
    other = weights.unpacked()
    missed = np.abs(weights.dequantize() - W)
    for step in (-1, 1):
        moved = np.clip(other.astype(int) + step, 0, 2 * half - 1)
        scale = weights.dequantize() / np.where(other == half, 1, other - float(half))
        valid = other != half
        assert (missed <= np.abs((moved - half) * scale - W) + 1e-6)[valid].all()


def test_finer_scales_miss_less() -> None:
    W, _, _ = layer()
    errors = [
        np.square(round_to_nearest(W, 3, regions=r, segment_size=s).dequantize() - W).sum()
        for r, s in REGIONS
    ]
    assert errors[0] > errors[2] > errors[3]


def test_zeros_stay_zero() -> None:
    assert not round_to_nearest(np.zeros((3, 64), np.float32), 2, regions=3).dequantize().any()


@pytest.mark.parametrize(("regions", "segment_size"), REGIONS)
def test_kmeans_has_the_mean_of_its_weights(regions: int, segment_size: int) -> None:
    W, _, _ = layer()
    weights = channel_kmeans(W, 2, regions=regions, segment_size=segment_size, random_state=0)
    grid = round_to_nearest(W, 2, regions=regions, segment_size=segment_size)
    assert weights.codebooks.shape == (regions, 4)
    error = np.square(weights.dequantize() - W).sum()
    assert error < np.square(grid.dequantize() - W).sum()
    if regions == len(W):
        for row in range(len(W)):
            for entry in range(4):
                mean = W[row][weights.unpacked()[row] == entry].mean()
                assert weights.codebooks[row, entry] == pytest.approx(mean, rel=0.02, abs=1e-3)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_adaround_rounds_up_or_down_for_the_outputs(activation: str | None) -> None:
    W, X, bias = layer()
    nearest = round_to_nearest(W, 3, regions=len(W))
    rounded = adaround(
        W, X, None, bias, bits=3, regions=len(W), activation=activation, steps=200, random_state=0
    )
    assert rounded.footprint() == nearest.footprint()
    np.testing.assert_array_equal(rounded.scales, nearest.scales)
    assert np.abs(rounded.unpacked().astype(int) - nearest.unpacked()).max() == 1
    if activation is None:
        assert output_error(rounded, W, X) < 0.65 * output_error(nearest, W, X)
    else:
        written = [np.maximum(X @ w.dequantize().T + bias, 0) for w in (rounded, nearest)]
        exact = np.maximum(X @ W.T + bias, 0)
        assert np.square(written[0] - exact).mean() < 0.75 * np.square(written[1] - exact).mean()


def test_a_plan_gives_equal_footprints() -> None:
    W = np.random.default_rng(0).normal(size=(96, 128)).astype(np.float32)
    plan = plan_codebooks(7.5, 96, 128, "scales")
    weights = round_to_nearest(W, plan.bits, regions=plan.scales, segment_size=plan.segment_size)
    assert weights.footprint().bits == plan.footprint.bits
