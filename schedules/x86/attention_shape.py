"""What is known of an ``attention`` when it is compiled, and where the numbers of a head are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lutcc.ir.module import Operation
from lutcc.schedules.intrinsics.polynomials import LOG2_E
from lutcc.schedules.x86.config import AttentionConfig
from lutcc.schedules.x86.context import Tensor
from lutcc.schedules.x86.emit import LANES, Expr, View, bind, equal, i64, select, splat
from lutcc.schedules.x86.exponential import exp2
from lutcc.schedules.x86.isa import Isa
from lutcc.schedules.x86.pack import round_up


@dataclass(frozen=True)
class Shape:
    """What is known of an attention when it is compiled, and how it is cut.

    Attributes
    ----------
    heads, group
        Heads of queries, and how many of them share a head of keys.
    columns, values
        Columns of a head of keys, and of values.
    scale, mask, causal
        As the op has them.
    cut
        How it is cut.
    pairs
        Whether numbers are rounded to bfloat16 and multiplied in pairs.
    """

    heads: int
    group: int
    columns: int
    values: int
    scale: float
    mask: str
    causal: bool
    cut: AttentionConfig
    pairs: bool

    @classmethod
    def of(cls, op: Operation, isa: Isa, config: AttentionConfig) -> Shape:
        """Read it off an operation."""
        heads, groups = (int(op.attr(name)) for name in ("heads", "kv_heads"))  # type: ignore[arg-type]
        return cls(
            heads,
            heads // groups,
            op.operands[0].type.size(2) // heads,
            op.operands[2].type.size(2) // groups,
            float(op.attr("scale")),  # type: ignore[arg-type]
            str(op.attr("mask")),
            bool(op.attr("causal")),
            config,
            op.attr("compute") == "bfloat16" and isa.has_bf16,
        )

    @property
    def queries(self) -> int:
        """Queries of a unit of work."""
        return self.cut.queries

    @property
    def block_keys(self) -> int:
        """Keys of a block."""
        return self.cut.keys

    @property
    def tile_rows(self) -> int:
        """Queries of a register tile."""
        return self.cut.tile_rows

    @property
    def tile_vectors(self) -> int:
        """Vectors of keys whose scores a tile takes at once, and of columns of values."""
        return self.cut.tile_vectors

    @property
    def width(self) -> int:
        """Columns of values with their padding."""
        return round_up(self.values, LANES)

    @property
    def factor(self) -> float:
        """What sums of products are multiplied with: powers of two follow, but for added masks."""
        return self.scale if self.mask == "add" else self.scale * LOG2_E

    def power(self, difference: Expr) -> Expr:
        """Return e to a difference of scores."""
        if self.mask == "add":  # masks near the least float32 must not overflow
            difference = difference * splat(LOG2_E)
        return exp2(bind(difference), -127.0)


@dataclass(frozen=True)
class Head:
    """One head of one image.

    Attributes
    ----------
    operands, target
        q, k, v, the mask and the result.
    image, number
        Which.
    queries, keys
        S and T.
    """

    operands: Sequence[Tensor]
    target: View
    image: Expr
    number: Expr
    queries: Expr
    keys: Expr

    def query_at(self, shape: Shape, row: Expr) -> Expr:
        """Return where a query's columns begin."""
        line = (self.image * self.queries + row) * shape.heads + self.number
        return bind(line * shape.columns)

    def key_at(self, shape: Shape, key: Expr) -> Expr:
        """Return where a key's columns begin."""
        line = (self.image * self.keys + key) * (shape.heads // shape.group)
        return bind((line + self.number // i64(shape.group)) * shape.columns)

    def value_at(self, shape: Shape, key: Expr) -> Expr:
        """Return where a value's columns begin."""
        line = (self.image * self.keys + key) * (shape.heads // shape.group)
        return bind((line + self.number // i64(shape.group)) * shape.values)

    def result_at(self, shape: Shape, row: Expr) -> Expr:
        """Return where a result's columns begin."""
        line = (self.image * self.queries + row) * shape.heads + self.number
        return bind(line * shape.values)

    def mask_at(self, row: Expr) -> Expr:
        """Return where the mask of a query begins."""
        sizes, place = self.operands[3].sizes, i64(0)
        for index, size in zip((self.image, self.number, row), sizes[:3], strict=True):
            place = place * size + select(equal(size, i64(1)), i64(0), index)
        return bind(place * sizes[3])
