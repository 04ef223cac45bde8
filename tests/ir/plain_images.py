"""Plain definitions of look-ups and poolings over images: loops over pixels and taps."""

from __future__ import annotations

import itertools
import math

import numpy as np

Arrays = list[np.ndarray]
Pair = tuple[int, int]


def _windows(
    x: np.ndarray, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> list[tuple[int, list[tuple[int, int] | None]]]:
    """Return for each output pixel its image and where its taps lie, None outside the image."""
    size = x.shape[1:3]
    out = [
        (size[a] + 2 * padding[a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1
        for a in (0, 1)
    ]
    found = []
    for n, oy, ox in itertools.product(range(len(x)), range(out[0]), range(out[1])):
        taps: list[tuple[int, int] | None] = []
        for i, j in itertools.product(range(kernel[0]), range(kernel[1])):
            y = oy * stride[0] + i * dilation[0] - padding[0]
            z = ox * stride[1] + j * dilation[1] - padding[1]
            taps.append((y, z) if 0 <= y < size[0] and 0 <= z < size[1] else None)
        found.append((n, taps))
    return found


def lut_conv2d(
    inputs: Arrays,
    kernel: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
) -> Arrays:
    x, dims, values, lut, outside = inputs
    rows = []
    for n, taps in _windows(x, kernel, stride, padding, dilation):
        sums = [0] * lut.shape[2]
        for b in range(len(dims)):
            node = 1
            for dim in dims[b]:
                channel, tap = divmod(int(dim), len(taps))
                at = taps[tap]
                value = outside[channel] if at is None else x[n, at[0], at[1], channel]
                node = 2 * node + int(value > values[b, node])
            for m in range(lut.shape[2]):
                sums[m] += int(lut[b, node - values.shape[1], m])
        rows.append(sums)
    return [np.array(rows, np.int32)]


def max_pool2d(
    inputs: Arrays,
    kernel: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
) -> Arrays:
    (x,) = inputs
    rows = []
    for n, taps in _windows(x, kernel, stride, padding, dilation):
        row = []
        for c in range(x.shape[3]):
            numbers = [x[n, at[0], at[1], c] for at in taps if at is not None]
            nans = [v for v in numbers if math.isnan(v)]
            row.append(nans[0] if nans else max(numbers))
        rows.append(row)
    return [np.array(rows, x.dtype)]


DEFINITIONS = {"lut_conv2d": lut_conv2d, "max_pool2d": max_pool2d}
