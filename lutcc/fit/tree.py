"""Balanced binary regression trees, the hash of MADDNESS.

One tree per codebook. All nodes of a level compare the same column ("split dimension") with their
own threshold, so that a row is encoded by ``depth`` comparisons. Source: Blalock & Guttag,
"Multiplying Matrices Without Multiplying", section 4.1 and algorithms 1-3, as summarised in ITLUMM,
sections 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lutcc.fit.inputs import product_metric
from lutcc.fit.thresholds import thresholds_between


class BalancedTree(NamedTuple):
    """A fitted tree over the columns of one subspace.

    Parameters
    ----------
    splitdims
        (L,) int32, the column that level ``l`` compares, local to the subspace.
    splitvals
        (2**L,) float32 thresholds in heap order: entry 0 is unused, node ``h`` has children ``2h``
        and ``2h + 1``.
    leaves
        (N,) uint8, the leaf of every training row.
    """

    splitdims: np.ndarray
    splitvals: np.ndarray
    leaves: np.ndarray


def fit_trees(
    X: np.ndarray,
    parts: Sequence[np.ndarray],
    depth: int,
    candidates: int,
    weights: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grow a tree on each part's columns of ``X`` (N, D) float32.

    With ``weights`` (D, M), rows are grouped by their share of the product ``X @ weights``; with
    None by themselves.

    Returns
    -------
    tuple
        Split dimensions (C, L) among all columns, thresholds (C, 2**L), leaves (N, C).
    """
    trees: list[BalancedTree] = []
    for part in parts:
        subspace, targets = X[:, part], None
        if weights is not None:
            targets = subspace @ product_metric(weights[part])
        trees.append(fit_balanced_tree(subspace, depth, candidates, targets))
    dims = np.stack([part[tree.splitdims] for part, tree in zip(parts, trees, strict=True)])
    thresholds = np.stack([tree.splitvals for tree in trees])
    return dims, thresholds, np.stack([tree.leaves for tree in trees], axis=1)


def fit_balanced_tree(
    X: np.ndarray, depth: int, candidates: int, targets: np.ndarray | None = None
) -> BalancedTree:
    """Grow one balanced tree on ``X`` (N, d) float32, N >= 1, greedily and level by level.

    Rows are to be grouped so that ``targets`` (N, t) varies little within a bucket; None stands for
    X itself, which is MADDNESS. Every level ranks the columns by how much of the squared deviation
    of the targets they explain linearly within the buckets, and tries the first ``candidates``. For
    each of them the best threshold of every bucket is exact: of all cuts between two distinct
    values, the one that leaves the smallest sum of squared errors over all targets. The column with
    the smallest total wins.

    A bucket that cannot be cut (empty, one row, constant column) keeps all its rows on the left.

    Source: MADDNESS, algorithms 2 and 3 ("optimal_split_threshold" by cumulative sums).

    Examples
    --------
    >>> tree = fit_balanced_tree(np.float32([[0.0], [1.0], [5.0], [6.0]]), depth=1, candidates=1)
    >>> tree.splitvals.tolist(), tree.leaves.tolist()
    ([0.0, 3.0], [0, 0, 1, 1])
    """
    nrows, ncolumns = X.shape
    columns = np.ascontiguousarray(X.T)
    shifted = columns.astype(np.float64)
    shifted -= shifted.mean(axis=1, keepdims=True)
    centered = np.array(shifted if targets is None else targets.T, dtype=np.float64, order="C")
    ascending: dict[int, np.ndarray] = {}
    nodes = np.zeros(nrows, dtype=np.uint8)
    splitdims = np.zeros(depth, dtype=np.int32)
    splitvals = np.zeros(2**depth, dtype=np.float32)

    for level in range(depth):
        sizes = np.bincount(nodes, minlength=2**level)
        _center_buckets(centered, nodes, sizes)
        ranked = np.arange(ncolumns)
        if candidates < ncolumns:
            ranked = _rank_columns(shifted, centered, nodes, sizes)[:candidates]
        ends = np.cumsum(sizes)
        filled = np.flatnonzero(sizes)
        weight = _cut_weights(sizes[filled])

        best_gain, best_dim, best_cuts = -1.0, 0, (splitvals[:0], splitvals[:0])
        for dim in ranked.tolist():
            if dim not in ascending:
                ascending[dim] = np.argsort(columns[dim])
            order = ascending[dim]
            if level:
                order = order[np.argsort(nodes[order], kind="stable")]
            gain, *cuts = _best_cuts(centered, order, columns[dim][order], ends, filled, weight)
            if gain > best_gain:
                best_gain, best_dim, best_cuts = gain, dim, cuts
        column = columns[best_dim]
        thresholds = thresholds_between(*best_cuts, column[ascending[best_dim]])
        splitdims[level] = best_dim
        splitvals[2**level : 2 ** (level + 1)] = thresholds
        nodes = (2 * nodes + (column > thresholds[nodes])).astype(np.uint8)
    return BalancedTree(splitdims, splitvals, nodes)


def _rank_columns(
    shifted: np.ndarray, centered: np.ndarray, nodes: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """Return the columns, first the one that linearly explains most deviation of the targets.

    ``shifted`` (d, N) are the columns less their means, ``centered`` (t, N) the targets less the
    means of their buckets. The latter sum to zero in every bucket, so covariances within buckets
    need no centring of the columns, and their deviations only the bucket sums.
    """
    count = np.maximum(sizes, 1)
    deviation = np.einsum("dn,dn->d", shifted, shifted)
    for column, row in enumerate(shifted):
        sums = np.bincount(nodes, weights=row, minlength=len(sizes))
        deviation[column] -= (sums * sums / count).sum()
    covariance = np.square(shifted @ centered.T).sum(axis=1)
    explained = np.divide(covariance, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    return np.argsort(-explained, kind="stable")


def _center_buckets(centered: np.ndarray, nodes: np.ndarray, sizes: np.ndarray) -> None:
    """Subtract from every row of ``centered`` (d, N), in place, the mean of its bucket."""
    count = np.maximum(sizes, 1)
    for row in centered:
        row -= (np.bincount(nodes, weights=row, minlength=len(sizes)) / count)[nodes]


def _cut_weights(sizes: np.ndarray) -> np.ndarray:
    """Return n / (left * right) for a cut after each position; 0 at the end of each bucket."""
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    n = np.repeat(sizes, sizes).astype(np.float64)
    left = np.arange(len(n)) - starts + 1.0
    right = n - left
    return np.divide(n, left * right, out=np.zeros_like(n), where=right > 0)


def _best_cuts(
    centered: np.ndarray,
    order: np.ndarray,
    values: np.ndarray,
    ends: np.ndarray,
    filled: np.ndarray,
    weight: np.ndarray,
) -> tuple[float, np.ndarray, np.ndarray]:
    """Find the best cut of every bucket for one split column: the gain, the values beside cuts.

    ``centered`` (t, N) holds the targets, centred per bucket; ``order`` (N,) sorts the rows by
    bucket and then by the column's ``values`` (N,), which come sorted. With bucket sums of zero,
    cutting after position i lowers the squared error by |S_i|^2 n / (left right), S_i being the
    running sum; the running sum returns to zero at the end of each bucket, so one cumulative sum
    serves all buckets. Both values are the largest where nothing is to be cut, 0 without rows.
    """
    gain = np.zeros(len(order))
    running = np.empty(len(order))
    for target in centered:  # one target at a time stays in the cache
        np.take(target, order, out=running, mode="clip")
        np.cumsum(running, out=running)
        np.multiply(running, running, out=running)
        gain += running
    gain *= weight
    gain[:-1][values[:-1] >= values[1:]] = -1.0  # equal values cannot be parted
    gain[ends[filled] - 1] = -1.0

    low, high = np.zeros((2, len(ends)), dtype=np.float32)
    total, begin = 0.0, 0
    for bucket in filled.tolist():
        end = int(ends[bucket])
        cut = begin + int(np.argmax(gain[begin:end]))
        if gain[cut] > 0.0:
            total += float(gain[cut])
            low[bucket], high[bucket] = values[cut : cut + 2]
        else:
            low[bucket] = high[bucket] = values[end - 1]
        begin = end
    return total, low, high
