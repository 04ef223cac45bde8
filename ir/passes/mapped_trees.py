"""The trees behind look-ups, as trees over the integer sums."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lutcc.ir.builder import Builder
from lutcc.ir.interpreter import interpret
from lutcc.ir.module import Operation
from lutcc.ir.ops.interval_encode import MOST
from lutcc.ir.ops.lut_accumulate import proven_bound
from lutcc.ir.passes.sum_thresholds import below, intervals, plain, questions
from lutcc.ir.types import Array, TensorType

#: Sums that a column may take at most for it to be evaluated at all of them.
MOST_SUMS = 1 << 20
#: Values that are evaluated at a time.
_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class MappedTrees:
    """The thresholds of some trees among the sums behind which they stand.

    Attributes
    ----------
    tables
        Of each tree what it compares with: (C, K) int32 thresholds alone, or starts and widths of
        intervals where single thresholds do not do; of mirrored columns, in terms of mirrored sums.
    mirrored
        (M,) which columns fall, and are mirrored so that they rise.
    refusal
        Why there are no tables; "" if there are.
    """

    tables: tuple[tuple[Array, ...], ...]
    mirrored: Array
    refusal: str = ""

    @property
    def split(self) -> bool:
        """Whether some function turns, so that trees ask about intervals."""
        return any(len(table) == 2 for table in self.tables)

    @classmethod
    def of(
        cls,
        sums: Operation,
        maps: Sequence[Operation],
        trees: Sequence[Operation],
        arrays: Mapping[str, Array],
    ) -> MappedTrees:
        """Map all thresholds of the trees that read what the maps make of some sums.

        Where a column falls its table is mirrored, which costs nothing; averages round up, so that
        mirrored ones would differ: there trees ask about intervals, which two numbers for each node
        say, and so they do where a column turns.
        """
        lut = arrays[sums.operands[1].name]
        if not maps:  # they compare the sums as it is
            return cls(
                tuple((arrays[tree.operands[2].name],) for tree in trees),
                np.zeros(lut.shape[2], bool),
            )
        least, span = sums_range(sums, lut)
        most = least + span
        exact = sums.attr("accumulate") != "mean"
        mirrored = np.zeros(lut.shape[2], bool)
        used = [arrays[tree.operands[1].name] for tree in trees]
        values = [arrays[tree.operands[2].name] for tree in trees]
        single = [np.full(v.shape, np.iinfo(np.int32).max, np.int32) for v in values]
        starts = [np.full(v.shape, -MOST, np.int32) for v in values]
        widths = [np.zeros(v.shape, np.int32) for v in values]
        split = [False] * len(values)
        read = np.unique(np.concatenate([dims.ravel() for dims in used]))
        every = np.arange(least, most + 1, dtype=np.int32)
        for column, y in evaluated(maps, arrays, every, read):
            places = [
                nodes_of(dims, v.shape[1], column) for dims, v in zip(used, values, strict=True)
            ]
            wanted = np.concatenate([v[place] for v, place in zip(values, places, strict=True)])
            found = questions(least, y, wanted)
            if found is None:
                return cls((), mirrored, _refusal(column, maps))
            mirrored[column] = found.falling and not found.rising and exact
            thresholds = plain(found, least)
            if mirrored[column]:
                thresholds = mirrored_thresholds(below(found, most), lut)
            alone = found.rising or bool(mirrored[column])
            begin, width = _rays(thresholds) if alone else intervals(found, most)
            cuts = np.cumsum([int(place.sum()) for place in places])[:-1]
            parts = [np.split(array, cuts) for array in (thresholds, begin, width)]
            for i, place in enumerate(places):
                single[i][place], starts[i][place], widths[i][place] = (p[i] for p in parts)
                split[i] |= bool(place.any()) and not alone
        tables = tuple(
            (s, w) if several else (v,)
            for v, s, w, several in zip(single, starts, widths, split, strict=True)
        )
        return cls(tables, mirrored)


def sums_range(sums: Operation, lut: Array) -> tuple[int, int]:
    """Return the least sum of a column, and by how much the largest exceeds it, at most."""
    if sums.attr("accumulate") == "mean":
        every = int(sums.attr("upcast_every"))  # type: ignore[arg-type]
        return 0, proven_bound(lut, "mean", every)
    wide = lut.astype(np.int64)
    least = int(wide.min(axis=1).sum(axis=0).min())
    return least, int(wide.max(axis=1).sum(axis=0).max()) - least


def nodes_of(splitdims: Array, entries: int, column: int) -> Array:
    """Return (C, K) which thresholds are compared with a column."""
    levels = np.zeros(entries, np.intp)
    for level in range(splitdims.shape[1]):
        levels[2**level : 2 ** (level + 1)] = level
    place = splitdims[:, levels] == column
    place[:, 0] = False
    return place


def evaluated(
    maps: Sequence[Operation], arrays: Mapping[str, Array], sums: Array, columns: Array
) -> Iterator[tuple[int, Array]]:
    """Yield each column and what it becomes for every sum: (len(sums),)."""
    each = max(1, _AT_ONCE // len(sums))
    for start in range(0, len(columns), each):
        some = columns[start : start + each]
        b = Builder("main")
        value = b.param("acc", TensorType((len(sums), len(some)), "int32"))
        for number, op in enumerate(maps):
            vectors = [
                b.constant(f"c{number}_{i}", np.ascontiguousarray(arrays[v.name][some]))
                for i, v in enumerate(op.operands[1:])
            ]
            value = b.op(op.opcode, value, *vectors, **dict(op.attrs))
        b.returns(value)
        grid = np.repeat(sums[:, None], len(some), 1)
        (found,) = interpret(b.module(), [grid])
        yield from zip(some.tolist(), np.ascontiguousarray(found.T), strict=True)


def _refusal(column: int, maps: Sequence[Operation]) -> str:
    kinds = [str(op.attr("kind")) for op in maps if op.opcode == "activation"]
    kinds += [str(op.attr("activation")) for op in maps if op.has_attr("activation")]
    named = ", ".join(kind for kind in kinds if kind != "none")
    return (
        f"column {column} turns more than once"
        + (f" behind {named}" if named else "")
        + " about a threshold: no one interval of sums gives the answer"
    )


def _rays(thresholds: Array) -> tuple[Array, Array]:
    """Return starts and widths that ask whether a sum is above a threshold."""
    widths = (thresholds.astype(np.int64) + MOST).astype(np.uint32)
    return np.full(thresholds.shape, -MOST, np.int32), widths.view(np.int32)


def mirrored_thresholds(thresholds: Array, lut: Array) -> Array:
    """Return the thresholds of mirrored sums: ``sum <= T`` is ``mirrored > mirror(T) - 1``."""
    return (_mirrored_zero(lut) - thresholds - 1).astype(np.int32)


def _mirrored_zero(lut: Array) -> int:
    """Return what a sum of 0 becomes when each entry e is replaced by 255 - e, or -1 - e."""
    return (255 if lut.dtype == np.uint8 else -1) * lut.shape[0]
