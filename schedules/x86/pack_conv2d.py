"""How the weights of convolutions lie in the blob: those of a dense layer, tap after tap."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutcc.ir.arithmetic import round_to_bfloat16
from lutcc.schedules.x86.pack_dense import DenseLayout, pack_dense

Array = NDArray[Any]


def as_matrix(weight: Array) -> Array:
    """(O, CG, KH, KW) -> (O, KH*KW*CG), the channels of a tap side by side."""
    return np.ascontiguousarray(weight.transpose(0, 2, 3, 1)).reshape(len(weight), -1)


def pack_conv2d(weight: Array, *, groups: int, interleaved: int, **sizes: int) -> Array:
    """(O, CG, KH, KW) -> packed weights of each group, one after the other.

    Parameters
    ----------
    weight
        float32, bfloat16 or int8.
    groups
        How many.
    interleaved
        Where weights are widened in registers, which takes the even columns of so many before the
        odd ones: they are stored so that columns come out as they lie in an image. Otherwise 1.
    sizes
        As of :class:`lutcc.schedules.x86.pack_dense.DenseLayout`, of a group; its columns are whole
        steps.
    """
    layout = DenseLayout(**sizes)
    found = as_matrix(weight)
    matrix = np.zeros((len(found), layout.columns), found.dtype)
    matrix[:, : found.shape[1]] = found
    if interleaved > 1:
        halves = matrix.reshape(len(matrix), -1, 2, interleaved // 2)
        matrix = np.ascontiguousarray(halves.swapaxes(2, 3)).reshape(matrix.shape)
    return np.stack([pack_dense(part, **sizes) for part in np.split(matrix, groups)])


def pack_conv2d_words(weight: Array, *, per_word: int, tile: int) -> Array:
    """(O, C, KH, KW) int8 -> [O / tile][word][KH][tile] int32 words.

    A word is ``per_word`` of the (KW, C) numbers of a row of a window, the first in its lowest 8
    (16) bits; numbers and outputs that are not there have weights of 0.
    """
    outputs, channels, rows, columns = weight.shape
    words = -(-columns * channels // per_word)
    kind = {4: np.int8, 2: np.int16}[per_word]
    padded = np.zeros((-(-outputs // tile) * tile, rows, words * per_word), kind)
    in_order = weight.transpose(0, 2, 3, 1).reshape(outputs, rows, -1)
    padded[:outputs, :, : columns * channels] = in_order
    parts = padded.reshape(-1, tile, rows, words, per_word).transpose(0, 3, 2, 1, 4)
    return np.ascontiguousarray(parts).view("<i4")[..., 0]


def pack_conv2d_shifts(weight: Array, *, length: int, shift: int) -> Array:
    """(O, CG, KH, KW) int8 -> (length,) int32: ``shift`` times the sum of each output's weights."""
    sums = weight.reshape(len(weight), -1).sum(axis=1, dtype=np.int64) * shift
    shifts = np.zeros(length, np.int32)
    shifts[: len(sums)] = sums.astype(np.int32)
    return shifts


def pack_depthwise(weight: Array, *, taps: int, columns: int, rounded: bool) -> Array:
    """(C, 1, KH, KW) -> (KH*KW, C padded to ``columns``) float32, rounded to bfloat16 if wanted."""
    table = np.zeros((taps, columns), np.float32)
    table[:, : len(weight)] = as_matrix(weight).astype(np.float32).T
    return round_to_bfloat16(table) if rounded else table
