"""Which columns of the input each codebook sees.

A permutation of the columns, cut into runs, a codebook each. It costs nothing at run time: split
dimensions name columns of the input as it comes. Source: ITLUMM, section 2.1.
"""

from __future__ import annotations

import numpy as np
from scipy.cluster.hierarchy import linkage, optimal_leaf_ordering
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.spatial.distance import squareform

from lutcc.fit.opq import opq_rotation
from lutcc.fit.tree import fit_balanced_tree

#: Rows of X that a partition is found from, at most, and that its cut is chosen by.
ROWS, CUT_ROWS = 16384, 4096
#: Places in the first run of an order where the cut may begin.
STARTS = 4
#: Columns that each level of the trees which choose it tries.
CANDIDATES = 4


def partition_of(
    name: str, X: np.ndarray, ncodebooks: int, nprototypes: int, random: np.random.RandomState
) -> tuple[np.ndarray, ...]:
    """Return the columns of each codebook by a partition's name: "contiguous", "opq" or "r2"."""
    if name == "opq":
        return opq_partition(X, ncodebooks, nprototypes, random)
    if name == "r2":
        return r2_partition(X, ncodebooks, nprototypes, random)
    return contiguous_partition(X.shape[1], ncodebooks)


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
        that maximises the sum of R_ij Q_ij has a one (the Hungarian method). They are cut into runs
        of equal shares of the columns' standard deviations.

    Notes
    -----
    Source: ITLUMM, section 2.1.1 and eq. 1; Ge et al., "Optimized product quantization". The paper
    cuts into runs of equally many columns; for why lutcc does not see :func:`r2_partition`. Columns
    that are constant (units that a ReLU has switched off) are left out of the rotation.

    Examples
    --------
    >>> X = np.random.default_rng(0).normal(size=(100, 6))
    >>> sorted(np.concatenate(opq_partition(X, 2, 4, np.random.RandomState(0))).tolist())
    [0, 1, 2, 3, 4, 5]
    """
    ncolumns = X.shape[1]
    deviations = X.std(axis=0, dtype=np.float64)
    varying = np.flatnonzero(_vary(deviations))
    if len(varying) < ncodebooks:
        varying = np.arange(ncolumns)
    parts = contiguous_partition(len(varying), ncodebooks)
    rotation = opq_rotation(_some(X, random, ROWS)[:, varying], parts, nprototypes, random)
    columns, places = linear_sum_assignment(rotation, maximize=True)
    still = np.setdiff1d(np.arange(ncolumns), varying)
    order = np.concatenate([varying[columns[np.argsort(places)]], still]).astype(np.int32)
    return equal_shares(order, deviations, ncodebooks)


def r2_partition(
    X: np.ndarray, ncodebooks: int, nprototypes: int, random: np.random.RandomState
) -> tuple[np.ndarray, ...]:
    """Split an order of columns in which neighbours are correlated.

    Parameters
    ----------
    X
        (N, D) rows.
    ncodebooks, nprototypes
        C and K.
    random
        Draws rows.

    Returns
    -------
    tuple
        C arrays of column numbers: the leaves of a dendrogram of the columns, by average linkage of
        the distances 1 - R^2, in the order in which distances between neighbours add up to least.
        They are cut into runs of equal shares of the columns' standard deviations, from where
        :func:`circular_cut` says.

    Notes
    -----
    Source: ITLUMM, section 2.1.2; optimal leaf ordering as in SciPy. The paper cuts into runs of
    equally many columns. But correlations know no scale: columns that hardly vary (the border of a
    picture, units that a ReLU has switched off) come to stand together, and would have codebooks
    of their own, which the others then lack.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(100, 2))
    >>> parts = r2_partition(np.concatenate([x, -2 * x], 1), 2, 16, np.random.RandomState(0))
    >>> [sorted(part.tolist()) for part in parts]
    [[0, 2], [1, 3]]
    """
    ncolumns = X.shape[1]
    if ncolumns < 3:
        return contiguous_partition(ncolumns, ncodebooks)
    distance = squareform(1.0 - squared_correlation(_some(X, random, ROWS)), checks=False)
    tree = optimal_leaf_ordering(linkage(distance, "average"), distance)
    rows = _some(X, random, CUT_ROWS)
    return circular_cut(_leaves(tree, ncolumns), rows, ncodebooks, nprototypes)


def circular_cut(
    order: np.ndarray, X: np.ndarray, ncodebooks: int, nprototypes: int
) -> tuple[np.ndarray, ...]:
    """Cut an order of columns into runs of equal shares, from where trees leave least of X.

    Parameters
    ----------
    order
        (D,) column numbers, whose last is taken to be followed by the first: one run may have both.
    X
        (N, D) rows.
    ncodebooks, nprototypes
        C and K.

    Notes
    -----
    An order of leaves does not say where a run should begin, and few runs are the worse for it
    where that is between columns which a tree would rather see together. MADDNESS's own trees
    judge, by the squared deviation within their buckets, of :data:`STARTS` places in the first run.

    Examples
    --------
    >>> X = np.repeat(np.random.default_rng(0).normal(size=(200, 2)), 8, axis=1)
    >>> order = (np.arange(16) + 4) % 16
    >>> [np.unique(part // 8).tolist() for part in circular_cut(order, X, 2, 16)]
    [[1], [0]]
    """
    weights = X.std(axis=0, dtype=np.float64)
    if ncodebooks == 1 or ncodebooks * STARTS > np.count_nonzero(_vary(weights)):
        return equal_shares(order, weights, ncodebooks)
    pieces = equal_shares(order, weights, ncodebooks * STARTS)
    turned = [np.concatenate(pieces[n:] + pieces[:n]) for n in range(STARTS)]
    cuts = [equal_shares(each, weights, ncodebooks) for each in turned]
    return min(cuts, key=lambda parts: _left_by_trees(X, parts, nprototypes))


def _left_by_trees(X: np.ndarray, parts: tuple[np.ndarray, ...], nprototypes: int) -> float:
    """Return the squared deviation of X (N, D) within the buckets of a tree for each part."""
    depth = (nprototypes - 1).bit_length()
    total = 0.0
    for part in parts:
        subspace = np.ascontiguousarray(X[:, part])
        leaves = fit_balanced_tree(subspace, depth, CANDIDATES).leaves
        onehot = csr_array((np.ones(len(X)), leaves, np.arange(len(X) + 1)), (len(X), 2**depth))
        sizes = np.maximum(onehot.sum(axis=0), 1)
        means = (onehot.T @ subspace) / sizes[:, None]
        total += float(np.square(subspace - means[leaves]).sum(dtype=np.float64))
    return total


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


def _some(X: np.ndarray, random: np.random.RandomState, most: int) -> np.ndarray:
    """Return at most so many rows."""
    if len(X) <= most:
        return X
    return X[np.sort(random.choice(len(X), most, replace=False))]
