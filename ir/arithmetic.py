"""The arithmetic that defines the ops: exactly rounded float32 fused multiply-add and friends."""

from __future__ import annotations

from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

from lutcc.ir import activations
from lutcc.ir.types import Array

F32Array: TypeAlias = npt.NDArray[np.float32]
Operand: TypeAlias = Array | np.floating[Any]


def fma32(a: Operand, b: Operand, c: Operand) -> F32Array:
    """Return ``a * b + c`` in float32, element by element, rounded once (fusedMultiplyAdd).

    The product of two float32 is exact in float64. The sum is rounded to float64 *to odd* (its
    error is recovered by TwoSum), after which the rounding to float32 gives the correctly rounded
    result because 53 >= 24 + 2: see Boldo and Melquiond, "Emulation of FMA and correctly rounded
    sums". Subnormals, infinities and NaN behave as in hardware.

    Parameters
    ----------
    a, b, c
        float32 arrays that broadcast against each other.

    Raises
    ------
    TypeError
        If one of them is not float32.

    Examples
    --------
    >>> f = np.float32
    >>> float(fma32(f(1 + 2**-12), f(1 + 2**-12), f(-1)))  # 2**-11 + 2**-24, kept
    0.0004883408546447754
    """
    x, y, z = np.asarray(a), np.asarray(b), np.asarray(c)
    if not x.dtype == y.dtype == z.dtype == np.float32:
        raise TypeError(f"fma32 takes float32, not {x.dtype}, {y.dtype}, {z.dtype}")
    with np.errstate(all="ignore"):
        product = x.astype(np.float64) * y.astype(np.float64)
        addend = np.broadcast_to(z.astype(np.float64), np.broadcast_shapes(product.shape, z.shape))
        total = np.asarray(product + addend)
        part = total - product
        error = np.asarray((product - (total - part)) + (addend - part))
        bits = total.view(np.int64)
        inexact = np.isfinite(error) & (error != 0) & np.isfinite(total) & (bits & 1 == 0)
        away_from_zero = (error > 0) == (total > 0)
        odd = np.where(inexact, bits + np.where(away_from_zero, 1, -1), bits).view(np.float64)
        return np.asarray(odd.astype(np.float32))


def quantize_rows(x: Array) -> tuple[Array, F32Array]:
    """Return each row as integers in -127..127 (N, K) int32, and its unit (N,) float32.

    Every step is one float32 operation, so that each backend gets the same integers. A row with
    a NaN or an infinity has a unit that is not finite, and zeros.

    Examples
    --------
    >>> q, unit = quantize_rows(np.array([[1, -2, 0.5], [0, 0, 0]], np.float32))
    >>> q.tolist(), unit.tolist()
    ([[64, -127, 32], [0, 0, 0]], [0.015748031437397003, 0.0])
    """
    values = np.asarray(x, np.float32)
    with np.errstate(all="ignore"):
        largest = np.abs(values).max(axis=1, initial=0)
        inverse = np.float32(127) / largest
        usable = np.isfinite(largest) & np.isfinite(inverse)
        inverse = np.where(usable, inverse, np.float32(0))
        rounded = np.rint(values * inverse[:, None])
        integers = np.where(usable[:, None], rounded, np.float32(0)).astype(np.int32)
        return integers, largest / np.float32(127)


def round_to_bfloat16(x: Array) -> F32Array:
    """Round float32 to the nearest bfloat16, ties to even, and return it as float32.

    Examples
    --------
    >>> round_to_bfloat16(np.array([1 + 2**-8, 1 + 3 * 2**-8, 3.4e38], np.float32)).tolist()
    [1.0, 1.015625, inf]
    """
    with np.errstate(all="ignore"):
        return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)


def relu32(x: Array) -> F32Array:
    """Return ``0 if x < 0 else x``: NaN passes, and minus zero stays (as ``vmaxps(0, x)`` does)."""
    return np.where(x < 0, np.float32(0), x).astype(np.float32)


def activate(x: Array, activation: str) -> F32Array:
    """Apply the activation of an epilogue: ``none``, ``relu`` or one of ``activations.KINDS``."""
    if activation in activations.KINDS:
        return activations.apply(activation, x)
    return relu32(x) if activation == "relu" else np.asarray(x, np.float32)


def mean_of_groups(values: npt.NDArray[np.uint8], upcast_every: int) -> npt.NDArray[np.int32]:
    """Sum over groups of the rounded pairwise averages of uint8 values, along the last axis.

    The axis is padded with zeros to a multiple of ``upcast_every``; each group of that many values
    is reduced by a tree of ``(a + b + 1) >> 1`` on neighbours, as ``vpavgb`` computes it.

    Source: Blalock and Guttag, "Multiplying matrices without multiplying".

    Examples
    --------
    >>> mean_of_groups(np.array([1, 2, 5, 5], np.uint8), 4).item()  # avg(avg(1, 2), avg(5, 5))
    4
    """
    count = values.shape[-1]
    groups = -(-count // upcast_every)
    tree: npt.NDArray[Any] = np.zeros((*values.shape[:-1], groups * upcast_every), np.uint16)
    tree[..., :count] = values
    tree = tree.reshape(*values.shape[:-1], groups, upcast_every)
    while tree.shape[-1] > 1:
        tree = (tree[..., 0::2] + tree[..., 1::2] + 1) >> 1
    return tree[..., 0].sum(-1, dtype=np.int32)
