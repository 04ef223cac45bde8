"""What operations that look at a whole row share: vectors of its columns, sums over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from lutcc.ir.module import Operation
from lutcc.schedules.x86.emit import LANES, Expr, Registers, bind, registers, shuffle, splat

#: Sums that are under way at the same time: an addition takes 2 to 4 cycles.
SLOTS = 4


@dataclass(frozen=True)
class Piece:
    """A vector of 16 columns.

    Attributes
    ----------
    first
        Its first column.
    new
        Lanes that no earlier vector of the row had: the last vector of a row overlaps the one
        before, and where a row has less than 16 columns, lanes past them repeat others.
    slot
        Which of the sums it goes to.
    """

    first: Expr
    new: range = range(LANES)
    slot: int = 0

    def masked(self, value: Expr, neutral: float) -> Expr:
        """Return the vector with ``neutral`` in the lanes that are not new."""
        if len(self.new) == LANES:
            return value
        picks = [lane if lane in self.new else LANES for lane in range(LANES)]
        return bind(shuffle([value, splat(neutral)], picks))


class Reduction(Protocol):
    """One pass over a row that finds something out, and what becomes of the row with it."""

    def begin(self, first: Callable[[], Expr]) -> None:
        """Prepare; ``first`` gives the first vector of the row."""
        ...

    def add(self, value: Expr, piece: Piece) -> None:
        """Look at a vector."""
        ...

    def end(self) -> None:
        """Finish, when all vectors have been seen."""
        ...

    def apply(self, value: Expr, operand: Callable[[int], Expr]) -> Expr:
        """Return the result for a vector; ``operand(i)`` gives that of operand ``i``."""
        ...


#: Makes the reduction of an operation over rows of so many columns.
Maker = Callable[[Operation, int], Reduction]


@dataclass
class Totals:
    """Running totals of a row, some side by side.

    Attributes
    ----------
    neutral
        What they start from.
    """

    neutral: float = 0.0
    _slots: Registers = field(init=False)

    def __post_init__(self) -> None:
        self._slots = registers(SLOTS, "float32", LANES)
        for slot in range(SLOTS):
            self._slots.set(slot, splat(self.neutral))

    def update(self, piece: Piece, join: Callable[[Expr], Expr]) -> None:
        """Replace the total that a vector goes to by ``join`` of it."""
        self._slots.set(piece.slot, bind(join(self._slots.get(piece.slot))))

    def vectors(self) -> list[Expr]:
        """Return all of them."""
        return [self._slots.get(slot) for slot in range(SLOTS)]


#: Reductions of each opcode, one after the other: each takes what the one before made of the row.
Chains = Mapping[str, tuple[Maker, ...]]
