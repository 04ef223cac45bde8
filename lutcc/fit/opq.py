"""The rotation of optimised product quantisation (OPQ)."""

from __future__ import annotations

import numpy as np
from scipy.linalg import svd
from scipy.sparse import csr_array

#: Most turns of the alternation, and the relative gain below which it stops.
TURNS, LEAST_GAIN = 30, 1e-3


def opq_rotation(
    X: np.ndarray,
    parts: tuple[np.ndarray, ...],
    nprototypes: int,
    random: np.random.RandomState,
) -> np.ndarray:
    """Return R (D, D), orthogonal, such that product quantisation of the rows of X R errs little.

    Parameters
    ----------
    X
        (N, D) rows.
    parts
        The rotated columns that each codebook sees.
    nprototypes
        K.
    random
        Draws the first prototypes.

    Notes
    -----
    Alternates one step of k-means in each subspace of X R with the orthogonal Procrustes problem
    min |X R - Y|, Y what the prototypes give back, from R = I on. Columns keep their means, which
    no rotation of the rows' deviations needs. Source: Ge et al., "Optimized product quantization",
    section 3.1 (non-parametric).

    Examples
    --------
    >>> X = np.random.default_rng(0).normal(size=(50, 4))
    >>> R = opq_rotation(X, (np.arange(2), np.arange(2, 4)), 4, np.random.RandomState(0))
    >>> bool(np.allclose(R @ R.T, np.eye(4)))
    True
    """
    centered = (X - X.mean(axis=0, dtype=np.float64)).astype(np.float32)
    rotation = np.eye(X.shape[1])
    rotated = centered
    count = min(nprototypes, len(X))
    first = rotated[random.choice(len(X), count, replace=False)]
    prototypes = [first[:, part].copy() for part in parts]
    last = np.inf
    for _ in range(TURNS):
        restored = np.empty_like(rotated)
        for number, part in enumerate(parts):
            rows = rotated[:, part]
            codes = _nearest(rows, prototypes[number])
            prototypes[number] = _means(rows, codes, prototypes[number])
            restored[:, part] = prototypes[number][codes]
        error = float(np.square(rotated - restored).sum(dtype=np.float64))
        if not error < last * (1.0 - LEAST_GAIN):
            break
        last = error
        left, _, right = svd((centered.T @ restored).astype(np.float64), check_finite=False)
        rotation = left @ right
        rotated = centered @ rotation.astype(np.float32)
    return rotation


def _nearest(rows: np.ndarray, prototypes: np.ndarray) -> np.ndarray:
    """Return the number of the prototype (K, d) that is nearest to each row (N, d)."""
    half_norms = np.square(prototypes).sum(axis=1) / 2
    return np.argmin(half_norms - rows @ prototypes.T, axis=1)


def _means(rows: np.ndarray, codes: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return the mean of each code's rows; where there are none, what was there."""
    counts = np.bincount(codes, minlength=len(before))
    onehot = csr_array(
        (np.ones(len(rows)), (codes, np.arange(len(rows)))), (len(before), len(rows))
    )
    sums = onehot @ rows
    return np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], before)
