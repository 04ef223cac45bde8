"""Look-ups on the host in NumPy, bit for bit like the operations of the IR but faster."""

from __future__ import annotations

import numpy as np

from lutcc.ir.arithmetic import activate, fma32

ROW_BLOCK = 1024


def tree_encode(X: np.ndarray, splitdims: np.ndarray, splitvals: np.ndarray) -> np.ndarray:
    """Return codes (N, C) uint8 of ``X`` (N, D) float32.

    ``splitdims`` is (C, L) int32, ``splitvals`` (C, 2**L) float32 in heap order.
    """
    ncodebooks, depth = splitdims.shape
    nprototypes = splitvals.shape[1]
    flat, base = splitvals.ravel(), np.arange(ncodebooks) * nprototypes
    codes = np.empty((len(X), ncodebooks), dtype=np.uint8)
    for begin in range(0, len(X), ROW_BLOCK):
        block = X[begin : begin + ROW_BLOCK]
        node = np.ones((len(block), ncodebooks), dtype=np.intp)
        for level in range(depth):
            node = 2 * node + (block[:, splitdims[:, level]] > flat[base + node])
        codes[begin : begin + ROW_BLOCK] = node - nprototypes
    return codes


def nearest_encode(
    X: np.ndarray,
    centroids: np.ndarray,
    half_norms: np.ndarray,
    columns: np.ndarray,
    starts: tuple[int, ...],
) -> np.ndarray:
    """Return codes (N, C) uint8: the first k of least ``half_norms[c, k] - x . centroid_k``.

    ``centroids`` is (K, D2) float32, ``half_norms`` (C, K), ``columns`` (D2,); codebook c owns
    ``starts[c]:starts[c+1]`` of the D2 columns. The scores that decide are float32 fused
    multiply-adds in column order; they are emulated, slowly, only for rows whose two best float64
    scores are nearer to each other than the float32 rounding errors can be.
    """
    codes = np.empty((len(X), len(half_norms)), dtype=np.uint8)
    for begin in range(0, len(X), ROW_BLOCK):
        block = X[begin : begin + ROW_BLOCK]
        for c, norms in enumerate(half_norms):
            own = slice(starts[c], starts[c + 1])
            chosen, unsure = _nearest_in_float64(block[:, columns[own]], centroids[:, own], norms)
            if len(unsure):
                chosen[unsure] = _nearest_in_float32(
                    block[unsure][:, columns[own]], centroids[:, own], norms
                )
            codes[begin : begin + ROW_BLOCK, c] = chosen
    return codes


def _nearest_in_float64(
    x: np.ndarray, centroids: np.ndarray, norms: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's nearest centroid, and the rows where float32 might decide otherwise."""
    x64, centroids64, every = x.astype(np.float64), centroids.astype(np.float64), np.arange(len(x))
    scores = norms - x64 @ centroids64.T
    chosen = scores.argmin(axis=1)
    best = scores[every, chosen]
    scores[every, chosen] = np.inf
    # Each of d roundings errs by at most 2**-24 of a partial sum; 2**-22 covers both scores with
    # room to spare.
    size = np.abs(norms).max() + np.abs(x64) @ np.abs(centroids64).max(axis=0)
    return chosen, np.flatnonzero(~(scores.min(axis=1) - best > x.shape[1] * 2.0**-22 * size))


def _nearest_in_float32(x: np.ndarray, centroids: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """Return each row's nearest centroid by the arithmetic of the operation nearest_encode."""
    score = np.broadcast_to(norms, (len(x), len(norms)))
    for j in range(x.shape[1]):
        score = fma32(-x[:, j, None], centroids[:, j], score)
    return np.argmin(score, axis=1)


def lut_accumulate(
    codes: np.ndarray, lut: np.ndarray, accumulate: str, upcast_every: int
) -> np.ndarray:
    """Return the sums (N, M) of the entries that ``codes`` (N, C) select in ``lut`` (C, K, M).

    int32 for uint8 tables, "exact" or "mean" as in the operation ``lut_accumulate``; float32, added
    in the order of the codebooks, for float32 tables.
    """
    dtype = np.float32 if lut.dtype == np.float32 else np.int32
    sums = np.zeros((len(codes), lut.shape[2]), dtype=dtype)
    for begin in range(0, len(codes), ROW_BLOCK):
        block = codes[begin : begin + ROW_BLOCK]
        total = sums[begin : begin + ROW_BLOCK]
        if accumulate == "exact" or dtype == np.float32:
            for c, table in enumerate(lut):
                total += table[block[:, c]]
            continue
        for first in range(0, len(lut), upcast_every):
            total += _average(block, lut, first, upcast_every)
    return sums


def _average(codes: np.ndarray, lut: np.ndarray, first: int, width: int) -> np.ndarray | int:
    """Average ``width`` tables from ``first`` on by the pairwise tree; past the end are zeros."""
    if first >= len(lut):
        return 0
    if width == 1:
        return lut[first][codes[:, first]].astype(np.int32)
    half = width // 2
    return (_average(codes, lut, first, half) + _average(codes, lut, first + half, half) + 1) >> 1


def lut_dequantize(
    sums: np.ndarray, scale: np.ndarray, offset: np.ndarray, activation: str | None
) -> np.ndarray:
    """Return ``activation(scale * sums + offset)`` (N, M) float32, rounded once per element."""
    out = np.empty(sums.shape, dtype=np.float32)
    for begin in range(0, len(sums), ROW_BLOCK):
        out[begin : begin + ROW_BLOCK] = fma32(
            sums[begin : begin + ROW_BLOCK].astype(np.float32), scale, offset
        )
    return activate(out, activation or "none")
