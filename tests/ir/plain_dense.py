"""Plain definitions of ``dense`` and ``conv2d``: loops over numbers, independent of lutcc.ir."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

from tests.ir.plain_codebook import F32, Arrays, rounded, steps
from tests.ir.plain_rows import function
from tests.ir.plain_sampled import Pair, patches


def dense(
    inputs: Arrays,
    compute: str = "float32",
    activation: str = "none",
    out_dtype: str = "float32",
) -> Arrays:
    x, weight, units, bias = inputs
    x = x.astype(F32)
    y = np.empty((len(x), len(weight)), F32)
    for i, row in enumerate(x):
        for m, w in enumerate(weight):
            if compute == "int8":
                a = np.abs(row).max()
                acc = math.fsum(steps(row, a, 127) * w.astype(np.float64))
                y[i, m] = F32(acc) * ((a / F32(127)) * units[m]) + bias[m]
            else:
                w = w.astype(F32)
                left, right = (row, w) if compute == "float32" else (rounded(row), rounded(w))
                total = float(np.sum(left.astype(np.float64) * right.astype(np.float64)))
                y[i, m] = F32(total * float(units[m]) + float(bias[m]))
            y[i, m] = activated(activation, y[i, m])
    return [y.astype(ml_dtypes.bfloat16) if out_dtype == "bfloat16" else y]


def activated(activation: str, y: np.float32) -> np.float32:
    if activation == "relu":
        return F32(0) if y < 0 else y
    return y if activation == "none" else F32(function(activation, float(y)))


def conv2d(
    inputs: Arrays,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    compute: str = "float32",
    activation: str = "none",
) -> Arrays:
    """Each image is a dense layer over its windows, but for the scale of integers."""
    x, weight, units, bias = inputs
    outputs, channels, *kernel = weight.shape
    each = outputs // groups
    images = []
    for image in x:
        a = np.abs(image).max()
        if compute == "int8":
            image = steps(image.reshape(-1), a, 127).reshape(image.shape)
        seen = [
            np.array(patches(image[..., c], tuple(kernel), stride, padding, dilation))
            for c in range(x.shape[3])
        ]
        y = np.empty((len(seen[0]), outputs), F32)
        for m, w in enumerate(weight.astype(F32)):
            first = m // each * channels
            terms = []
            for c in range(channels):
                left, right = seen[first + c], w[c].reshape(-1)
                if compute == "bfloat16":
                    left, right = rounded(left.astype(F32)), rounded(right)
                terms.append(left.astype(np.float64) * right.astype(np.float64))
            for p, total in enumerate(np.concatenate(terms, axis=1).sum(axis=1)):
                if compute == "int8":
                    value = F32(total) * ((a / F32(127)) * units[m]) + bias[m]
                else:
                    value = F32(total * float(units[m]) + float(bias[m]))
                y[p, m] = activated(activation, value)
        images.append(y)
    return [np.concatenate(images)]


DEFINITIONS = {"dense": dense, "conv2d": conv2d}
