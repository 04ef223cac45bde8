"""The balanced tree: cuts are optimal, and leaves are what the encoder computes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutcc.fit.lookup import tree_encode
from lutcc.fit.tree import fit_balanced_tree


def squared_error(targets: np.ndarray, buckets: np.ndarray) -> float:
    return sum(
        float(np.square(targets[buckets == b] - targets[buckets == b].mean(axis=0)).sum())
        for b in np.unique(buckets)
    )


def best_single_cut(X: np.ndarray, targets: np.ndarray) -> float:
    """Try every column and every threshold."""
    losses = [squared_error(targets, np.zeros(len(X)))]
    for column in X.T:
        losses += [
            squared_error(targets, column > threshold) for threshold in np.unique(column)[:-1]
        ]
    return min(losses)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 25), st.integers(1, 4), st.booleans())
def test_first_cut_is_the_best_of_all(seed: int, nrows: int, ncolumns: int, ties: bool) -> None:
    random = np.random.default_rng(seed)
    X = random.normal(size=(nrows, ncolumns)).astype(np.float32)
    if ties:
        X = np.round(X)
    targets = random.normal(size=(nrows, 3)) + X @ random.normal(size=(ncolumns, 3))
    tree = fit_balanced_tree(X, 1, ncolumns, targets)
    assert squared_error(targets, tree.leaves) == pytest.approx(
        best_single_cut(X, targets), rel=1e-9, abs=1e-9
    )


def test_second_level_thresholds_are_optimal_per_bucket_and_share_a_column() -> None:
    random = np.random.default_rng(3)
    X = random.normal(size=(60, 3)).astype(np.float32)
    tree = fit_balanced_tree(X, 2, 3)
    first = X[:, tree.splitdims[0]] > tree.splitvals[1]
    best = min(
        sum(best_single_cut_in(X[first == side], column) for side in (False, True))
        for column in range(3)
    )
    assert squared_error(X, tree.leaves) == pytest.approx(best, rel=1e-5)


def best_single_cut_in(X: np.ndarray, column: int) -> float:
    return min(squared_error(X, X[:, column] > t) for t in np.unique(X[:, column]))


@pytest.mark.parametrize("depth", range(1, 8))
@pytest.mark.parametrize("nrows", [1, 2, 5, 300])
def test_leaves_are_the_codes_of_the_training_rows(depth: int, nrows: int) -> None:
    X = np.random.default_rng(depth).normal(size=(nrows, 6)).astype(np.float32)
    tree = fit_balanced_tree(X, depth, 4)
    codes = tree_encode(X, tree.splitdims[None], tree.splitvals[None])
    np.testing.assert_array_equal(codes[:, 0], tree.leaves)
    assert tree.splitvals.shape == (2**depth,)
    assert np.isfinite(tree.splitvals).all()


def test_constant_columns_put_everything_left() -> None:
    tree = fit_balanced_tree(np.full((10, 3), 7.5, np.float32), 4, 4)
    assert not tree.leaves.any()


def test_neighbouring_floats_are_parted() -> None:
    low = np.float32(1.0)
    X = np.array([[low], [np.nextafter(low, np.float32(2))]], np.float32)
    assert fit_balanced_tree(X, 1, 1).leaves.tolist() == [0, 1]


def test_large_offsets_do_not_spoil_the_cut() -> None:
    X = (np.r_[np.zeros(50), np.ones(50)][:, None] + 1e6).astype(np.float32)
    assert fit_balanced_tree(X, 1, 1).leaves.tolist() == [0] * 50 + [1] * 50


def test_informative_columns_are_tried_first() -> None:
    random = np.random.default_rng(0)
    X = random.normal(size=(500, 20)).astype(np.float32) * 10
    X[:, 13] *= 0.1  # small, but all that the targets depend on
    tree = fit_balanced_tree(X, 3, 1, X[:, [13]])
    assert tree.splitdims.tolist() == [13, 13, 13]
