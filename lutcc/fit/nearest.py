"""Nearest-centroid codes (product quantisation): k-means in every subspace."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning


def fit_nearest(
    X: np.ndarray,
    parts: tuple[np.ndarray, ...],
    nprototypes: int,
    max_rows: int,
    random: np.random.RandomState,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, ...]]:
    """Return what :func:`lutcc.fit.lookup.nearest_encode` takes: of each part its own columns.

    Returns
    -------
    tuple
        Centroids (K, D) float32, their columns one part after the other; half their squared norms
        (C, K) float32; the columns (D,) int32; where parts begin, and the end.
    """
    columns = np.concatenate(parts).astype(np.int32)
    found = fit_centroids(X, parts, nprototypes, max_rows, random)
    centroids = np.ascontiguousarray(found[:, columns])
    starts = (0, *(int(end) for end in np.cumsum([len(part) for part in parts])))
    squares = centroids.astype(np.float64) ** 2 / 2
    half_norms = np.add.reduceat(squares, starts[:-1], axis=1).T.astype(np.float32)
    return centroids, half_norms, columns, starts


def fit_centroids(
    X: np.ndarray,
    parts: tuple[np.ndarray, ...],
    nprototypes: int,
    max_rows: int,
    random: np.random.RandomState,
) -> np.ndarray:
    """Return centroids (K, D) float32: per subspace those of k-means, in its own columns.

    ``X`` is (N, D) float32. At most ``max_rows`` rows, drawn without replacement, are clustered. A
    subspace with no more than K distinct rows keeps each of them as a centroid and repeats the last
    (the encoder takes the first of equals).

    Source: Jegou et al., product quantisation, as ITLUMM section 1 recalls it; k-means++ start, one
    run.
    """
    if len(X) > max_rows:
        X = X[np.sort(random.choice(len(X), max_rows, replace=False))]
    centroids = np.empty((nprototypes, X.shape[1]), dtype=np.float32)
    for columns in parts:
        subspace = np.ascontiguousarray(X[:, columns])
        seed = int(random.randint(2**31 - 1))
        distinct = np.unique(subspace[: 64 * nprototypes], axis=0)
        if len(distinct) <= nprototypes:
            distinct = np.unique(subspace, axis=0)
        if len(distinct) <= nprototypes:
            padding = np.repeat(distinct[-1:], nprototypes - len(distinct), axis=0)
            centroids[:, columns] = np.concatenate([distinct, padding])
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = KMeans(nprototypes, n_init=1, max_iter=50, random_state=seed).fit(subspace)
        centroids[:, columns] = model.cluster_centers_
    return centroids
