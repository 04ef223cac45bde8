"""Constants of convolutions by look-ups, for trees that read planes of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

#: What is known of a node or of a channel whose sums are compared in a window of 16 bits.
NARROW_ROWS = ("unit", "bias", "level", "reach", "middle", "outside")
_NO_NODE = np.array([1, 0, np.inf, 0, 0, 0], np.float32)

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


def pack_narrow_nodes(*sources: Array, taps: int, codebooks: int, relu: bool) -> Array:
    """Nodes (B, K) in heap order -> (codebooks, ceil(K/16), 6, 16) float32 of their channels.

    The rows are :data:`NARROW_ROWS`; nodes that are not there have the level infinity. ``relu``:
    what is above a level below 0 is above -infinity, before the relu. ``sources``: the trees'
    columns and thresholds, the convolution's weights, units and bias, what is outside the image.
    """
    table, channels, levels = _channel_rows(*sources, taps=taps, relu=relu)
    entries = levels.shape[1]
    width = -(-entries // 16) * 16
    found = np.tile(_NO_NODE[:, None], (codebooks, 1, width))
    nodes = table[:, channels].copy()
    nodes[NARROW_ROWS.index("level")] = levels
    found[: len(levels), :, 1:entries] = nodes.transpose(1, 0, 2)[:, :, 1:]
    split = found.reshape(codebooks, len(NARROW_ROWS), width // 16, 16)
    return np.ascontiguousarray(split.transpose(0, 2, 1, 3))


def pack_narrow_channels(*sources: Array, taps: int, relu: bool) -> Array:
    """Channels (C,) -> (ceil(C/16), 6, 16) float32; their level is what is outside."""
    table, channels, _ = _channel_rows(*sources, taps=taps, relu=relu)
    count = table.shape[1]
    table[:, ~np.isin(np.arange(count), channels[:, 1:])] = _NO_NODE[:, None]
    found = np.tile(_NO_NODE[:, None], (1, -(-count // 16) * 16))
    found[:, :count] = table
    split = found.reshape(len(NARROW_ROWS), -1, 16)
    return np.ascontiguousarray(split.transpose(1, 0, 2))


def _channel_rows(
    splitdims: Array,
    splitvals: Array,
    weight: Array,
    units: Array,
    bias: Array,
    outside: Array,
    *,
    taps: int,
    relu: bool,
) -> tuple[Array, Array, Array]:
    """Return :data:`NARROW_ROWS` of each channel, and of each node (B, K) its channel and level.

    Levels that none reaches move no median.
    """
    entries = splitvals.shape[1]
    level = np.zeros(entries, np.intp)
    for depth in range(splitdims.shape[1]):
        level[2**depth : 2 ** (depth + 1)] = depth
    channels, levels = splitdims[:, level] // taps, splitvals.astype(np.float32) + np.float32(0)
    if relu:
        levels = np.where(levels < 0, np.float32(-np.inf), levels)
    compared = np.isfinite(levels)
    compared[:, 0] = False
    middle = np.zeros(len(units), np.float32)
    for channel in np.unique(channels[compared]):
        middle[channel] = np.median(levels[compared & (channels == channel)])
    reach = 128 * np.abs(weight.astype(np.int64)).reshape(len(units), -1).sum(axis=1)
    rows = {"unit": units, "bias": bias, "level": outside, "reach": reach}
    rows |= {"middle": middle, "outside": outside}
    table = np.stack([np.asarray(rows[name], np.float32) for name in NARROW_ROWS])
    return table, channels, levels


def _padded(array: Array, length: int, fill: int) -> Array:
    """Return an array with ``length`` rows."""
    padded = np.full((length, *array.shape[1:]), fill, array.dtype)
    padded[: len(array)] = array
    return padded
