"""Weights that no codebook has a near value for: their residuals, stored one by one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lutcc.codebook_weights import Outliers


def outlier_count(share: float, rows: int, columns: int) -> int:
    """Return how many of the weights are outliers.

    Examples
    --------
    >>> outlier_count(0.01, 64, 64)
    41
    """
    return round(share * rows * columns)


def outlier_bits(count: int, rows: int) -> int:
    """Return the bits of ``count`` outliers as stored: float16 values, int32 columns and starts.

    Examples
    --------
    >>> outlier_bits(2, 3), outlier_bits(0, 3)
    (224, 0)
    """
    return 48 * count + 32 * (rows + 1) if count else 0


def largest_residuals(
    residuals: npt.NDArray[np.float32],
    count: int,
    column_weights: npt.NDArray[np.float64] | None = None,
) -> npt.NDArray[np.intp]:
    """Return the flat positions, ascending, of the ``count`` largest of (M, K) ``residuals``.

    Those of columns with large ``column_weights`` (K,) count as larger.

    Examples
    --------
    >>> largest_residuals(np.array([[0.1, -3.0], [2.0, 0.0]], np.float32), 2).tolist()
    [1, 2]
    """
    sizes = np.abs(residuals)
    if column_weights is not None:
        sizes = sizes * np.sqrt(column_weights).astype(np.float32)
    return np.sort(np.argpartition(sizes.ravel(), sizes.size - count)[sizes.size - count :])


def outliers_of(residuals: npt.NDArray[np.float32], positions: npt.NDArray[np.intp]) -> Outliers:
    """Return the residuals (M, K) at flat ``positions``, ascending, compressed by rows.

    Examples
    --------
    >>> outliers_of(np.array([[0.0, -3.0], [2.0, 0.0]], np.float32), np.array([1, 2])).starts
    array([0, 1, 2], dtype=int32)
    """
    rows, columns = np.divmod(positions, residuals.shape[1])
    starts = np.zeros(len(residuals) + 1, np.int32)
    np.cumsum(np.bincount(rows, minlength=len(residuals)), out=starts[1:])
    values = residuals.ravel()[positions].astype(np.float16)
    return Outliers(starts, columns.astype(np.int32), values)
