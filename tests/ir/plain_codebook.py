"""Plain definitions of the codebook ops: loops over numbers, independent of lutcc.ir."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

Arrays = list[np.ndarray]
F32 = np.float32


def index_at(row: list[int], k: int, bits: int) -> int:
    """Return index k of a packed row, bit by bit."""
    found = 0
    for j in range(bits):
        place = k * bits + j
        found += (row[place // 8] >> place % 8 & 1) << j
    return found


def region(count: int, rows: int, columns: int, size: int, m: int, k: int) -> int:
    """Return the region of an element of a matrix."""
    if count <= rows:
        return m * count // rows
    return m * math.ceil(columns / size) + k // size


def regions_of(count: int, rows: int, columns: int, size: int, m: int) -> list[int]:
    return sorted({region(count, rows, columns, size, m, k) for k in range(columns)})


def weights_of(
    indices: np.ndarray, books: np.ndarray, scales: np.ndarray, columns: int, bits: int, size: int
) -> np.ndarray:
    """Return (M, K) float32."""
    packed, rows = indices.tolist(), len(indices)
    w = np.empty((rows, columns), F32)
    for m in range(rows):
        for k in range(columns):
            g = region(len(books), rows, columns, size, m, k)
            t = region(len(scales), rows, columns, size, m, k)
            w[m, k] = F32(books[g, index_at(packed[m], k, bits)]) * F32(scales[t])
    return w


def rounded(x: np.ndarray) -> np.ndarray:
    return x.astype(ml_dtypes.bfloat16).astype(F32)


def steps(values: np.ndarray, largest: F32, limit: int) -> np.ndarray:
    """Return whole numbers of largest / limit, as float64."""
    inverse = F32(limit) / largest
    if not (np.isfinite(largest) and np.isfinite(inverse)):
        return np.zeros(values.shape)
    return np.array([float(np.rint(F32(v) * inverse)) for v in values])


def codebook_matmul(
    inputs: Arrays, bits: int, segment_size: int = 0, compute: str = "float32"
) -> Arrays:
    x, indices, books, scales, order, bias = inputs
    (n, columns), rows = x.shape, len(indices)
    w = weights_of(indices, books, scales, columns, bits, segment_size)
    y = np.empty((n, rows), F32)
    for m in range(rows):
        gs = regions_of(len(books), rows, columns, segment_size, m)
        ts = regions_of(len(scales), rows, columns, segment_size, m)
        pairs = zip(
            gs * len(ts) if len(gs) == 1 else gs, ts * len(gs) if len(ts) == 1 else ts, strict=True
        )
        entries = [F32(v) * F32(scales[t]) for g, t in pairs for v in books[g]]
        u = np.abs(np.array(entries, F32)).max()
        for i in range(n):
            if compute == "int8":
                a = np.abs(x[i]).max()
                acc = math.fsum(steps(x[i], a, 127) * steps(w[m], u, 64))
                y[i, order[m]] = F32(acc) * ((a / F32(127)) * (u / F32(64))) + bias[m]
                continue
            left, right = (x[i], w[m]) if compute == "float32" else (rounded(x[i]), rounded(w[m]))
            terms = left.astype(np.float64) * right.astype(np.float64)
            y[i, order[m]] = F32(float(np.sum(terms)) + float(bias[m]))
    return [y]


def codebook_dequantize(inputs: Arrays, bits: int, columns: int, segment_size: int = 0) -> Arrays:
    rows, indices, books, scales = inputs
    w = weights_of(indices, books, scales, columns, bits, segment_size)
    return [np.array([w[r] for r in rows], F32).reshape(len(rows), columns)]


def sparse_add(inputs: Arrays) -> Arrays:
    base, x, starts, columns, values = inputs
    y = base.astype(np.float64)
    for m in range(base.shape[1]):
        for z in range(int(starts[m]), int(starts[m + 1])):
            for i in range(len(x)):
                y[i, m] += float(x[i, columns[z]]) * float(values[z])
    return [y.astype(F32)]


DEFINITIONS = {
    "codebook_matmul": codebook_matmul,
    "codebook_dequantize": codebook_dequantize,
    "sparse_add": sparse_add,
}
