"""Activations other than relu: their names and what they mean, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lutcc.ir.types import Array

F64Array: TypeAlias = npt.NDArray[np.float64]


def _sigmoid(x: F64Array) -> F64Array:
    return 1 / (1 + np.exp(-x))


def _gelu(x: F64Array) -> F64Array:
    erfc = np.frompyfunc(math.erfc, 1, 1)
    return x * np.asarray(erfc(-x / math.sqrt(2)), np.float64) / 2


def _gelu_tanh(x: F64Array) -> F64Array:
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def _sixth(x: F64Array) -> F64Array:
    """Return x + 3 cut off at 0 and 6, and divided by 6."""
    return np.minimum(np.maximum(x + 3, 0), 6) / 6


def _elu(x: F64Array) -> F64Array:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def _softplus(x: F64Array) -> F64Array:
    return np.logaddexp(0, x)


FORMULAS: Mapping[str, Callable[[F64Array], F64Array]] = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": lambda x: x * _sigmoid(x),
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "hardswish": lambda x: x * _sixth(x),
    "hardsigmoid": _sixth,
    "elu": _elu,
    "softplus": _softplus,
    "mish": lambda x: x * np.tanh(_softplus(x)),
}
#: Names of activations that are not exact, in the order of the reference.
KINDS = tuple(FORMULAS)
DEFINITION = (
    "gelu(x) = x (1 + erf(x / sqrt(2))) / 2, gelu_tanh(x) = x (1 + tanh(sqrt(2 / pi) (x + 0.044715 "
    "x^3))) / 2, sigmoid(x) = 1 / (1 + e^-x), silu(x) = x sigmoid(x), hardsigmoid(x) = min(max(x + "
    "3, 0), 6) / 6, hardswish(x) = x hardsigmoid(x), elu(x) = x if x > 0 else e^x - 1, softplus(x) "
    "= log(1 + e^x), mish(x) = x tanh(softplus(x))"
)
#: How far a backend may be off, times |x| + 1.
TOLERANCE = 1e-6


def apply(kind: str, x: Array) -> npt.NDArray[np.float32]:
    """Return an activation of float32 numbers: computed in float64, and rounded once.

    Examples
    --------
    >>> apply("silu", np.array([0, 1, -np.inf, np.nan], np.float32)).tolist()
    [0.0, 0.7310585975646973, nan, nan]
    """
    with np.errstate(all="ignore"):
        return FORMULAS[kind](np.asarray(x, np.float64)).astype(np.float32)
