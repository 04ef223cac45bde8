"""What a layout means, in NumPy: the stored array of a tensor and the way back."""

from __future__ import annotations

import numpy as np

from lutcc.ir.types import Array, Layout


def to_storage(array: Array, layout: Layout) -> Array:
    """Return the contiguous array that stores ``array`` in ``layout``; tails of blocks are zero.

    Parameters
    ----------
    array
        Tensor of any dtype; rank 2, (N, F), unless the layout is row-major.
    layout
        The layout to store it in.

    Returns
    -------
    Array
        Of shape ``layout.storage_shape(array.shape)``.

    Examples
    --------
    >>> x = np.array([[1, 2], [3, 4], [5, 6]])
    >>> to_storage(x, Layout("row_blocked", rows=2)).ravel().tolist()
    [1, 3, 2, 4, 5, 0, 6, 0]
    """
    if layout.kind == "row_major":
        return np.ascontiguousarray(array)
    if layout.kind == "column_major":
        return np.ascontiguousarray(array.T)
    blocks, groups, rows, inner = layout.storage_shape(array.shape)
    padded = np.zeros((blocks * rows, groups * inner), array.dtype)
    padded[: array.shape[0], : array.shape[1]] = array
    return np.ascontiguousarray(padded.reshape(blocks, rows, groups, inner).transpose(0, 2, 1, 3))


def from_storage(storage: Array, layout: Layout, shape: tuple[int, ...]) -> Array:
    """Return the row-major tensor of static ``shape`` that ``storage`` holds in ``layout``.

    Examples
    --------
    >>> layout = Layout("row_blocked", rows=4, inner=2)
    >>> x = np.arange(15).reshape(5, 3)
    >>> bool((from_storage(to_storage(x, layout), layout, x.shape) == x).all())
    True
    """
    stored = storage.reshape(layout.storage_shape(shape))
    if layout.kind == "row_major":
        return np.ascontiguousarray(stored)
    if layout.kind == "column_major":
        return np.ascontiguousarray(stored.T)
    blocks, groups, rows, inner = stored.shape
    padded = stored.transpose(0, 2, 1, 3).reshape(blocks * rows, groups * inner)
    return np.ascontiguousarray(padded[: shape[0], : shape[1]])
