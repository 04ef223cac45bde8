"""How a product of many rows is cut: tiles in registers, panels in caches, blocks of rows."""

from __future__ import annotations

from dataclasses import dataclass

from lutcc.schedules.x86.config import DenseConfig
from lutcc.schedules.x86.granules import Granules
from lutcc.schedules.x86.pack_rows import RowLayout

#: Bytes that the numbers of the rows of a block take at most.
BLOCK_BYTES = 4 << 20
#: By kind of granules, rows of a tile with 4 vectors of sums each, and with what else it takes, in
#: 32 (16) registers: a product of integers waits in one of its own until it is added, those of
#: pairs in two. With a row more LLVM spills: with AVX2 words took 2.2 times as long, pairs 1.2.
_ROWS_512 = {"dpbusd": 6, "shifted": 6, "bfloats": 6, "floats": 6, "words": 6, "pairs": 4}
_ROWS_256 = {"floats": 3, "words": 2, "pairs": 1}


def default_panels(granules: Granules, *, direct: bool) -> dict[str, int]:
    """Return the hand-picked fields of a config that matter to many rows.

    An expanded panel takes half of the L1 cache. Of one that lies in the blob all columns are done
    at once, as far as a part of L2 holds it: to add up sums of several blocks of columns costs more
    than to read a panel from there, by up to a quarter.

    Parameters
    ----------
    granules
        The arithmetic.
    direct
        Whether panels lie in the blob.
    """
    return {
        "vectors": 4,
        "tile_rows": (_ROWS_512 if granules.isa.has_avx512 else _ROWS_256)[granules.kind],
        "block_rows": 120,
        "together": 8,
        "panel_bytes": 192 << 10 if direct else 16 << 10,
    }


@dataclass(frozen=True)
class Cut:
    """How a product of many rows is cut.

    Attributes
    ----------
    granules, layout
        The arithmetic; how W is packed.
    config
        Sizes of panels, tiles and blocks.
    """

    granules: Granules
    layout: RowLayout
    config: DenseConfig

    @property
    def tile_rows(self) -> int:
        """Rows of x of a register tile."""
        return self.config.tile_rows

    @property
    def vectors(self) -> int:
        """Row vectors of a panel."""
        return self.config.vectors

    @property
    def width(self) -> int:
        """Outputs of a panel: 4 to 16."""
        return self.vectors * self.layout.lanes

    @property
    def panels(self) -> int:
        """Panels of W."""
        return -(-self.layout.rows // self.width)

    @property
    def step_granules(self) -> int:
        """Granules of a step of the packed weights."""
        return self.layout.step_columns // self.granules.columns

    @property
    def blocks(self) -> int:
        """Blocks of columns."""
        step = self.step_granules * self.vectors * self.layout.vector_bytes
        return -(-self.layout.steps // max(1, self.config.panel_bytes // step))

    @property
    def block_steps(self) -> int:
        """Steps of a block of columns."""
        return -(-self.layout.steps // self.blocks)

    def block_rows(self, rows: int | None) -> int:
        """Rows of x of a block, in whole tiles; ``rows`` is N where it is known."""
        row_bytes = self.layout.steps * self.step_granules * 16
        most = max(1, min(self.config.block_rows, BLOCK_BYTES // row_bytes))
        most = most if rows is None else min(most, rows)
        return -(-most // self.tile_rows) * self.tile_rows
