"""Which columns of the input each codebook sees."""

from __future__ import annotations

import numpy as np


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
