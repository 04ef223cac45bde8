"""The order of neurons: those whose weights are distributed alike stand together (equation 4).

Neurons are compared by the sorted values of their weights, in short: the distance of two such
profiles is the Wasserstein distance of the distributions, which is what a common codebook has to
bridge. The paper clusters the rows themselves; but which input a weight belongs to does not matter
to its codebook, and on MiniLM's layers that order is hardly better than none.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import linkage
from scipy.linalg import eigh
from sklearn.cluster import BisectingKMeans, KMeans, MiniBatchKMeans
from sklearn.neighbors import kneighbors_graph

from lutcc.codebook_options import CLUSTERINGS
from lutcc.lookup_options import check_name

F32Array = npt.NDArray[np.float32]

#: Numbers of a profile.
_PROFILE = 128
#: Hierarchies and graphs order groups of neurons where there are more neurons than that.
_MOST_LEAVES = 1024
#: Clusters of the flat methods, whose neurons are then ordered within.
_MOST_CLUSTERS = 64
_NEIGHBOURS = 10
_BLOCK = 1 << 22


def order_neurons(
    matrix: F32Array,
    clusters: int,
    method: str = "hierarchical",
    random: np.random.RandomState | None = None,
) -> npt.NDArray[np.int32]:
    """Return (M,) int32: the rows of (M, K) ``matrix`` so that like ones are neighbours.

    Parameters
    ----------
    matrix
        Finite numbers, a neuron per row.
    clusters
        How many regions the rows will be cut into.
    method
        "hierarchical": the leaves of a Ward tree, branches in the order of their spread.
        "kmeans", "bisecting": clusters of k-means, or of 2-means of the worst cluster again and
        again, in that order too. "graph": by the second eigenvector of the graph of
        nearest neighbours, which a normalised cut goes by. "random": at random.
    random
        Of the starts of k-means and of random orders.

    Notes
    -----
    Source: JLCM, section 3.2, equation 4. Beyond 1,024 rows, the tree and the graph are built on
    as many clusters of rows.

    Examples
    --------
    >>> order_neurons(np.array([[1, 2], [9, -9], [2, 1], [8, -9]], np.float32), 2).tolist()
    [0, 2, 3, 1]
    """
    check_name("order_neurons", "method", method, CLUSTERINGS)
    random = random or np.random.RandomState(0)
    rows = len(matrix)
    if method == "random":
        return random.permutation(rows).astype(np.int32)
    profiles = distribution_profiles(matrix)
    spread = np.sqrt(np.square(profiles).mean(axis=1))
    if method in ("kmeans", "bisecting"):
        count = min(clusters, _MOST_CLUSTERS, len(np.unique(profiles, axis=0)))
        kind = KMeans if method == "kmeans" else BisectingKMeans
        found = kind(count, n_init=1, random_state=random).fit(profiles).labels_
        rank = _order_of_clusters(found, spread)
        return np.lexsort([spread, rank[found]]).astype(np.int32)
    labels = np.arange(rows)
    if rows > _MOST_LEAVES:
        groups = MiniBatchKMeans(_MOST_LEAVES, n_init=1, random_state=random).fit(profiles)
        labels = np.unique(groups.labels_, return_inverse=True)[1]
    counts = np.bincount(labels)
    centres = np.stack([np.bincount(labels, column) / counts for column in profiles.T], axis=1)
    along = _graph_order(centres) if method == "graph" else _tree_order(centres)
    rank = np.empty(len(along), np.intp)
    rank[along] = np.arange(len(along))
    return np.lexsort([spread, rank[labels]]).astype(np.int32)


def distribution_profiles(matrix: F32Array) -> F32Array:
    """Return (M, P): the means of P equal shares of the sorted values of each row (M, K).

    Examples
    --------
    >>> distribution_profiles(np.array([[3, 1, 2]], np.float32)).tolist()
    [[1.0, 2.0, 3.0]]
    """
    rows, columns = matrix.shape
    count = min(_PROFILE, columns)
    starts = np.arange(count) * columns // count
    sizes = np.diff(np.append(starts, columns)).astype(np.float32)
    profiles = np.empty((rows, count), np.float32)
    step = max(1, _BLOCK // columns)
    for first in range(0, rows, step):
        ordered = np.sort(matrix[first : first + step], axis=1)
        profiles[first : first + step] = np.add.reduceat(ordered, starts, axis=1) / sizes
    return profiles


def _order_of_clusters(labels: npt.NDArray, spread: F32Array) -> npt.NDArray[np.intp]:
    """Return the rank of each cluster by the mean spread of its rows."""
    counts = np.bincount(labels)
    means = np.bincount(labels, spread) / np.maximum(counts, 1)
    return np.argsort(np.argsort(means, kind="stable"), kind="stable")


def _tree_order(centres: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """Return the leaves of a Ward tree; of two branches, the one of the smaller spread is first."""
    count = len(centres)
    if count < 2:
        return np.arange(count)
    sums = np.zeros(2 * count - 1)
    sums[:count] = np.sqrt(np.square(centres).mean(axis=1))
    sizes = np.ones(2 * count - 1)
    orders = [np.array([leaf]) for leaf in range(count)]
    for node, (a, b) in enumerate(linkage(centres, "ward")[:, :2].astype(np.intp), count):
        if sums[a] * sizes[b] > sums[b] * sizes[a]:
            a, b = b, a
        sums[node], sizes[node] = sums[a] + sums[b], sizes[a] + sizes[b]
        orders.append(np.concatenate([orders[a], orders[b]]))
    return orders[-1]


def _graph_order(centres: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    count = len(centres)
    if count <= _NEIGHBOURS + 1:
        return np.argsort(np.square(centres).sum(axis=1), kind="stable")
    near = kneighbors_graph(centres, _NEIGHBOURS).toarray()
    graph = (near + near.T) / 2 + 1e-6 / count  # the constant makes one component of it
    degrees = graph.sum(axis=1)
    normal = graph / np.sqrt(degrees[:, None] * degrees)
    # the largest eigenvalue belongs to the constant vector
    _, vector = eigh(normal, subset_by_index=[count - 2, count - 2])
    return np.argsort(vector[:, 0] / np.sqrt(degrees), kind="stable")
