"""Constants of convolutions by look-ups, for trees that read planes of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

#: No sum of a look-up is so large; its difference from a threshold that is not larger fits 32 bits.
SMALL_SUMS = 1 << 30


def pack_image_offsets(
    splitdims: Array, *, taps: Sequence[int], plane: int, codebooks: int
) -> Array:
    """(B, L) -> (codebooks, L) int32: how far from its pixel each level reads.

    ``taps`` says it for each number of a channel's window, ``plane`` how far channels are apart.
    """
    channel, tap = np.divmod(splitdims, len(taps))
    offsets = channel * plane + np.asarray(taps, np.int64)[tap]
    return _padded(offsets.astype(np.int32), codebooks, 0)


def pack_image_values(
    splitvals: Array, *, codebooks: int, width: int, kind: str, sums: bool = False
) -> Array:
    """(B, K) in heap order -> (codebooks, width); what no node compares with is never exceeded.

    In int16, what is beyond its range is taken for the end of it: no sum lies there. ``sums``: the
    same of int32 and :data:`SMALL_SUMS`. No threshold is -0, from which 0 differs by -0.
    """
    if kind == "float32":
        wide, never = np.asarray(splitvals, np.float32) + np.float32(0), np.float32(np.inf)
    else:
        info = np.iinfo(kind)
        least, never = (-SMALL_SUMS, SMALL_SUMS) if sums else (info.min, info.max)
        wide = np.clip(splitvals, least, never).astype(kind)
    values = np.full((codebooks, width), never, kind)
    values[: len(wide), : wide.shape[1]] = wide
    return values


def pack_image_outside(outside: Array, *, kind: str) -> Array:
    """(C,) -> the same in the type of the planes."""
    return np.asarray(outside, kind)


def _padded(array: Array, length: int, fill: int) -> Array:
    """Return an array with ``length`` rows."""
    padded = np.full((length, *array.shape[1:]), fill, array.dtype)
    padded[: len(array)] = array
    return padded
