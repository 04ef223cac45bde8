"""What the estimators make of their arguments: finite float arrays of the right shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_array

from lutcc.errors import InputError


def as_weights(B: Any, bias: Any, ncolumns: int) -> tuple[np.ndarray | None, np.ndarray]:
    """Return B (D, M) float64, or None for the identity, and the bias (M,) float64."""
    weights = None
    if B is not None:
        try:
            weights = check_array(B, dtype=np.float64, input_name="B", ensure_min_features=1)
        except ValueError as error:
            raise InputError(
                not_finite(B) or str(error),
                where="B",
                fix="pass finite real numbers of shape (columns of A, outputs)",
            ) from error
        if len(weights) != ncolumns:
            hint = (
                "pass B.T: lutcc computes A @ B"
                if weights.shape[1] == ncolumns
                else "the rows of B are the columns of A"
            )
            raise InputError(
                f"B has shape {weights.shape}, but A has {ncolumns} columns", where="B", fix=hint
            )
    noutputs = ncolumns if weights is None else weights.shape[1]
    if bias is None:
        return weights, np.zeros(noutputs)
    shift = np.asarray(bias, dtype=np.float64)
    if shift.shape != (noutputs,) or not np.isfinite(shift).all():
        problem = (
            "holds NaN or infinity" if shift.shape == (noutputs,) else f"has shape {shift.shape}"
        )
        raise InputError(
            f"the bias {problem}", where="bias", fix=f"pass finite numbers of shape ({noutputs},)"
        )
    return weights, shift


def as_rows(exact: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return the rows (N, D) float32 that stand for those of A, of the same ``shape``."""
    try:
        rows = check_array(exact, dtype=[np.float32, np.float64], input_name="exact")
    except ValueError as error:
        raise InputError(
            not_finite(exact) or str(error), where="exact", fix="pass finite real numbers"
        ) from error
    if rows.shape != shape:
        raise InputError(
            f"exact has shape {rows.shape}, but A has shape {shape}",
            where="exact",
            fix="pass a row for each row of A",
        )
    return to_float32(rows, "exact")


def not_finite(array: Any) -> str | None:
    """Say where the first NaN or infinity of an array is; None when there is none.

    Examples
    --------
    >>> not_finite(np.array([[1.0, np.nan]]))
    'row 0, column 1 is NaN; 1 of 2 values is NaN or infinity'
    """
    try:
        numbers = np.asarray(array)
        bad = ~np.isfinite(numbers)
    except (TypeError, ValueError, RuntimeError):  # no array of numbers
        return None
    count = int(np.count_nonzero(bad))
    if not count:
        return None
    first = tuple(int(i) for i in np.argwhere(bad)[0])
    place = f"row {first[0]}, column {first[1]}" if len(first) == 2 else f"entry {first}"
    value = "NaN" if np.isnan(numbers[first]) else "infinity"
    verb = "is" if count == 1 else "are"
    return f"{place} is {value}; {count} of {numbers.size} values {verb} NaN or infinity"


def product_metric(weights: np.ndarray) -> np.ndarray:
    """Return S (d, min(d, M)) with S S^T = W W^T: it maps rows to the same distances as W."""
    left, singular, _ = np.linalg.svd(weights, full_matrices=False)
    return left * singular


def to_float32(X: np.ndarray, name: str) -> np.ndarray:
    """Round to C-contiguous float32, refusing what overflows."""
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(X, dtype=np.float32)
    if rounded is not X and not np.isfinite(rounded).all():
        raise InputError(
            "holds numbers beyond the range of float32", where=name, fix="rescale the data"
        )
    return rounded


def code_frequencies(codes: np.ndarray, nprototypes: int) -> np.ndarray:
    """Return (C, K): the share of the rows that carry each code."""
    return np.stack([np.bincount(column, minlength=nprototypes) for column in codes.T]) / len(codes)


def exact_product(X: np.ndarray, weights: np.ndarray | None, shift: np.ndarray) -> np.ndarray:
    """Return X (N, D) times B (D, M), or X where B is None for the identity, plus shift (M,)."""
    return (X if weights is None else X @ weights) + shift
