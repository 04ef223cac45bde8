"""The configs of a product: what is worth trying, the hand-picked defaults, which fit."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

from lutcc.frontend.relax.matmul_schedule import MatmulConfig, schedule_matmul
from lutcc.frontend.relax.product import Product, find_product
from lutcc.frontend.relax.sizes import size_of
from lutcc.schedules.space import Config, Knob, KnobValue, Space

FEW = 8
"""Up to so many rows of A, B is what takes time to read; above, the multiplications do."""

_ROWS = (1, 2, 4, 6, 8, 12, 14)
_VECTORS = (1, 2, 3, 4, 6, 8)
_GROUPS = (1, 2, 4, 8, 16)
_COLUMNS = (128, 256, 512, 1024, 2048, 4096)
_UNROLLS = (1, 2, 4, 8, 16)
_GROUP_BYTES = 3 << 19
"""Panels packed together must stay in a second-level cache of 2 MB (one of 1 MB takes fewer)."""


_GROUP_COLUMNS = 256
_TILES = {(6, 4): 1.0, (8, 3): 1.0, (8, 2): 0.8, (6, 2): 0.8, (8, 1): 0.5}
"""Rows and vectors of the default tiles, and how fast each is, relative, in its own columns."""


def product_spaces(func: Any, isa: str) -> dict[str, Space]:
    """Return the configs of each part of a product; empty if ``func`` is none.

    Knobs are called ``few.*`` where A has at most :data:`FEW` rows and ``many.*`` where it has
    more: a function with an open number of rows holds code for both.
    """
    product = find_product(func)
    if product is None:
        return {}
    return {part: _space(product, isa, part) for part in _parts(product)}


def product_part(func: Any, symbol: str | None, rows: int) -> str:
    """Return the part of a product that runs when the batch symbol is ``rows``."""
    product = find_product(func)
    assert product is not None, "product_spaces found it"
    return "few" if size_of(product.i_extent, symbol, rows) <= FEW else "many"


def schedule_product(func: Any, isa: str, config: Config) -> Any | None:
    """Return ``func`` scheduled with the knobs of each part that it needs, or None if no product.

    Raises
    ------
    tvm.s_tir.ScheduleError
        If a primitive refuses the loop nest.
    """
    product = find_product(func)
    if product is None:
        return None
    versions = {}
    for part in _parts(product):
        knobs: dict[str, Any] = {
            k.removeprefix(f"{part}."): v for k, v in config.items() if k.startswith(f"{part}.")
        }
        lanes = _lanes(product, isa, knobs["pack"])
        versions[part] = schedule_matmul(func, MatmulConfig(lanes=lanes, **knobs)).mod["main"]
    if len(versions) == 1:
        return next(iter(versions.values()))
    return _either(product.i_extent <= FEW, versions["few"], versions["many"])


def _parts(product: Product) -> tuple[str, ...]:
    if product.i is not None:
        return ("few",) if product.i <= FEW else ("many",)
    least = size_of(product.i_extent, None, 1, other=1)
    return ("few", "many") if least <= FEW else ("many",)


def _either(condition: Any, few: Any, many: Any) -> Any:
    """Return a function that is ``few`` under a condition on its sizes and ``many`` otherwise."""
    from tvm import s_tir, tirx

    body = tirx.IfThenElse(condition, few.body, many.body)
    root = s_tir.SBlock([], [], [], "root", body)
    return few.with_body(s_tir.SBlockRealize([], tirx.const(True, "bool"), root))


def _space(product: Product, isa: str, part: str) -> Space:
    """Return the knobs of one part, ``few`` or ``many``; knobs that a way ignores are held."""
    packs = [p for p in ("panels", "none", "stream", "dot") if _can(product, isa, p)]
    if part == "many":
        packs = [p for p in packs if p != "stream"]
    default = _default(product, isa, part)
    values: dict[str, tuple[KnobValue, ...]] = {
        "pack": tuple(packs),
        "rows": _ROWS,
        "vectors": _VECTORS,
        "order": ("panels", "tiles"),
        "group": _GROUPS,
    }
    if "stream" in packs:
        values["columns"] = (0, *_columns(product, isa))
        values["unroll"] = tuple(u for u in _UNROLLS if u == 1 or _divides(u, product.k))
    held = asdict(MatmulConfig("", 0))

    def valid(config: Config) -> bool:
        c: dict[str, Any] = {k.removeprefix(f"{part}."): v for k, v in config.items()}
        used = _USED[str(c["pack"])]
        if any(c[k] != held[k] for k in c if k not in used):
            return False
        whole = MatmulConfig(lanes=_lanes(product, isa, c["pack"]), **c)
        return _fits(product, _registers(isa), part, whole)

    names = {f"{part}.{name}": name for name in values}
    return Space(
        tuple(Knob(knob, values[name]) for knob, name in names.items()),
        {knob: getattr(default, name) for knob, name in names.items()},
        valid,
    )


_USED = {
    "panels": ("pack", "rows", "vectors", "group"),
    "none": ("pack", "rows", "vectors", "order"),
    "stream": ("pack", "columns", "unroll"),
    "dot": ("pack", "rows", "vectors", "order"),
}
"""Knobs that each way of reading B heeds."""


def _fits(product: Product, registers: int, part: str, config: MatmulConfig) -> bool:
    tile = config.rows * config.vectors
    # accumulators, and the vectors of B or of A that are alive beside them
    if tile + min(config.rows, config.vectors) >= registers:
        return False
    if config.rows > (product.i or (FEW if part == "few" else _ROWS[-1])):
        return False
    if config.pack == "stream":
        return config.columns > 0
    if config.pack == "dot":
        whole = config.vectors == 1 or _divides(config.vectors, product.j)
        return whole and tile >= _dot_columns(product)
    width = config.lanes * config.vectors
    small = 2 * tile < registers // 2 and config.rows < _at_most(product, _ROWS[-1])
    if config.pack == "none":
        return _divides(width, product.j) and not small
    if config.vectors > 1 and product.j is not None and width - config.lanes >= product.j:
        return False  # a vector of nothing but padding
    if small and config.vectors > 1:
        return False
    if config.group == 1:
        return True
    if product.j is None or product.k is None or -(-product.j // width) % config.group:
        return False
    return config.group * width * product.k * 4 <= _GROUP_BYTES


def _can(product: Product, isa: str, pack: str) -> bool:
    """Tell whether a way of reading B is possible: where and in which order its elements lie."""
    if pack == "panels":
        return True
    if pack == "dot":
        return product.b_depth and product.a_depth and _divides(_full(isa), product.k)
    return product.b_columns and _lanes(product, isa, pack) > 1


def _lanes(product: Product, isa: str, pack: KnobValue) -> int:
    """Return the vector width: the register's, or less where B in place is narrower."""
    lanes = _full(isa)
    while pack in ("none", "stream") and not _divides(lanes, product.j) and lanes > 1:
        lanes //= 2
    return lanes


def _columns(product: Product, isa: str) -> list[int]:
    """Return widths for ``stream``: whole vectors that divide B's columns, near round numbers."""
    assert product.j is not None, "stream needs it"
    lanes = _lanes(product, isa, "stream")
    parts = range(1, product.j // lanes + 1)
    widths = [product.j // n for n in parts if product.j % (n * lanes) == 0]
    wanted = (*_COLUMNS, product.j)
    near = {min(widths, key=lambda w, c=c: abs(math.log(w / c))) for c in wanted}
    return sorted(near)


def _registers(isa: str) -> int:
    return 16 if isa == "avx2" else 32


def _full(isa: str) -> int:
    return 8 if isa == "avx2" else 16


def _divides(part: int, size: int | None) -> bool:
    return size is not None and size > 0 and size % part == 0


def _default(product: Product, isa: str, part: str) -> MatmulConfig:
    """Return the hand-picked config: B is packed only where that pays."""
    lanes = _full(isa)
    if part == "few" and _can(product, isa, "dot"):
        columns = _dot_columns(product)
        if product.i is None:
            return MatmulConfig("dot", lanes, rows=1, vectors=columns)
        rows = _at_most(product, FEW)
        return MatmulConfig(
            "dot", lanes, rows, min(columns, _registers(isa) // 2 // rows), order="tiles"
        )
    if part == "few" and _can(product, isa, "stream"):
        lanes = _lanes(product, isa, "stream")
        columns = min(_columns(product, isa), key=lambda c: abs(math.log(c / 1024)))
        unroll = max(u for u in _UNROLLS[:4] if _divides(u, product.k) or u == 1)
        return MatmulConfig("stream", lanes, columns=columns, unroll=unroll)

    def cost(tile: tuple[int, int]) -> float:
        width = lanes * tile[1]
        return -(-(product.j or width) // width) * width / _TILES[tile]

    rows, vectors = (6, 2) if product.j is None else min(_tiles(isa), key=cost)
    config = MatmulConfig("panels", lanes, _whole_rows(product, rows), vectors)
    for group in reversed(_GROUPS if part == "many" else ()):
        together = group * vectors * lanes
        grouped = replace(config, group=group)
        if (
            together <= _GROUP_COLUMNS
            and 4 * together <= (product.j or 0)  # work for four threads at least
            and _fits(product, _registers(isa), part, grouped)
        ):
            return grouped
    return config


def _tiles(isa: str) -> list[tuple[int, int]]:
    return [t for t in _TILES if t[0] * t[1] + min(t) < _registers(isa)]


def _whole_rows(product: Product, rows: int) -> int:
    """Return rows per tile, at least half of ``rows``, that leave little of the last tile empty."""
    most = _at_most(product, rows)
    if product.i is None:
        return most
    done = {r: -(-product.i // r) * r for r in _ROWS if rows <= 2 * r <= 2 * most} or {most: most}
    return max(r for r, padded in done.items() if padded <= 1.05 * min(done.values()))


def _at_most(product: Product, rows: int) -> int:
    """Return the largest number of rows per tile up to ``rows`` that A has."""
    return max(r for r in _ROWS if r <= min(product.i or rows, rows))


def _dot_columns(product: Product) -> int:
    """Return columns of B per tile, enough that their sums do not wait for each other."""
    return next(c for c in (4, 2, 1) if c == 1 or _divides(c, product.j))
