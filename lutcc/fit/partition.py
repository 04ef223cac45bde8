"""Which columns of the input each codebook sees.

A permutation of the columns, cut into runs, a codebook each. It costs nothing at run time: split
dimensions name columns of the input as it comes. Source: ITLUMM, section 2.1.
"""

from __future__ import annotations

import numpy as np
from scipy.cluster.hierarchy import linkage, optimal_leaf_ordering
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import squareform

from lutcc.fit.opq import opq_rotation

#: Rows of X that a partition is found from, at most.
ROWS = 16384


def contiguous_partition(ncolumns: int, ncodebooks: int) -> tuple[np.ndarray, ...]:
    """Split columns 0..ncolumns-1 into ``ncodebooks`` runs whose lengths differ by at most 1.

    Source: product quantisation; uneven splits follow ``numpy.array_split`` (the longer runs come
    first).

    Examples
    --------
    >>> [part.tolist() for part in contiguous_partition(5, 2)]
    [[0, 1, 2], [3, 4]]
    """
    return tuple(np.array_split(np.arange(ncolumns, dtype=np.int32), ncodebooks))


def opq_partition(
    X: np.ndarray, ncodebooks: int, nprototypes: int, random: np.random.RandomState
) -> tuple[np.ndarray, ...]:
    """Split the order of columns that is closest to the rotation of OPQ.

    Parameters
    ----------
    X
        (N, D) rows.
    ncodebooks, nprototypes
        C and K.
    random
        Draws rows and first prototypes.

    Returns
    -------
    tuple
        C arrays of column numbers: rotated column j stands for column i where the permutation Q
        that maximises the sum of R_ij Q_ij has a one (the Hungarian method).

    Notes
    -----
    Source: ITLUMM, section 2.1.1 and eq. 1; Ge et al., "Optimized product quantization". Columns
    that are constant (units that a ReLU has switched off) are shared out afterwards.

    Examples
    --------
    >>> X = np.random.default_rng(0).normal(size=(100, 6))
    >>> sorted(np.concatenate(opq_partition(X, 2, 4, np.random.RandomState(0))).tolist())
    [0, 1, 2, 3, 4, 5]
    """
    ncolumns = X.shape[1]
    varying = np.flatnonzero(_vary(X.std(axis=0, dtype=np.float64)))
    if len(varying) < ncodebooks:
        varying = np.arange(ncolumns)
    parts = contiguous_partition(len(varying), ncodebooks)
    rows = _some(X, random)[:, varying]
    rotation = opq_rotation(rows, parts, nprototypes, random)
    columns, places = linear_sum_assignment(rotation, maximize=True)
    runs = np.array_split(varying[columns[np.argsort(places)]], ncodebooks)
    whole = contiguous_partition(ncolumns, ncodebooks)
    ends = np.cumsum([len(a) - len(b) for a, b in zip(whole, runs, strict=True)])[:-1]
    still = np.split(np.setdiff1d(np.arange(ncolumns), varying), ends)
    return tuple(np.concatenate(both).astype(np.int32) for both in zip(runs, still, strict=True))


def r2_partition(
    X: np.ndarray, ncodebooks: int, random: np.random.RandomState
) -> tuple[np.ndarray, ...]:
    """Split an order of columns in which neighbours are correlated.

    Parameters
    ----------
    X
        (N, D) rows.
    ncodebooks
        C.
    random
        Draws rows.

    Returns
    -------
    tuple
        C arrays of column numbers: the leaves of a dendrogram of the columns, by average linkage of
        the distances 1 - R^2, in the order in which distances between neighbours add up to least.
        They are cut into runs of equal shares of the columns' standard deviations.

    Notes
    -----
    Source: ITLUMM, section 2.1.2; optimal leaf ordering as in SciPy. The paper cuts into runs of
    equally many columns. But correlations know no scale: columns that hardly vary (the border of a
    picture, units that a ReLU has switched off) come to stand together, and would have codebooks
    of their own, which the others then lack.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(100, 2))
    >>> parts = r2_partition(np.concatenate([x, -2 * x], 1), 2, np.random.RandomState(0))
    >>> [sorted(part.tolist()) for part in parts]
    [[0, 2], [1, 3]]
    """
    ncolumns = X.shape[1]
    if ncolumns < 3:
        return contiguous_partition(ncolumns, ncodebooks)
    distance = squareform(1.0 - squared_correlation(_some(X, random)), checks=False)
    tree = optimal_leaf_ordering(linkage(distance, "average"), distance)
    return equal_shares(_leaves(tree, ncolumns), X.std(axis=0, dtype=np.float64), ncodebooks)


def equal_shares(order: np.ndarray, weights: np.ndarray, ncodebooks: int) -> tuple[np.ndarray, ...]:
    """Cut an order of columns into runs of about equal weight, and of at least one column.

    Parameters
    ----------
    order
        (D,) column numbers.
    weights
        (D,) of the columns, by their numbers, not negative. Those without weight (no more than a
        millionth of the largest) lengthen a run, and make none if enough others are there.
    ncodebooks
        C, at most D.

    Examples
    --------
    >>> weights = np.array([0.0, 0.0, 3.0, 1.0, 1.0, 1.0])
    >>> [part.tolist() for part in equal_shares(np.arange(6), weights, 2)]
    [[0, 1, 2], [3, 4, 5]]
    """
    heavy = np.flatnonzero(_vary(weights)[order])
    if len(heavy) < ncodebooks:
        return tuple(np.array_split(order, ncodebooks))
    passed = np.cumsum(weights[order[heavy]])
    ends: list[int] = []
    for run in range(1, ncodebooks):
        wanted = passed[-1] * run / ncodebooks
        end = int(np.argmin(np.abs(passed - wanted))) + 1  # of those that weigh something
        first = ends[-1] + 1 if ends else 1
        ends.append(min(max(end, first), len(heavy) - (ncodebooks - run)))
    return tuple(np.split(order, [int(heavy[end - 1]) + 1 for end in ends]))


def squared_correlation(X: np.ndarray) -> np.ndarray:
    """Return (D, D) squared correlations of the columns of X; 0 with a constant column.

    Examples
    --------
    >>> squared_correlation(np.array([[0.0, 1.0], [1.0, 1.0]])).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    centered = X.astype(np.float64) - X.mean(axis=0, dtype=np.float64)
    norms = np.sqrt((centered**2).sum(axis=0))
    floor = 1e-12 * max(float(norms.max()), 1e-300)
    unit = np.where(norms > floor, centered / np.maximum(norms, floor), 0.0)
    squares = np.clip((unit.T @ unit) ** 2, 0.0, 1.0)
    np.fill_diagonal(squares, 1.0)
    return squares


def _vary(deviations: np.ndarray) -> np.ndarray:
    """Tell which columns (D,) vary, beside the one that varies most."""
    return deviations > 1e-6 * deviations.max()


def _leaves(tree: np.ndarray, ncolumns: int) -> np.ndarray:
    """Return the leaves of a linkage from left to right, without recursion: trees may be deep."""
    order: list[int] = []
    stack = [2 * ncolumns - 2]
    while stack:
        node = stack.pop()
        if node < ncolumns:
            order.append(node)
        else:
            left, right = tree[node - ncolumns, :2].astype(int)
            stack += [right, left]
    return np.array(order, np.int32)


def _some(X: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """Return at most :data:`ROWS` rows."""
    if len(X) <= ROWS:
        return X
    return X[np.sort(random.choice(len(X), ROWS, replace=False))]
