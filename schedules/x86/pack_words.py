"""Constants of trees that compare 16-bit words: see :mod:`lutcc.schedules.x86.word_trees`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutcc.schedules.x86.pack_images import pack_image_values

Array = NDArray[Any]

#: Thresholds of a level of a tree of words, and of a tree: see :func:`word_slots`.
WORD_LEVEL, WORD_THRESHOLDS = 8, 32


def word_slots(depth: int) -> list[int]:
    """Return which node, in heap order, each threshold of a tree of words is of; 0: of none.

    Level l's thresholds are the first ``2**l`` of its ``WORD_LEVEL``: the answers before it are the
    bits of their numbers, the first answer the lowest. All of level 0's are the root's.
    """
    slots = [1] * WORD_LEVEL + [0] * (WORD_THRESHOLDS - WORD_LEVEL)
    for level in range(1, depth):
        for number in range(2**level):
            slots[WORD_LEVEL * level + number] = (1 << level) | _reversed(number, level)
    return slots


def word_code(depth: int) -> list[int]:
    """Return the code of each of 16 bytes of answers: the last the lowest bit, then the first."""
    return [(_reversed(byte >> 1, depth - 1) << 1 | byte & 1) % (1 << depth) for byte in range(16)]


def _reversed(number: int, bits: int) -> int:
    return sum((number >> i & 1) << (bits - 1 - i) for i in range(bits))


def pack_tree_words(splitvals: Array, *, codebooks: int) -> Array:
    """(B, K <= 16) in heap order -> (codebooks, WORD_THRESHOLDS) int16, see :func:`word_slots`.

    Clipped as :func:`pack_image_values` clips.
    """
    heap = pack_image_values(splitvals, codebooks=codebooks, width=16, kind="int16")
    depth = splitvals.shape[1].bit_length() - 1
    return np.ascontiguousarray(heap[:, word_slots(depth)])
