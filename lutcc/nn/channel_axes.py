"""Axes of tensors that may be permuted, and which of them are the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TypeAlias


@dataclasses.dataclass(eq=False, slots=True)
class Axis:
    """A factor of a tensor's dimension: a dimension is the row-major product of its axes.

    Parameters
    ----------
    size
        At least 2; dimensions of size 1 have no axes.
    fixed
        Why its entries must stay in their order, or "" if they may be permuted.
    """

    size: int
    fixed: str = ""
    _same: Axis | None = None
    _parts: tuple[Axis, Axis] | None = None

    @property
    def root(self) -> Axis:
        """The axis that stands for all that are the same."""
        axis = self
        while axis._same is not None:
            axis = axis._same
        if axis is not self:
            self._same = axis
        return axis

    def resolved(self) -> list[Axis]:
        """Return the axes that it consists of by now, none of which is split."""
        root = self.root
        if root._parts is None:
            return [root]
        return [axis for part in root._parts for axis in part.resolved()]

    def fix(self, reason: str, *, override: bool = False) -> None:
        """Keep its entries in their order; the first reason is remembered, if not overridden."""
        for axis in self.resolved():
            axis.fixed = reason if override else axis.fixed or reason

    def split(self, outer: int) -> None:
        """Make an unsplit axis the product of one of size ``outer`` and the rest."""
        root = self.root
        root._parts = Axis(outer, root.fixed), Axis(root.size // outer, root.fixed)

    def merge(self, other: Axis) -> None:
        """Make two unsplit axes of one size the same."""
        mine, its = self.root, other.root
        if mine is not its:
            mine.fixed = mine.fixed or its.fixed
            its._same = mine


Dimension: TypeAlias = tuple[Axis, ...]
Dimensions: TypeAlias = list[Dimension]


def fresh(shape: Iterable[int], reason: str = "") -> Dimensions:
    """Return new axes for a tensor, fixed if there is a reason."""
    return [(Axis(size, reason),) if size > 1 else () for size in shape]


def resolved(dimension: Iterable[Axis]) -> list[Axis]:
    """Return the unsplit axes of a dimension."""
    return [part for axis in dimension for part in axis.resolved()]


def size_of(dimension: Dimension) -> int:
    """Return the size of a dimension."""
    size = 1
    for axis in dimension:
        size *= axis.size
    return size


def fix(dimensions: Iterable[Dimension], reason: str, *, override: bool = False) -> None:
    """Fix all axes of some dimensions."""
    for dimension in dimensions:
        for axis in dimension:
            axis.fix(reason, override=override)


def unify(one: Dimension, other: Dimension, reason: str) -> None:
    """Make two dimensions of one size the same: what permutes one must permute the other.

    Where their factors do not match (6 x 4 and 4 x 6, say), both are fixed for ``reason``.
    """
    left, right = list(one)[::-1], list(other)[::-1]  # stacks, the outermost axis on top
    while left and right:
        a, b = left.pop(), right.pop()
        parts_a, parts_b = a.resolved(), b.resolved()
        if len(parts_a) > 1 or len(parts_b) > 1:
            left += parts_a[::-1]
            right += parts_b[::-1]
            continue
        (a,), (b,) = parts_a, parts_b
        if a.size == b.size:
            a.merge(b)
            continue
        large, small = (a, b) if a.size > b.size else (b, a)
        if large.size % small.size:
            fix([one, other], reason)
            return
        large.split(small.size)
        left.append(a)
        right.append(b)


def regroup(dimensions: Sequence[Dimension], shape: Sequence[int]) -> Dimensions | None:
    """Return the dimensions of a reshaped tensor, or None if the new ones cut across the axes."""
    rest = [axis for dimension in dimensions for axis in resolved(dimension)][::-1]
    made: Dimensions = []
    for size in shape:
        found: list[Axis] = []
        while size > 1 and rest:
            axis = rest.pop()
            if axis.root._parts is not None:  # split a moment ago: the tensor holds it twice
                rest += axis.resolved()[::-1]
            elif size % axis.size == 0:
                found.append(axis)
                size //= axis.size
            elif axis.size % size == 0:
                axis.split(size)
                outer, inner = axis.resolved()
                found.append(outer)
                rest.append(inner)
                size = 1
            else:
                return None
        made.append(tuple(found))
    return made
