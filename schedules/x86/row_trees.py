"""Trees over one row: 16 codebooks at a time, thresholds chosen among those of a level by blends.

Thresholds lie by node, 16 codebooks beside each other, so that a level takes ``2**level`` loads,
one blend less, and one compare: for 16 leaves and 16 codebooks 15 loads, 11 blends and 4 compares,
where codebook by codebook takes 640 instructions. What a level compares is loaded as it lies where
a level's columns follow each other, as they do behind look-ups of a chain
(:mod:`lutcc.ir.passes.dead_columns` sees to it); other levels' columns are copied together first.
"""

from __future__ import annotations

import numpy as np

from lutcc.ir.module import Operation
from lutcc.schedules.x86.context import External, Row, StageContext
from lutcc.schedules.x86.emit import (
    LANES,
    Expr,
    View,
    bind,
    cast,
    hold,
    loop,
    reinterpret,
    select,
    splat,
)
from lutcc.schedules.x86.pack import chunk_starts, round_up


def emit_row(ctx: StageContext, op: Operation, row: Expr, target: Row) -> None:
    """Encode one row into ``target`` (uint8), whose memory is whole vectors."""
    splitdims = ctx.array(op.operands[1])
    codebooks, depth = splitdims.shape
    values = _Values.of(ctx, op, row)
    *starts, vals = (ctx.ref(value) for value in op.operands[2:])
    dtype = values.dtype
    thresholds = ctx.blob.add("tree_levels", dtype, [vals])
    begins = ctx.blob.add("tree_levels", dtype, starts) if starts else None
    entries = op.operands[2].type.size(1)
    # How many groups there are is read, too: LLVM would unroll the loop, load all thresholds ahead
    # of the loop over rows, and spill them.
    known = chunk_starts(codebooks)
    firsts = ctx.blob.add("ints", "int32", [], values=[len(known), *known])
    with loop(cast("int64", firsts.load(0))) as group:
        first = bind(cast("int64", firsts.load(group + 1)))
        at = bind(group * (entries * LANES))
        answers: list[Expr] = []  # -1 where a level's number is above its threshold
        for level in range(depth):
            value = values.load(level, first)
            threshold = _chosen(thresholds.at(at), level, answers)
            if begins is not None:
                moved = value - _chosen(begins.at(at), level, answers)
                value, threshold = (reinterpret("uint32x16", v) for v in (moved, threshold))
            answers.append(hold(select(value > threshold, splat(-1, "int32"), splat(0, "int32"))))
        code = splat(0, "int32")
        for answer in answers:
            code = code + code - answer
        target.view.store(first, cast("uint8x16", hold(code)), LANES)


def _chosen(table: View, level: int, answers: list[Expr]) -> Expr:
    """Return, of the nodes of a level, those that the answers lead to; 16 codebooks.

    The answers that are known first choose first: one blend alone waits for the last.
    """

    def among(node: int, known: int) -> Expr:
        """Return the choice of the first ``known`` answers among nodes that end like ``node``."""
        if known == 0:
            return table.load(node * LANES, LANES)
        bit = 1 << (level - known)
        low, high = among(node, known - 1), among(node + bit, known - 1)
        return hold(select(answers[known - 1] < splat(0, "int32"), high, low))

    return among(2**level, level)


class _Values:
    """What each level compares, of 16 codebooks beside each other.

    Attributes
    ----------
    dtype
        Of the numbers, int32 or float32.
    """

    def __init__(self, source: View, copied: View, places: list[tuple[bool, int]], dtype: str):
        self._source, self._copied, self._places, self.dtype = source, copied, places, dtype

    @classmethod
    def of(cls, ctx: StageContext, op: Operation, row: Expr) -> _Values:
        """Copy the columns of those levels together whose columns do not follow each other."""
        source = ctx.values[op.operands[0].name]
        splitdims = ctx.array(op.operands[1])
        codebooks, depth = splitdims.shape
        dtype = "int32" if op.operands[2].type.dtype == "int32" else "float32"
        first = [_run(source, dims) if _lies(source, dtype) else None for dims in splitdims.T]
        rest = [level for level in range(depth) if first[level] is None]
        width = round_up(codebooks, LANES)
        copied = ctx.scratch.take(len(rest) * width, dtype)
        if rest:
            dims = [int(d) for level in rest for d in splitdims[:, level]]
            _copy(ctx, source, row, copied, dims, (len(rest), codebooks, width))
        places = [
            (False, rest.index(level) * width) if start is None else (True, start)
            for level, start in enumerate(first)
        ]
        return cls(source.view, copied, places, dtype)

    def load(self, level: int, codebook: Expr) -> Expr:
        """Load the numbers of 16 codebooks."""
        lies, start = self._places[level]
        return (self._source if lies else self._copied).load(codebook + start, LANES)


def _lies(source: Row | External, dtype: str) -> bool:
    """Whether numbers can be compared where they lie."""
    return isinstance(source, Row) and source.dtype == dtype


def _run(source: Row, dims: np.ndarray) -> int | None:
    """Return the first of columns that follow each other, or None if they do not.

    Of fewer than 16, whole vectors must lie in the row's memory all the same.
    """
    inside = len(dims) >= LANES or int(dims[0]) + LANES <= source.stride
    return int(dims[0]) if inside and (np.diff(dims) == 1).all() else None


def _copy(
    ctx: StageContext,
    source: Row | External,
    row: Expr,
    target: View,
    dims: list[int],
    sizes: tuple[int, int, int],
) -> None:
    """Copy columns of a row together: (levels, codebooks), ``width`` from level to level."""
    levels, codebooks, width = sizes
    columns = ctx.blob.add("ints", "int32", [], values=dims)
    begin = None if isinstance(source, Row) else bind(source.index(row, 0))
    with loop(levels) as level, loop(codebooks) as c:
        column = cast("int64", columns.load(level * codebooks + c))
        if begin is None:
            value = source.view.load(column)
        else:
            value = source.view.load(begin + column * source.column_stride)
        value = value if source.dtype == target.dtype else cast(target.dtype, value)
        target.store(level * width + c, value)
