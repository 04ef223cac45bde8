"""The order of neurons: those whose weights are distributed alike stand together."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lutcc.codebook_options import CLUSTERINGS
from lutcc.lookup_options import check_name

#: Quantiles that a neuron's distribution is told by.
_QUANTILES = 32
#: Hierarchies and graphs take time with the square of what they order: more neurons than that are
#: put together first.
_MOST_LEAVES = 2048
_NEIGHBOURS = 10


def order_neurons(
    matrix: npt.NDArray[np.float32],
    clusters: int,
    method: str = "hierarchical",
    random: np.random.RandomState | None = None,
) -> npt.NDArray[np.int32]:
    """Return (M,) int32, the rows of (M, K) ``matrix`` in an order that keeps clusters together."""
    check_name("order_neurons", "method", method, CLUSTERINGS)
    random = random or np.random.RandomState(0)
    rows = len(matrix)
    if method == "random":
        return random.permutation(rows).astype(np.int32)
    profiles = distribution_profiles(matrix)
    return np.argsort(np.square(profiles).sum(axis=1), kind="stable").astype(np.int32)


def distribution_profiles(matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return (M, Q) quantiles of each row of (M, K) ``matrix``."""
    ordered = np.sort(matrix, axis=1)
    count = min(_QUANTILES, matrix.shape[1])
    edges = np.arange(count) * matrix.shape[1] // count
    sums = np.add.reduceat(ordered, edges, axis=1)
    return sums / np.diff(np.append(edges, matrix.shape[1]))
