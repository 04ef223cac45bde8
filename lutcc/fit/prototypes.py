"""Prototypes, what codes stand for, and their ridge regression over all codebooks at once.

With G (N, C*K) the one-hot codes, MADDNESS looks for the prototypes P (C*K, D) that minimise

    ||A - G P||^2 + lambda ||P - P0||^2                                        (ITLUMM, eq. 2)

where P0 holds each bucket's mean in its own subspace and zero elsewhere. Written as P = P0 + Delta
this is an ordinary ridge regression of the residual R = A - G P0:  (G^T G + lambda I) Delta = G^T
R.  G is never stored: G^T G consists of C*C blocks of K*K counts, and G^T R is summed over blocks
of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

ROW_BLOCK = 2048
#: Parts of the rows that are held out to choose lambda; up to so many rows of G^T G each in turn,
#: beyond it only one.
FOLDS, FULL_CROSS_VALIDATION = 5, 1024


def bucket_means(
    X: np.ndarray, codes: np.ndarray, parts: tuple[np.ndarray, ...], nprototypes: int, *, tree: bool
) -> np.ndarray:
    """Return P0 (K, D) float64: in the columns of codebook c, row k is the mean of bucket k.

    ``X`` is (N, D), ``codes`` (N, C) uint8. An empty bucket takes the mean of its nearest non-empty
    ancestor (``tree``), or of all rows (otherwise), so that a row never seen in training still
    finds a sensible prototype.
    """
    means = np.empty((nprototypes, X.shape[1]))
    for c, columns in enumerate(parts):
        counts = np.bincount(codes[:, c], minlength=nprototypes).astype(np.float64)
        for column in columns:
            sums = np.bincount(codes[:, c], weights=X[:, column], minlength=nprototypes)
            means[:, column] = _fill_empty(sums, counts, tree)
    return means


def _fill_empty(sums: np.ndarray, counts: np.ndarray, tree: bool) -> np.ndarray:
    """Divide ``sums`` (K,) by ``counts`` (K,); fall back as :func:`bucket_means` says."""
    if counts.all():
        return sums / counts
    if not tree:
        return np.where(counts > 0, sums / np.maximum(counts, 1), sums.sum() / counts.sum())
    below_sums, below_counts = sums.reshape(-1, 2).sum(1), counts.reshape(-1, 2).sum(1)
    ancestors = _fill_empty(below_sums, below_counts, len(below_sums) > 1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.repeat(ancestors, 2))


@dataclass(slots=True)
class NormalEquations:
    """The sufficient statistics of eq. 2 for one set of rows.

    Parameters
    ----------
    gram
        (C*K, C*K) float32, G^T G: exact counts (fewer than 2**24 rows).
    cross
        (C*K, D) float64, G^T R.
    """

    gram: np.ndarray
    cross: np.ndarray

    def __add__(self, other: NormalEquations) -> NormalEquations:
        return NormalEquations(self.gram + other.gram, self.cross + other.cross)

    def __sub__(self, other: NormalEquations) -> NormalEquations:
        return NormalEquations(self.gram - other.gram, self.cross - other.cross)

    def solve(self, ridge_lambda: float, rhs: np.ndarray | None = None) -> np.ndarray:
        """Return Delta, or (G^T G + lambda I)^-1 ``rhs`` in float64."""
        system = self.gram.astype(np.float64)
        system.flat[:: len(system) + 1] += ridge_lambda
        factor = cho_factor(system, lower=True, overwrite_a=True, check_finite=False)
        return cho_solve(factor, self.cross if rhs is None else rhs, check_finite=False)

    def loss(self, delta: np.ndarray, cross: np.ndarray) -> float:
        """Return ||R - G Delta||^2 - ||R||^2, the change of squared error on these rows."""
        return float(
            np.vdot(delta, self.gram @ delta.astype(np.float32)) - 2.0 * np.vdot(delta, cross)
        )


def normal_equations(
    X: np.ndarray, codes: np.ndarray, base: np.ndarray, parts: tuple[np.ndarray, ...]
) -> NormalEquations:
    """Return G^T G and G^T R of ``X`` (N, D) float32, ``codes`` (N, C) and P0 ``base`` (K, D)."""
    nprototypes = len(base)
    return NormalEquations(_gram(codes, nprototypes), _cross(X, codes, base, parts))


def _gram(codes: np.ndarray, nprototypes: int) -> np.ndarray:
    """Return G^T G (C*K, C*K) float32: block (c, d) counts where code i of c meets j of d."""
    ncodebooks = codes.shape[1]
    by_codebook = np.ascontiguousarray(codes.T).astype(np.int32)
    gram = np.zeros((ncodebooks, nprototypes, ncodebooks, nprototypes), dtype=np.float32)
    for c, left in enumerate(by_codebook * nprototypes):
        for d in range(c, ncodebooks):
            block = np.bincount(left + by_codebook[d], minlength=nprototypes**2).reshape(
                nprototypes, nprototypes
            )
            gram[c, :, d, :] = block
            gram[d, :, c, :] = block.T
    return gram.reshape(ncodebooks * nprototypes, ncodebooks * nprototypes)


def _cross(
    X: np.ndarray, codes: np.ndarray, base: np.ndarray, parts: tuple[np.ndarray, ...]
) -> np.ndarray:
    """Return G^T R (C*K, D) float64, R = X - G P0, over blocks of rows that fit in the cache."""
    nprototypes, ncolumns = base.shape
    ncodebooks = codes.shape[1]
    codebook_of_column = np.empty(ncolumns, dtype=np.intp)
    for c, columns in enumerate(parts):
        codebook_of_column[columns] = c
    base32, every = base.astype(np.float32), np.arange(ncolumns)
    first = np.arange(ncodebooks) * nprototypes
    cross = np.zeros((ncodebooks * nprototypes, ncolumns))
    onehot = np.zeros((min(ROW_BLOCK, len(X)), ncodebooks * nprototypes), dtype=np.float32)
    for begin in range(0, len(X), ROW_BLOCK):
        block = codes[begin : begin + ROW_BLOCK]
        residual = X[begin : begin + ROW_BLOCK] - base32[block[:, codebook_of_column], every]
        rows, hot = np.arange(len(block))[:, None], block + first
        onehot[rows, hot] = 1.0
        cross += onehot[: len(block)].T @ residual
        onehot[rows, hot] = 0.0
    return cross


def choose_lambda(folds: list[NormalEquations], weights: np.ndarray | None, *, limit: int) -> float:
    """Return the lambda of eq. 2 with the smallest held-out squared error of the product R B.

    ``folds`` are the statistics of disjoint sets of rows; each of the first ``limit`` is held out
    in turn. ``weights`` is B (D, M), or None for the identity. The search starts at 16 and walks in
    factors of 4 while the error falls; losses are quadratic forms of the statistics, so that no
    pass over the rows is needed.
    """
    total = folds[0]
    for fold in folds[1:]:
        total = total + fold
    held_out = folds[:limit]
    products = [fold.cross if weights is None else fold.cross @ weights for fold in held_out]
    everything = total.cross if weights is None else total.cross @ weights
    losses: dict[int, float] = {}

    def loss(power: int) -> float:
        if power not in losses:
            losses[power] = 0.0
            for fold, product in zip(held_out, products, strict=True):
                delta = (total - fold).solve(4.0**power, everything - product)
                losses[power] += fold.loss(delta, product)
        return losses[power]

    power = 2
    step = 1 if loss(3) < loss(2) else -1
    while -3 <= power + step <= 9 and loss(power + step) < loss(power):
        power += step
    return 4.0**power


def ridge_correction(
    X: np.ndarray,
    codes: np.ndarray,
    base: np.ndarray,
    parts: tuple[np.ndarray, ...],
    weights: np.ndarray | None,
    ridge_lambda: float | None,
    random: np.random.RandomState,
) -> tuple[float, np.ndarray]:
    """Return lambda and Delta (C*K, D), the correction of eq. 2 to the bucket means.

    Parameters
    ----------
    X, codes, base, parts
        As :func:`normal_equations` takes them.
    weights
        B (D, M), or None for the identity.
    ridge_lambda
        lambda; None: the one that errs least on rows that are held out, or 1 if there are too few.
    random
        Draws those.
    """
    if ridge_lambda is not None or len(X) < 2 * FOLDS:
        chosen = 1.0 if ridge_lambda is None else ridge_lambda
        return chosen, normal_equations(X, codes, base, parts).solve(chosen)
    shuffled = random.permutation(len(X))
    groups = [np.sort(shuffled[fold::FOLDS]) for fold in range(FOLDS)]
    size = codes.shape[1] * len(base)
    if size > FULL_CROSS_VALIDATION:
        groups = [groups[0], np.sort(np.concatenate(groups[1:]))]
    folds = [normal_equations(X[rows], codes[rows], base, parts) for rows in groups]
    limit = len(folds) if size <= FULL_CROSS_VALIDATION else 1
    chosen = choose_lambda(folds, weights, limit=limit)
    return chosen, sum(folds[1:], folds[0]).solve(chosen)
