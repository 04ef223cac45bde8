"""The plain definition of ``dense``: loops over numbers, independent of lutcc.ir."""

from __future__ import annotations

import math

import numpy as np

from tests.ir.plain_codebook import F32, Arrays, rounded, steps
from tests.ir.plain_rows import function


def dense(inputs: Arrays, compute: str = "float32", activation: str = "none") -> Arrays:
    x, weight, units, bias = inputs
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
            if activation == "relu":
                y[i, m] = 0 if y[i, m] < 0 else y[i, m]
            elif activation != "none":
                y[i, m] = function(activation, float(y[i, m]))
    return [y]


DEFINITIONS = {"dense": dense}
