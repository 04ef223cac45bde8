"""The sizes of an entry function's values, which are known when it is called."""

from __future__ import annotations

import math

import tvm.tirx as tir

from lutcc.ir.module import Value
from lutcc.ir.types import Sym
from lutcc.schedules.x86.emit import ITEMSIZE, Expr, i64


class Sizes:
    """Dimensions as expressions.

    The first value that has a symbol says what it is: its size, divided by the symbol's factor.

    Parameters
    ----------
    batch
        The symbol of the batch, if there is one.
    """

    def __init__(self, batch: str | None) -> None:
        self._batch = batch
        self._open: dict[str, Expr] = {}

    @property
    def batch(self) -> Expr:
        """The batch; 1 where it is fixed."""
        return self._open.get(self._batch or "", i64(1))

    @property
    def rows(self) -> Expr | None:
        """The product of all open sizes; None where none is."""
        return math.prod(self._open.values(), start=i64(1)) if self._open else None

    def of(self, dim: int | Sym) -> Expr:
        """Return a dimension."""
        if not isinstance(dim, Sym):
            return i64(int(dim))
        if dim.name not in self._open:
            variable = tir.Var(dim.name, "int64")
            size = variable if dim.factor == 1 else tir.floordiv(variable, i64(dim.factor))
            self._open[dim.name] = size
            return variable
        return self._open[dim.name] * dim.factor

    def shape(self, value: Value) -> tuple[Expr, ...]:
        """Return all dimensions of a value."""
        return tuple(self.of(dim) for dim in value.type.shape)


def bytes_per_row(value: Value) -> int:
    """Return how much a value takes for each unit of the batch, or all of it where that is fixed.

    Examples
    --------
    >>> from lutcc.ir import TensorType
    >>> bytes_per_row(Value("x", TensorType((Sym("n", 4), 8), "float32")))
    128
    """
    counts = (dim.factor if isinstance(dim, Sym) else int(dim) for dim in value.type.shape)
    return ITEMSIZE[value.type.dtype] * math.prod(counts)
