"""What products that stand in main may choose: spaces that their schedules declare.

A schedule's ``space(op, isa)`` names the configs worth trying for an op whose sizes are known, with
knobs dotted after its ``PART``. Where few rows are done another way than many, the knob ``few`` is
0 (the way of many) or :data:`lutcc.schedules.x86.config.MOST_FEW`, and knobs of the other way are
held at their defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from lutcc.schedules.space import Config, Knob, Space
from lutcc.schedules.x86.config import MOST_FEW, DenseConfig, ProductConfig
from lutcc.schedules.x86.isa import Isa
from lutcc.schedules.x86.product_cut import Cut

Dense = TypeVar("Dense", bound=DenseConfig)

#: Values of each knob that are worth trying.
_FEW = {"prefetch": (0, 2048, 8192, 32768), "tile": (1, 2, 4)}
_MANY = {
    "vectors": (2, 4),
    "tile_rows": (1, 2, 3, 4, 5, 6, 8, 10, 12),
    "block_rows": (24, 60, 120, 240, 480),
    "together": (4, 8, 16),
    "panel_bytes": (8 << 10, 16 << 10, 32 << 10, 64 << 10, 96 << 10, 192 << 10, 384 << 10),
}
_PANELS = {
    "tile_rows": (2, 4, 6, 8, 10, 12, 14),
    "tile_chunks": (1, 2, 3),
    "row_panels": (4, 10, 20),
    "depth": (128, 256, 512),
}
#: Tiles of fewer sums than this share of the registers leave the multipliers idle.
_LEAST_FILLED = 0.45


def dense_space(
    part: str, default: Dense, cut_of: Callable[[Dense], Cut], rows: int, *, few: bool = True
) -> Space:
    """Return the space of a product of prepared rows.

    Parameters
    ----------
    part
        Name of the config's part.
    default
        The hand-picked config.
    cut_of
        How many rows are cut under a config.
    rows
        How many there are.
    few
        Whether few rows have a way of their own.
    """
    fields = default.to_json()
    values: dict[str, int] = {}
    knobs: list[Knob] = []
    of_few, of_many = [], []

    def knob(name: str, choices: tuple[int, ...], owner: list[str]) -> None:
        dotted = f"{part}.{name}"
        values[dotted] = int(fields[name])
        owner.append(dotted)
        knobs.append(Knob(dotted, tuple(sorted({*choices, values[dotted]}))))

    ways = (0,)
    if few:
        ways = (0, MOST_FEW) if rows <= MOST_FEW else (0,)
        values[f"{part}.few"] = MOST_FEW if rows <= default.few else 0
        knobs.append(Knob(f"{part}.few", ways))
    if MOST_FEW in ways:
        if rows > 1:
            knob("prefetch", _FEW["prefetch"], of_few)
        if "tile" in fields:
            knob("tile", _FEW["tile"], of_few)
    tiles = tuple(n for n in _MANY["tile_rows"] if n < 2 * rows)
    blocks = tuple(n for n in _MANY["block_rows"] if n < 2 * rows)
    for name, choices in {**_MANY, "tile_rows": tiles, "block_rows": blocks}.items():
        knob(name, choices, of_many)

    def valid(config: Config) -> bool:
        alone = few and config[f"{part}.few"] != 0
        if any(config[name] != values[name] for name in (of_many if alone else of_few)):
            return False
        given = {name.removeprefix(f"{part}."): int(value) for name, value in config.items()}
        chosen = replace(default, **given)
        if alone or chosen == default:
            return True
        cut, usual = cut_of(chosen), cut_of(default)
        tile = (chosen.vectors, chosen.tile_rows)
        if tile != (default.vectors, default.tile_rows) and not _tile_fits(cut, *tile, rows):
            return False
        return _tells(chosen, default, cut, usual, cut_of, rows)

    return Space(tuple(knobs), values, valid)


def _tells(
    chosen: Dense,
    default: Dense,
    cut: Cut,
    usual: Cut,
    cut_of: Callable[[Dense], Cut],
    rows: int,
) -> bool:
    """Whether no other config of the space gives the same loops: the default stands for its own."""
    if cut.blocks == 1 and chosen.together != default.together:
        return False
    if chosen.panel_bytes != default.panel_bytes:
        if cut.blocks == cut_of(replace(chosen, panel_bytes=default.panel_bytes)).blocks:
            return False
        smaller = [n for n in _MANY["panel_bytes"] if n < chosen.panel_bytes]
        if smaller and cut_of(replace(chosen, panel_bytes=smaller[-1])).blocks == cut.blocks:
            return False
    if chosen.block_rows != default.block_rows:
        same = replace(chosen, block_rows=default.block_rows)
        if cut.block_rows(rows) == cut_of(same).block_rows(rows):
            return False
        smaller = [n for n in _MANY["block_rows"] if n < chosen.block_rows]
        if smaller:
            other = cut_of(replace(chosen, block_rows=smaller[-1]))
            return other.block_rows(rows) != cut.block_rows(rows)
    return True


def _tile_fits(cut: Cut, vectors: int, tile_rows: int, rows: int) -> bool:
    """Tell whether a tile leaves room for its factors, and keeps the multipliers busy."""
    granules = cut.granules
    registers = 32 if granules.isa.has_avx512 else 16
    parts = 3 if granules.kind == "pairs" else 1
    temporary = 2 if granules.kind in ("pairs", "words") else 0
    sums = vectors * tile_rows
    held = min(vectors * granules.together, tile_rows * parts)
    other = parts if held < tile_rows * parts else granules.together
    if sums + held + other + temporary > registers:
        return False
    return sums >= _LEAST_FILLED * registers or tile_rows >= rows


def panel_space(part: str, default: ProductConfig, isa: Isa, rows: int) -> Space:
    """Return the space of a product over packed panels of both factors.

    Parameters
    ----------
    part
        Name of the config's part.
    default
        The hand-picked config.
    isa
        The level.
    rows
        Rows of the result.
    """
    registers, each = (32, 1) if isa.has_avx512 else (16, 2)
    values = {f"{part}.{name}": value for name, value in default.to_json().items()}
    knobs = []
    for name, choices in _PANELS.items():
        usual = values[f"{part}.{name}"]
        kept = [n for n in choices if name != "tile_rows" or n < 2 * rows]
        knobs.append(Knob(f"{part}.{name}", tuple(sorted({*kept, usual}))))

    def valid(config: Config) -> bool:
        tile_rows, chunks = (int(config[f"{part}.tile_{name}"]) for name in ("rows", "chunks"))
        usual = (values[f"{part}.tile_rows"], values[f"{part}.tile_chunks"])
        if (tile_rows, chunks) == usual:
            return True
        sums = tile_rows * chunks * each
        fits = sums + chunks * each + 1 <= registers
        return fits and (sums >= _LEAST_FILLED * registers or tile_rows >= rows)

    return Space(tuple(knobs), values, valid)
