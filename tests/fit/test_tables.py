"""Tables in 8 bits, their bound, and the bias of averaging."""

from __future__ import annotations

import numpy as np
import pytest

from lutcc.fit.lookup import lut_accumulate
from lutcc.fit.tables import EXACT_IN_FLOAT32, accumulator_bound, averaging_bias, quantize_tables


def reference_mean(codes: np.ndarray, lut: np.ndarray, upcast_every: int) -> np.ndarray:
    """bolt's reference: pad with zeros, average neighbours with (a + b + 1) // 2, add the
    groups."""
    C, _, M = lut.shape
    picked = np.stack([lut[c][codes[:, c]] for c in range(C)], axis=1).astype(np.int64)
    groups = -(-C // upcast_every)
    padded = np.zeros((len(codes), groups * upcast_every, M), np.int64)
    padded[:, :C] = picked
    tree = padded.reshape(len(codes), groups, upcast_every, M)
    while tree.shape[2] > 1:
        tree = (tree[:, :, 0::2] + tree[:, :, 1::2] + 1) // 2
    return tree[:, :, 0].sum(axis=1)


def test_every_entry_is_within_half_a_step() -> None:
    tables = np.random.default_rng(0).normal(size=(7, 16, 5)) * 10.0 ** np.arange(-2, 3)
    quantized = quantize_tables(tables)
    lowest = tables.min(axis=1, keepdims=True)
    rebuilt = quantized.lut * quantized.scale.astype(np.float64) + lowest
    assert (np.abs(rebuilt - tables) <= 0.5001 * quantized.scale).all()
    np.testing.assert_allclose(quantized.offset, lowest.sum(axis=(0, 1)), rtol=1e-6)
    assert (
        quantized.lut.max(axis=(0, 1)) == 255
    ).all()  # the widest codebook of each column uses all levels
    assert (quantized.lut.min(axis=1) == 0).all()


def test_offset_makes_the_training_rows_unbiased() -> None:
    random = np.random.default_rng(1)
    tables = random.normal(size=(8, 4, 6))
    codes = random.integers(0, 4, size=(50, 8)).astype(np.uint8)
    frequency = np.stack([np.bincount(c, minlength=4) for c in codes.T]) / 50
    exact = sum(tables[c][codes[:, c]] for c in range(8))
    quantized = quantize_tables(tables, frequency)
    products = (
        lut_accumulate(codes, quantized.lut, "exact", 2) * quantized.scale.astype(float)
        + quantized.offset
    )
    np.testing.assert_allclose((products - exact).mean(axis=0), 0, atol=1e-6)


def test_constant_columns_become_offsets_only() -> None:
    tables = np.full((3, 4, 2), 1.25)
    tables[:, :, 1] = 1e-42 * np.arange(4)
    quantized = quantize_tables(tables)
    assert not quantized.lut.any()
    assert not quantized.scale.any()
    np.testing.assert_allclose(quantized.offset, [3.75, 0], atol=1e-40)


def test_bound_is_reached_and_never_exceeded() -> None:
    lut = np.random.default_rng(2).integers(0, 256, size=(9, 16, 4)).astype(np.uint8)
    worst = lut.argmax(axis=1).T.astype(np.uint8)  # the codes that maximise column m
    sums = lut_accumulate(worst, lut, "exact", 2)
    assert accumulator_bound(lut) == sums.max() == np.diag(sums).max()


def test_many_codebooks_lower_the_levels_so_that_float32_stays_exact() -> None:
    tables = np.zeros((70_000, 2, 1))
    tables[:, 1] = 1.0
    quantized = quantize_tables(tables)
    assert quantized.acc_bound <= EXACT_IN_FLOAT32
    assert quantized.acc_bound > 0.99 * EXACT_IN_FLOAT32
    assert float(np.float32(quantized.acc_bound)) == quantized.acc_bound


@pytest.mark.parametrize("upcast_every", [2, 4, 8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("ncodebooks", [1, 2, 3, 16, 37])
def test_host_average_is_bolts_reference(upcast_every: int, ncodebooks: int) -> None:
    random = np.random.default_rng(upcast_every + ncodebooks)
    lut = random.integers(0, 256, size=(ncodebooks, 16, 3)).astype(np.uint8)
    codes = random.integers(0, 16, size=(40, ncodebooks)).astype(np.uint8)
    np.testing.assert_array_equal(
        lut_accumulate(codes, lut, "mean", upcast_every), reference_mean(codes, lut, upcast_every)
    )


@pytest.mark.parametrize("upcast_every", [2, 4, 8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("ncodebooks", [8, 16, 19, 64])
def test_bias_formula_matches_the_mean_excess(upcast_every: int, ncodebooks: int) -> None:
    random = np.random.default_rng(ncodebooks)
    # The derivation takes odd and even as equally likely: eight odd and eight even entries in every
    # table column.
    parity = random.permuted(
        np.broadcast_to((np.arange(16) % 2)[None, :, None], (ncodebooks, 16, 8)), axis=1
    )
    lut = (2 * random.integers(0, 128, size=(ncodebooks, 16, 8)) + parity).astype(np.uint8)
    lut[:, :, 1] = 0  # a column without tables: nothing to round
    lut[1::2, :, 2] = 0  # every second codebook constant in this column
    codes = random.integers(0, 16, size=(8000, ncodebooks)).astype(np.uint8)
    excess = lut_accumulate(codes, lut, "mean", upcast_every) * float(upcast_every)
    excess -= lut_accumulate(codes, lut, "exact", upcast_every)
    bias = averaging_bias(lut, upcast_every)
    tolerance = 6 * excess.std(axis=0) / np.sqrt(len(excess)) + 0.005 * bias
    assert (np.abs(excess.mean(axis=0) - bias) <= tolerance).all(), (excess.mean(axis=0), bias)
    assert bias[1] == 0


@pytest.mark.parametrize("upcast_every", [2, 8, 64])
def test_full_groups_have_the_bias_of_the_paper(upcast_every: int) -> None:
    lut = np.ones((2 * upcast_every, 4, 1), np.uint8)
    assert averaging_bias(lut, upcast_every)[0] == 2 * upcast_every * np.log2(upcast_every) / 4
