"""Clusters of numbers against exhaustive search and scikit-learn, and degenerate sets."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering, KMeans

from lutcc.codebook_options import CLUSTERINGS
from lutcc.fit.scalar_clustering import cluster_scalars, nearest


def error(values: np.ndarray, means: np.ndarray, weights: np.ndarray | float = 1.0) -> float:
    apart = np.abs(values[:, :, None] - means[:, None, :]).min(axis=2)
    return float((weights * apart**2).sum())


def best_error(values: np.ndarray, count: int, weights: np.ndarray) -> float:
    """Of all partitions of one sorted set into intervals."""
    order = np.argsort(values)
    values, weights, size = values[order], weights[order], len(values)
    best = np.inf
    for inner in combinations(range(1, size), count - 1):
        edges = (0, *inner, size)
        total = 0.0
        for a, b in pairwise(edges):
            mean = np.average(values[a:b], weights=weights[a:b])
            total += float((weights[a:b] * (values[a:b] - mean) ** 2).sum())
        best = min(best, total)
    return best


@pytest.mark.parametrize("weighted", [False, True])
def test_close_to_the_best_partition(weighted: bool) -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal((12, 10))
    weights = random.uniform(0.1, 3, (12, 10)) if weighted else np.ones((12, 10))
    best = sum(best_error(v, 4, w) for v, w in zip(values, weights, strict=True))
    for method, limit in (("hierarchical", 1.3), ("bisecting", 1.3), ("kmeans", 1.7)):
        means = cluster_scalars(values, 4, method, weights=weights if weighted else None)
        assert best <= error(values, means, weights) * (1 + 1e-9) < limit * best


def test_merging_is_ward() -> None:
    values = np.random.default_rng(1).standard_normal((5, 60))
    for row in values:
        labels = AgglomerativeClustering(6).fit(row[:, None]).labels_
        ward = np.sort([row[labels == label].mean() for label in range(6)])
        centres = KMeans(6, init=ward[:, None], n_init=1, tol=0).fit(row[:, None]).cluster_centers_
        ours = cluster_scalars(row[None], 6)[0]
        np.testing.assert_allclose(ours, np.sort(centres[:, 0]), atol=1e-6)


def test_large_sets_are_binned_with_little_loss() -> None:
    values = np.random.default_rng(2).standard_normal((1, 70_000)).astype(np.float32)
    exact = KMeans(8, init=np.quantile(values, np.linspace(0.05, 0.95, 8))[:, None], n_init=1)
    reference = exact.fit(values.reshape(-1, 1)).inertia_
    for method in ("hierarchical", "kmeans"):
        assert error(values, cluster_scalars(values, 8, method)) < 1.01 * reference
    doubled = cluster_scalars(values, 8, weights=np.full(70_000, 2.0))
    np.testing.assert_allclose(doubled, cluster_scalars(values, 8), rtol=1e-9)


def test_cuts_are_where_a_gap_is() -> None:
    groups = np.array([[0.0, 0.1, 0.2, 5.0, 5.1, 9.0, 9.1, 9.2]])
    for method in ("hierarchical", "kmeans", "bisecting", "graph"):
        np.testing.assert_allclose(cluster_scalars(groups, 3, method), [[0.1, 5.05, 9.1]])


def test_random_codebooks_are_worst() -> None:
    values = np.random.default_rng(3).standard_normal((4, 400))
    errors = {m: error(values, cluster_scalars(values, 8, m)) for m in CLUSTERINGS}
    assert errors["hierarchical"] < errors["graph"] < errors["random"]


@pytest.mark.parametrize("method", CLUSTERINGS)
def test_degenerate_sets(method: str) -> None:
    for values in (np.zeros((2, 9)), np.full((1, 3), 5.0), [[1.0, 1.0, 2.0]], [[3.0]]):
        means = cluster_scalars(values, 4, method)
        assert means.shape == (len(values), 4)
        assert np.isfinite(means).all()
        assert (np.diff(means) >= 0).all()
        if method != "random":
            assert error(np.asarray(values), means) == 0


def test_sets_do_not_depend_on_their_neighbours() -> None:
    values = np.random.default_rng(4).standard_normal((7, 300)).astype(np.float32)
    together = cluster_scalars(values, 8)
    for row, means in zip(values, together, strict=True):
        np.testing.assert_allclose(cluster_scalars(row[None], 8)[0], means, rtol=1e-12)


def test_nearest() -> None:
    random = np.random.default_rng(5)
    values = random.standard_normal((6, 50)).astype(np.float32)
    tables = np.sort(random.standard_normal((6, 16)), axis=1)
    expected = np.abs(values[:, :, None] - tables[:, None, :]).argmin(axis=2)
    np.testing.assert_array_equal(nearest(values, tables), expected)
