"""What a kernel may choose; :mod:`lutcc.schedules.x86.defaults` has what it does by itself.

A config is a frozen dataclass; its ``space`` lists every value worth trying, the default first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from lutcc.errors import CompileError, suggest


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
        At or below this many rows each row is done alone, from tables laid out [C, K, M]; with
        more, a few that are left of groups are.
    """

    row_block: int
    row_threshold: int

    def to_json(self) -> dict[str, int]:
        """Return the fields."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class RowsConfig:
    """How rows that are done alone are cut.

    Attributes
    ----------
    scan_blocks
        Blocks of 64 output columns that a scan sums in one pass over the codebooks.
    prefetch
        How many codebooks ahead a scan asks for table entries; 0 leaves it to the hardware.
    linear_chunks
        Chunks of 16 output columns that a matrix product sums in one pass over its depth.
    linear_batch
        Rows that share each load of a weight.
    linear_rows
        Rows that share weights in cache: they go through a stage with ``linear`` together.
    """

    scan_blocks: int
    prefetch: int
    linear_chunks: int
    linear_batch: int
    linear_rows: int

    def to_json(self) -> dict[str, int]:
        """Return the fields."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class EncodeConfig:
    """How an encoder reads row-major input in blocks of rows.

    Attributes
    ----------
    singles
        Where at most this many of 16 neighbouring columns are compared, each is read by itself;
        else the 16 columns of 16 rows are transposed.
    """

    singles: int

    def to_json(self) -> dict[str, int]:
        """Return the fields."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class GatherConfig:
    """How a weighted gather passes over its tables.

    Attributes
    ----------
    rows
        Rows of a block: tables are read once for each.
    columns
        Outputs of a slice: 16, 32, 64 or 128; at least 32 for bfloat16 tables, and a byte vector
        for int8 ones.
    group
        Codes whose table rows are added in registers in one go: 4, 8, 16 or 32.
    """

    rows: int
    columns: int
    group: int

    def to_json(self) -> dict[str, int]:
        """Return the fields."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ProductConfig:
    """How a product over packed panels is cut, see :mod:`lutcc.schedules.x86.panels`.

    Attributes
    ----------
    tile_rows, tile_chunks
        Register tile: rows, and chunks of 16 columns.
    row_panels
        Panels of ``tile_rows`` rows that one thread packs at a time.
    depth
        Terms of the sums that a packed panel holds.
    """

    tile_rows: int
    tile_chunks: int
    row_panels: int
    depth: int

    def to_json(self) -> dict[str, int]:
        """Return the fields."""
        return asdict(self)

    def updated(self, values: Mapping[str, Any]) -> Self:
        """Return a copy with some fields replaced.

        Raises
        ------
        CompileError
            For a field that does not exist.
        """
        unknown = set(values) - set(self.to_json())
        if unknown:
            raise CompileError(
                f"unknown field {min(unknown)!r} of a product's config",
                fix=suggest(min(unknown), self.to_json()),
            )
        return replace(self, **values)


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseConfig:
    """How rows are multiplied with weights that lie packed, see :mod:`lutcc.schedules.x86.dense`.

    Attributes
    ----------
    few
        Up to so many rows stream the weights: 0 to 8.
    prefetch
        How many bytes ahead weights are asked for; 0 leaves it to the hardware.
    vectors
        Row vectors of a panel of weights: 2 or 4.
    tile_rows
        Rows of x of a register tile, each with a sum for each of the panel's vectors.
    block_rows
        Rows of x that are prepared together, at most.
    together
        Panels that are done one after the other with a block of columns of x.
    panel_bytes
        What a block of columns of a panel takes at most: all columns are one block where they fit.
    """

    few: int
    prefetch: int
    vectors: int
    tile_rows: int
    block_rows: int
    together: int
    panel_bytes: int

    def __post_init__(self) -> None:
        limits = {
            "few": (0, MOST_FEW), "prefetch": (0, 1 << 30), "tile_rows": (1, 32),
            "block_rows": (1, 1 << 20), "together": (1, 1 << 20), "panel_bytes": (1, 1 << 30),
        }  # fmt: skip
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise CompileError(
                    f"{name} = {value!r} in the config of a product", fix=f"use {least} to {most}"
                )
        if self.vectors not in (2, 4):
            raise CompileError(
                f"vectors = {self.vectors!r} in the config of a product", fix="use 2 or 4"
            )

    to_json = ProductConfig.to_json
    updated = ProductConfig.updated


@dataclass(frozen=True, slots=True, kw_only=True)
class CodebookConfig(DenseConfig):
    """The same for weights that are looked up.

    Attributes
    ----------
    tile
        Vectors of rows of W whose indices lie side by side, and are done together where rows of x
        are few: 1, 2 or 4.
    """

    tile: int


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """How attention is cut, see :mod:`lutcc.schedules.x86.attention`.

    Attributes
    ----------
    queries
        Queries of a unit of work: a multiple of ``tile_rows``.
    keys
        Keys of a block: a multiple of 16.
    tile_rows, tile_vectors
        Register tile: queries, and vectors of 16 keys, or of 16 columns of values.
    """

    queries: int
    keys: int
    tile_rows: int
    tile_vectors: int

    def __post_init__(self) -> None:
        most = 1 << 16
        for name in ("queries", "keys", "tile_rows", "tile_vectors"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise CompileError(
                    f"{name} = {value!r} in the config of an attention", fix=f"use 1 to {most}"
                )
        if self.queries % self.tile_rows or self.keys % 16:
            raise CompileError(
                f"queries = {self.queries}, keys = {self.keys} in the config of an attention",
                fix=f"use a multiple of tile_rows = {self.tile_rows}, and of 16",
            )

    to_json = ProductConfig.to_json
    updated = ProductConfig.updated


@dataclass(frozen=True, slots=True)
class FixedConfig:
    """Nothing can be varied."""

    to_json = ProductConfig.to_json
    updated = ProductConfig.updated


@dataclass(frozen=True, slots=True)
class KernelConfigs:
    """The configs of one fused group.

    Attributes
    ----------
    stage
        Row blocking.
    accumulate, linear
        Register tiles of ``lut_accumulate`` and ``linear``.
    rows
        Rows done alone.
    encode
        Encoders.
    gather
        Weighted gathers, where there is one.
    source
        ``default``, or where the values were found.
    """

    stage: StageConfig
    accumulate: TileConfig
    linear: TileConfig
    rows: RowsConfig
    encode: EncodeConfig
    gather: GatherConfig | None = None
    source: str = "default"

    def to_json(self) -> dict[str, Any]:
        """Return the nested fields as JSON values."""
        gather = {"gather": self.gather.to_json()} if self.gather is not None else {}
        return {
            "stage": self.stage.to_json(),
            "accumulate": self.accumulate.to_json(),
            "linear": self.linear.to_json(),
            "rows": self.rows.to_json(),
            "encode": self.encode.to_json(),
            **gather,
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
            current = getattr(self, part) if part in _PARTS else None
            if current is None:
                raise CompileError(f"unknown config part {part!r}", fix=suggest(part, _PARTS))
            unknown = set(fields) - set(current.to_json())
            if unknown:
                raise CompileError(
                    f"unknown field {min(unknown)!r} of config part {part!r}",
                    fix=suggest(min(unknown), current.to_json()),
                )
            result = replace(result, **{part: replace(current, **fields)})
        return replace(result, source=source)


#: Rows that stream the weights together at most.
MOST_FEW = 8
_PARTS = ("stage", "accumulate", "linear", "rows", "encode", "gather")
