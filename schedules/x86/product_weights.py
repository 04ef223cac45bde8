"""The weights of a product as its schedules see them, and what becomes of finished sums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lutcc.schedules.intrinsics import streaming
from lutcc.schedules.x86.activation import activated
from lutcc.schedules.x86.codebook_rows import PreparedRows
from lutcc.schedules.x86.emit import Expr, View, bind, cast, splat


class Packed(Protocol):
    """Weights in the blob, in the order in which they are multiplied."""

    @property
    def layout(self) -> Any:
        """How they lie, a :class:`lutcc.schedules.x86.pack_rows.RowLayout`."""
        ...

    @property
    def indices(self) -> View:
        """Their bytes."""
        ...

    @property
    def direct(self) -> bool:
        """Whether packed vectors are granules: 4 row vectors of a panel side by side."""
        ...

    def packed(self, tile: Expr, step: Expr | int, vector: int) -> list[Expr]:
        """Load the packed vectors of a step of row vector ``vector`` of a row tile."""
        ...

    def table(self, tile: Expr, number: Expr | int, vector: int) -> list[Expr]:
        """Load the look-up vectors that a step needs, if any."""
        ...

    def granules(self, packed: Sequence[Expr], tables: Sequence[list[Expr]]) -> Iterator[Expr]:
        """Yield the weights of a step, a granule of each lane after the other."""
        ...


@dataclass(frozen=True)
class Weights:
    """The packed constants of a product.

    Attributes
    ----------
    packed
        Weights, or indices and tables.
    units
        What the sum of a row of W is multiplied with; None where that is 1.
    bias
        By row of W.
    order
        The output of each row of W; None where it is the row's own number.
    activation
        What is applied to the results.
    """

    packed: Packed
    units: View | None
    bias: View
    order: View | None
    activation: str = "none"

    def results(
        self, x: PreparedRows, row: Expr | int, column: Expr, value: Expr, width: int
    ) -> Expr:
        """Turn sums of a row of x into results.

        Parameters
        ----------
        x, row
            The prepared rows, and which one.
        column, width
            The first row of W, and how many.
        value
            Their sums.
        """
        unit = None if self.units is None else self.units.load(column, width)
        if x.granules.integers:
            if x.granules.kind == "dpbusd":
                value = value - splat(x.totals.load(row), "int32", width)
            assert unit is not None
            unit = splat(x.units.load(row), "float32", width) * unit
            value = streaming.rounded(cast(f"float32x{width}", value) * bind(unit), width)
        elif unit is not None:
            value = value * unit
        result = bind(bind(value) + self.bias.load(column, width))
        return activated(self.activation, result)
