"""Ridge regression over all codebooks against the same problem written with a dense one-hot G."""

from __future__ import annotations

import numpy as np
import pytest

from lutcc.fit.partition import contiguous_partition
from lutcc.fit.prototypes import ROW_BLOCK, bucket_means, choose_lambda, normal_equations

N, D, C, K = 203, 11, 4, 8


@pytest.fixture
def problem() -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...], np.ndarray]:
    random = np.random.default_rng(5)
    X = (
        random.normal(size=(N, 4)) @ random.normal(size=(4, D)) + random.normal(size=(N, D))
    ).astype(np.float32)
    parts = contiguous_partition(D, C)
    firsts = X[:, [part[0] for part in parts]]
    codes = np.clip(firsts * 1.2 + 3, 0, K - 2).astype(np.uint8)  # code K-1 never occurs
    return X, codes, parts, bucket_means(X, codes, parts, K, tree=True)


def one_hot(codes: np.ndarray) -> np.ndarray:
    return np.concatenate([np.eye(K)[column] for column in codes.T], axis=1)


def dense_prototypes(base: np.ndarray, parts: tuple[np.ndarray, ...]) -> np.ndarray:
    P0 = np.zeros((C, K, D))
    for c, columns in enumerate(parts):
        P0[c][:, columns] = base[:, columns]
    return P0.reshape(C * K, D)


def test_partition_is_uneven_but_complete() -> None:
    parts = contiguous_partition(D, C)
    assert [len(part) for part in parts] == [3, 3, 3, 2]
    assert np.concatenate(parts).tolist() == list(range(D))


@pytest.mark.parametrize("ridge_lambda", [0.5, 40.0])
def test_solution_minimises_equation_2(problem, ridge_lambda: float) -> None:
    X, codes, parts, base = problem
    G, P0 = one_hot(codes), dense_prototypes(base, parts)
    delta = normal_equations(X, codes, base, parts).solve(ridge_lambda)
    # min |A - G P|^2 + lambda |P - P0|^2 as one least-squares problem
    stacked = np.concatenate([G, np.sqrt(ridge_lambda) * np.eye(C * K)])
    expected = np.linalg.lstsq(
        stacked, np.concatenate([X, np.sqrt(ridge_lambda) * P0]), rcond=None
    )[0]
    np.testing.assert_allclose(P0 + delta, expected, atol=2e-5)


def test_statistics_do_not_depend_on_row_blocks() -> None:
    random = np.random.default_rng(1)
    rows = 2 * ROW_BLOCK + 17
    X = random.normal(size=(rows, D)).astype(np.float32)
    codes = random.integers(0, K, size=(rows, C)).astype(np.uint8)
    parts = contiguous_partition(D, C)
    base = bucket_means(X, codes, parts, K, tree=True)
    equations = normal_equations(X, codes, base, parts)
    G = one_hot(codes)
    np.testing.assert_array_equal(equations.gram, G.T @ G)
    np.testing.assert_allclose(
        equations.cross, G.T @ (X - G @ dense_prototypes(base, parts)), atol=2e-2
    )


def test_empty_bucket_takes_the_mean_of_its_nearest_ancestor() -> None:
    X = np.array([[1.0], [3.0], [10.0]], np.float32)
    codes = np.array([[0], [0], [3]], np.uint8)
    means = bucket_means(X, codes, contiguous_partition(1, 1), 8, tree=True)
    # leaves 1 and 3 have sibling leaves with rows; 4..7 fall back to the root
    np.testing.assert_allclose(means[:, 0], [2, 2, 10, 10, *[14 / 3] * 4])


def test_empty_bucket_without_tree_takes_the_mean_of_all() -> None:
    X = np.array([[1.0], [3.0], [11.0]], np.float32)
    means = bucket_means(
        X, np.array([[0], [0], [2]], np.uint8), contiguous_partition(1, 1), 4, tree=False
    )
    np.testing.assert_allclose(means[:, 0], [2, 5, 11, 5])


@pytest.mark.parametrize("outputs", [None, 3])
def test_lambda_is_the_best_on_held_out_rows(problem, outputs: int | None) -> None:
    X, codes, parts, base = problem
    weights = None if outputs is None else np.random.default_rng(2).normal(size=(D, outputs))
    groups = np.arange(N) % 5
    folds = [normal_equations(X[groups == g], codes[groups == g], base, parts) for g in range(5)]
    chosen = choose_lambda(folds, weights, limit=5)

    B = np.eye(D) if weights is None else weights
    G, P0 = one_hot(codes), dense_prototypes(base, parts)

    def held_out_error(ridge_lambda: float) -> float:
        error = 0.0
        for g in range(5):
            train, test = groups != g, groups == g
            system = G[train].T @ G[train] + ridge_lambda * np.eye(C * K)
            delta = np.linalg.solve(system, G[train].T @ (X[train] - G[train] @ P0))
            error += np.square((X[test] - G[test] @ (P0 + delta)) @ B).sum()
        return error

    here = held_out_error(chosen)
    assert here <= held_out_error(chosen * 4) * (1 + 1e-6)
    assert here <= held_out_error(chosen / 4) * (1 + 1e-6)


def test_nothing_to_learn_means_a_large_lambda() -> None:
    random = np.random.default_rng(8)
    X = random.normal(size=(400, D)).astype(np.float32)
    codes = random.integers(0, K, size=(400, C)).astype(np.uint8)  # says nothing about X
    parts = contiguous_partition(D, C)
    base = bucket_means(X, codes, parts, K, tree=True)
    folds = [normal_equations(X[g::5], codes[g::5], base, parts) for g in range(5)]
    assert choose_lambda(folds, None, limit=5) >= 4**6
