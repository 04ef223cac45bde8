"""Orders of neurons: permutations that put like distributions together."""

from __future__ import annotations

import numpy as np
import pytest

from lutcc.codebook_options import CLUSTERINGS
from lutcc.fit import neuron_clustering
from lutcc.fit.neuron_clustering import distribution_profiles, order_neurons


@pytest.fixture
def kinds() -> tuple[np.ndarray, np.ndarray]:
    """Rows of three kinds in disorder: narrow, wide, and narrow but as large as the wide ones."""
    random = np.random.default_rng(0)
    kind = random.integers(3, size=60)
    matrix = random.standard_normal((60, 200)) * np.array([0.1, 1.0, 0.1])[kind][:, None]
    matrix[kind == 2] += 1
    return matrix.astype(np.float32), kind


@pytest.mark.parametrize("method", CLUSTERINGS[:-1])
def test_like_neurons_are_neighbours(
    method: str, kinds: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix, kind = kinds
    for leaves in (1024, 20):  # with groups of neurons, too
        monkeypatch.setattr(neuron_clustering, "_MOST_LEAVES", leaves)
        order = order_neurons(matrix, 3, method, np.random.RandomState(0))
        assert order.dtype == np.int32
        np.testing.assert_array_equal(np.sort(order), np.arange(60))
        assert np.count_nonzero(np.diff(kind[order])) == 2


def test_random_orders_follow_the_seed(kinds: tuple[np.ndarray, np.ndarray]) -> None:
    orders = [order_neurons(kinds[0], 3, "random", np.random.RandomState(s)) for s in (0, 0, 1)]
    np.testing.assert_array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])


@pytest.mark.parametrize("method", CLUSTERINGS)
def test_small_and_equal_rows(method: str) -> None:
    for matrix in (np.zeros((1, 1)), np.ones((5, 3)), np.zeros((30, 2)), np.eye(3)):
        order = order_neurons(matrix.astype(np.float32), 2, method)
        np.testing.assert_array_equal(np.sort(order), np.arange(len(matrix)))


def test_profiles_are_means_of_sorted_shares() -> None:
    matrix = np.random.default_rng(1).standard_normal((3, 256)).astype(np.float32)
    expected = np.sort(matrix, axis=1).reshape(3, 128, 2).mean(axis=2)
    np.testing.assert_allclose(distribution_profiles(matrix), expected, rtol=1e-6)
