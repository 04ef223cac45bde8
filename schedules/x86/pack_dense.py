"""How dense weights lie in the blob: in the order in which they are multiplied. NumPy alone.

A step is 32 columns, unless a layout says otherwise: 2 packed vectors of int8 (columns 0 .. 15 of
each row of a row vector, then 16 .. 31), 4 of bfloat16, 8 of float32. Rows and columns are padded
with zeros.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutcc.ir.arithmetic import round_to_bfloat16
from lutcc.schedules.x86.pack_rows import RowLayout

Array = NDArray[Any]

#: Columns of a step.
STEP_COLUMNS = 32
_LANE = 16


@dataclass(frozen=True, slots=True)
class DenseLayout(RowLayout):
    """Sizes of packed weights.

    Attributes
    ----------
    itemsize
        Bytes of a weight: 1, 2 or 4.
    rows, columns, lanes, tile
        As of :class:`RowLayout`.
    offset
        What is added to integers: 0, or 128, which makes them unsigned.
    step
        Columns of a step, which fill whole vectors.

    Examples
    --------
    >>> layout = DenseLayout(itemsize=2, rows=17, columns=70, lanes=4, tile=4, offset=0)
    >>> layout.steps, layout.tiles, layout.step_vectors, layout.index_nbytes
    (3, 2, 4, 6144)
    """

    itemsize: int
    rows: int
    columns: int
    lanes: int
    tile: int
    offset: int
    step: int = STEP_COLUMNS

    @property
    def step_columns(self) -> int:
        """Columns of a step."""
        return self.step

    @property
    def step_vectors(self) -> int:
        """Packed vectors of a step of one row vector."""
        return self.step * self.itemsize // _LANE

    def to_json(self) -> dict[str, int]:
        """Return the fields."""
        return asdict(self)


def pack_dense(weight: Array, **sizes: int) -> Array:
    """(M, K) float32, bfloat16 or int8 -> packed bytes; ``sizes`` as of :class:`DenseLayout`.

    Of float32, ``itemsize`` 2 makes bfloat16, rounded to nearest, ties to even.
    """
    layout = DenseLayout(**sizes)
    dtype = {1: "uint8", 2: "uint16", 4: "float32"}[layout.itemsize]
    shape = (layout.tiles, layout.steps, layout.tile, layout.step_vectors, layout.lanes)
    each = _LANE // layout.itemsize
    packed = np.empty((*shape, each), dtype)
    for first, last in layout.pieces():
        rows = slice(first * layout.tile_rows, last * layout.tile_rows)
        padded = np.zeros(((last - first) * layout.tile_rows, layout.steps * layout.step), dtype)
        found = _items(weight[rows], layout)
        padded[: len(found), : layout.columns] = found
        parts = (-1, layout.tile, layout.lanes, layout.steps, layout.step_vectors, each)
        packed[first:last] = padded.reshape(parts).transpose(0, 3, 1, 4, 2, 5)
    return packed


def _items(weight: Array, layout: DenseLayout) -> Array:
    """Return weights in the type that is stored."""
    if layout.itemsize == 1:
        return weight.view(np.uint8) + np.uint8(layout.offset)
    if layout.itemsize == 4:
        return weight.astype(np.float32)
    if weight.dtype.itemsize == 2:
        return weight.view(np.uint16)
    bits = np.ascontiguousarray(round_to_bfloat16(weight)).view(np.uint32)
    return (bits >> np.uint32(16)).astype(np.uint16)
