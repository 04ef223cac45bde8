"""The feed-forward blocks that an experiment compares."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lutcc.errors import InputError
from lutcc.train.masked_lm import DenseFFN, NoFFN


@dataclass(frozen=True, slots=True)
class Block:
    """A feed-forward block by name: ``dense`` (hidden size 4 d), ``lookup`` or ``none``.

    Parameters
    ----------
    name
        In logs and file names.
    kind
        One of the three.
    num_tables, code_length, block_size
        Of a ``lookup`` block, as in :class:`lutcc.nn.LookupFFN`.

    Raises
    ------
    InputError
        If the kind is unknown, or a look-up block has no sizes.

    Examples
    --------
    >>> Block("dense", "dense").mflop(512), Block("lookup", "lookup", 128, 8, 64).mflop(512)
    (4.194304, 0.690688)
    """

    name: str
    kind: str
    num_tables: int | None = None
    code_length: int | None = None
    block_size: int | None = None

    def __post_init__(self) -> None:
        sizes = (self.num_tables, self.code_length, self.block_size)
        if self.kind not in ("dense", "lookup", "none"):
            raise InputError(
                f"kind={self.kind!r}", where="train.Block", fix="use 'dense', 'lookup' or 'none'"
            )
        if (self.kind == "lookup") != (None not in sizes):
            raise InputError(
                f"a {self.kind} block with num_tables, code_length, block_size = {sizes}",
                where=f"train.Block {self.name!r}",
                fix="give all three to a look-up block, and none to others",
            )

    @property
    def label(self) -> str:
        """The block in words."""
        if self.kind == "lookup":
            return f"LookupFFN, h = {self.num_tables}"
        return "dense FFN" if self.kind == "dense" else "no FFN"

    def make(self, width: int) -> nn.Module:
        """Return a new block for tokens of ``width`` dimensions."""
        if self.kind == "dense":
            return DenseFFN(width, 4 * width)
        if self.num_tables is None or self.code_length is None or self.block_size is None:
            return NoFFN()
        from lutcc.nn import LookupFFN

        return LookupFFN(
            width, width, self.num_tables, self.code_length, block_size=self.block_size
        )

    def mflop(self, width: int) -> float:
        """Return million FLOPs per token as the paper counts them."""
        if self.kind == "dense":
            return 2 * 2 * width * 4 * width / 1e6
        return getattr(self.make(width), "flops", 0) / 1e6
