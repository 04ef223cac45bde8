"""What weights have in common that lie with one row of W in each 16-byte lane. NumPy alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

#: Weights that are packed at a time.
_AT_ONCE = 1 << 22


class RowLayout(ABC):
    """Sizes of packed weights: [row tile][step][row vector][packed vector][lane][16 bytes].

    A *step* is a run of columns that fills whole vectors. A vector has ``lanes`` lanes of 16 bytes,
    lane r of which belongs to row r of a *row vector*; ``tile`` row vectors lie side by side.

    Attributes
    ----------
    rows, columns
        M and K.
    lanes
        16-byte lanes of a vector: rows of a row vector.
    tile
        Row vectors side by side.
    """

    __slots__ = ()

    rows: int
    columns: int
    lanes: int
    tile: int

    @property
    @abstractmethod
    def step_columns(self) -> int:
        """Columns of a step, a multiple of 32."""

    @property
    @abstractmethod
    def step_vectors(self) -> int:
        """Packed vectors of a step of one row vector."""

    @property
    def table_steps(self) -> int:
        """Steps that a table serves; 0 where a step needs several tables."""
        return self.steps

    @property
    def step_tables(self) -> int:
        """Tables of a step."""
        return 1

    @property
    def tables(self) -> int:
        """Tables of a row."""
        return 1

    @property
    def table_columns(self) -> int:
        """Columns that a table serves: whole steps, or a whole part of one."""
        return self.steps * self.step_columns

    @property
    def steps(self) -> int:
        """Steps of a row."""
        return max(1, -(-self.columns // self.step_columns))

    @property
    def tile_rows(self) -> int:
        """Rows of a row tile."""
        return self.lanes * self.tile

    @property
    def tiles(self) -> int:
        """Row tiles."""
        return -(-self.rows // self.tile_rows)

    @property
    def vector_bytes(self) -> int:
        """Bytes of a vector."""
        return self.lanes * 16

    @property
    def step_bytes(self) -> int:
        """Bytes of packed weights of a step of a row tile."""
        return self.tile * self.step_vectors * self.vector_bytes

    @property
    def index_nbytes(self) -> int:
        """Bytes of all packed weights."""
        return self.tiles * self.steps * self.step_bytes

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield ranges of row tiles that are packed at a time."""
        each = max(1, _AT_ONCE // (self.tile_rows * self.steps * self.step_columns))
        for first in range(0, self.tiles, each):
            yield first, min(first + each, self.tiles)
