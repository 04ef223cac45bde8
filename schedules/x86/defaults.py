"""Hand-picked configs of kernels, for processors whose tuning logs do not cover them."""

from __future__ import annotations

from lutcc.schedules.x86.config import (
    EncodeConfig,
    GatherConfig,
    KernelConfigs,
    ProductConfig,
    RowsConfig,
    StageConfig,
    TileConfig,
)
from lutcc.schedules.x86.isa import Isa

_L2_BYTES = 2 << 20
_PIECE_BYTES = 128 << 10


def default_configs(
    isa: Isa, *, dot: bool, mean: bool = False, table_bytes: int = 0, entries: int = 16
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
    table_bytes, entries
        Size of the largest table, and entries for each of its codebooks.
    """
    stage = StageConfig(
        _row_block(table_bytes), _row_threshold(isa, dot=dot, nbytes=table_bytes, entries=entries)
    )
    encode = EncodeConfig(4)
    if isa.name == "avx2":
        tile = TileConfig(2, 2) if mean else TileConfig(4, 1)
        return KernelConfigs(stage, tile, TileConfig(2, 2), RowsConfig(2, 0, 1, 6, 48), encode)
    rows = RowsConfig(4, 0, 3, 8, 64)
    if dot:
        return KernelConfigs(stage, TileConfig(4, 4), TileConfig(8, 2), rows, encode)
    tile = TileConfig(2, 2) if mean else TileConfig(4, 2)
    return KernelConfigs(stage, tile, TileConfig(8, 2), rows, encode)


def default_product(isa: Isa) -> ProductConfig:
    """Return the hand-picked config of a product over packed panels."""
    if isa.has_avx512:
        return ProductConfig(14, 2, 10, 256)
    return ProductConfig(6, 1, 12, 512)


def default_gather(itemsize: int, entries: int) -> GatherConfig:
    """Return the hand-picked config of a gather from tables of ``entries`` rows.

    Slices are one or two cache lines wide. A group's piece of a slice takes at most a quarter of a
    megabyte, so that the L2 cache holds it and what it holds next; half of that where entries are
    small, as their sums take more room than they do.
    """
    columns = {4: 32, 2: 32, 1: 64}[itemsize]
    row = entries * columns * itemsize
    group = 16
    while group > 4 and group * row > _PIECE_BYTES * (2 if itemsize == 4 else 1):
        group //= 2
    return GatherConfig(4096, columns, group)


def _row_block(table_bytes: int) -> int:
    """Tables are read once a block: the less of them L2 holds, the more rows share a reading."""
    return 256 if table_bytes < 768 << 10 else 512 if table_bytes < _L2_BYTES else 1024


def _row_threshold(isa: Isa, *, dot: bool, nbytes: int, entries: int) -> int:
    """Return where blocks begin to pay.

    A block of 16 (32, 64) rows costs the same however few of them are there, and reads the whole
    table, a row alone only the entries that its codes select: what does not fit L2, or has many
    entries, is read in vain.
    """
    if nbytes >= _L2_BYTES or entries > 32:
        return 56 if dot else 64
    if dot:
        return 6 if nbytes < 64 << 10 else 10 if nbytes < 768 << 10 else 20
    if isa.name == "avx2":
        return 10 if nbytes < 64 << 10 else 24
    return 16 if nbytes < 64 << 10 else 48


def tile_fits(isa: Isa, tile_m: int, tile_r: int, *, accumulators: int) -> bool:
    """Tell whether a register tile leaves room for operands.

    ``accumulators`` is the number of vector registers per tile cell.
    """
    budget = (28 if isa.has_avx512 else 12) // accumulators
    return tile_m * tile_r <= budget
