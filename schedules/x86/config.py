"""What a kernel may choose, and what it chooses where nobody has tuned it.

A config is a frozen dataclass; its ``space`` lists every value worth trying, the default first.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from lutcc.errors import CompileError, suggest
from lutcc.schedules.x86.isa import Isa


@dataclass(frozen=True, slots=True)
class TileConfig:
    """Register tile of a scan or a matrix product.

    Attributes
    ----------
    tile_m
        Output columns per tile: 1, 2, 4, 8 or 16.
    tile_r
        Row groups per tile.
    """

    tile_m: int
    tile_r: int

    def to_json(self) -> dict[str, int]:
        """Return the fields."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class StageConfig:
    """How the rows of a fused group are cut.

    Attributes
    ----------
    row_block
        Rows that go through all operations of the group before the next block starts, so that
        codes and activations stay in cache.
    row_threshold
        At or below this many rows each row is done alone, from tables laid out [C, K, M].
    """

    row_block: int
    row_threshold: int

    def to_json(self) -> dict[str, int]:
        """Return the fields."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class KernelConfigs:
    """The configs of one fused group.

    Attributes
    ----------
    stage
        Row blocking.
    accumulate, linear
        Register tiles of ``lut_accumulate`` and ``linear``.
    source
        ``default``, or where the values were found.
    """

    stage: StageConfig
    accumulate: TileConfig
    linear: TileConfig
    source: str = "default"

    def to_json(self) -> dict[str, Any]:
        """Return the nested fields as JSON values."""
        return {
            "stage": self.stage.to_json(),
            "accumulate": self.accumulate.to_json(),
            "linear": self.linear.to_json(),
        }

    def updated(self, values: dict[str, Any], source: str) -> Self:
        """Return a copy with the fields in ``values`` (as :meth:`to_json` nests them) replaced.

        Raises
        ------
        CompileError
            For a field that does not exist, or a tile that does not fit the registers.
        """
        result = self
        for part, fields in values.items():
            if part not in ("stage", "accumulate", "linear"):
                raise CompileError(
                    f"unknown config part {part!r}",
                    fix=suggest(part, ("stage", "accumulate", "linear")),
                )
            current = getattr(self, part)
            unknown = set(fields) - set(current.to_json())
            if unknown:
                raise CompileError(
                    f"unknown field {min(unknown)!r} of config part {part!r}",
                    fix=suggest(min(unknown), current.to_json()),
                )
            result = replace(result, **{part: replace(current, **fields)})
        return replace(result, source=source)


def default_configs(
    isa: Isa, *, dot: bool, mean: bool = False, table_bytes: int = 0
) -> KernelConfigs:
    """Return the hand-picked configs of a level.

    Parameters
    ----------
    isa
        The level.
    dot
        Whether the scan sums four codebooks by ``vpdpbusd`` (one accumulator a tile cell) or
        widens bytes to 16 bits (two accumulators).
    mean
        Whether it averages first, which keeps partial averages in registers as well.
    table_bytes
        Size of the largest table. Tables are read once a row block: the less of them the L2 cache
        holds, the more rows should share a reading.
    """
    row_block = 256 if table_bytes < 768 << 10 else 512 if table_bytes < 2 << 20 else 1024
    if isa.name == "avx2":
        tile = TileConfig(2, 2) if mean else TileConfig(4, 1)
        return KernelConfigs(StageConfig(row_block, 8), tile, TileConfig(2, 2))
    if dot:
        return KernelConfigs(StageConfig(row_block, 6), TileConfig(4, 4), TileConfig(8, 2))
    tile = TileConfig(2, 2) if mean else TileConfig(4, 2)
    return KernelConfigs(StageConfig(row_block, 16), tile, TileConfig(8, 2))


def tile_fits(isa: Isa, tile_m: int, tile_r: int, *, accumulators: int) -> bool:
    """Tell whether a register tile leaves room for operands.

    ``accumulators`` is the number of vector registers per tile cell.
    """
    budget = (28 if isa.has_avx512 else 12) // accumulators
    return tile_m * tile_r <= budget
