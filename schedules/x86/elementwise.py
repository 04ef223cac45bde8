"""Stages of elementwise operations and reductions over columns: straight passes over each row.

Work: each input is read once, each output written once; nothing is transposed, and nothing waits
but what a reduction makes wait, a row in the L1 cache, so that only memory limits it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce

from lutcc.ir.module import Function
from lutcc.schedules.x86 import edges
from lutcc.schedules.x86.context import External, StageContext
from lutcc.schedules.x86.emit import (
    Expr,
    bind,
    both,
    branch,
    cast,
    equal,
    i64,
    loop,
    shuffle,
    splat,
)
from lutcc.schedules.x86.pack import CHUNK, round_up
from lutcc.schedules.x86.row_passes import RowPasses
from lutcc.schedules.x86.row_sums import Piece


def emit(
    ctx: StageContext,
    function: Function,
    begin: Expr,
    end: Expr,
    inputs: Mapping[str, External],
    outputs: Mapping[str, External],
) -> None:
    """Compute the rows from ``begin`` to ``end``."""
    body = [op for op in function.body if op.opcode != "constant"]
    columns = next(iter(inputs.values())).columns
    passes = RowPasses(ctx, body, columns, list(outputs))
    whole = [equal(source.column_stride, i64(1)) for source in inputs.values()]
    streams = [target.stream for target in outputs.values()]
    lines = {
        name: source
        if isinstance(source.column_stride, int) or _is_one(source.column_stride)
        else replace(
            source,
            view=ctx.scratch.take(round_up(columns, CHUNK), source.dtype),
            row_stride=i64(0),
            column_stride=i64(1),
        )
        for name, source in inputs.items()
    }

    def rows(sources: Mapping[str, External], *, stream: bool) -> None:
        def store(name: str, piece: Piece, value: Expr) -> None:
            _store(outputs[name], row, piece, value, stream=stream)

        with loop(end - begin) as r:
            row = bind(begin + r)
            for name, source in sources.items():
                if source is not inputs[name]:
                    edges.copy_row_in(inputs[name], row, source.view)
            passes.emit(lambda name, piece: _load(sources[name], row, piece), store)

    with branch(reduce(both, whole)) as (contiguous, strided):
        with contiguous:
            if None in streams:
                rows(inputs, stream=False)
            else:
                with branch(reduce(both, streams)) as (large, small):
                    with large:
                        rows(inputs, stream=True)
                    with small:
                        rows(inputs, stream=False)
        with strided:
            rows(lines, stream=False)


def _is_one(stride: Expr) -> bool:
    """Tell whether a stride is known to be 1."""
    return getattr(stride, "value", None) == 1


def _load(source: External, row: Expr, piece: Piece) -> Expr:
    """Load 16 columns as float32; where a row has less, others are repeated."""
    columns = source.columns
    if columns >= CHUNK:
        value = source.view.load(source.index(row, piece.first), CHUNK)
    elif columns == 1:
        value = splat(source.view.load(source.index(row, 0)), source.dtype)
    else:
        lanes = 1 << (columns.bit_length() - 1)
        parts = [
            source.view.load(source.index(row, start), lanes) for start in (0, columns - lanes)
        ]
        picks = [*range(lanes), *range(3 * lanes - columns, 2 * lanes)]
        value = shuffle(parts * (CHUNK // (2 * lanes)), picks + [0] * (CHUNK - columns))
    return value if source.dtype == "float32" else cast("float32x16", value)


def _store(target: External, row: Expr, piece: Piece, value: Expr, *, stream: bool) -> None:
    """Store the columns that exist."""
    index = bind(target.index(row, piece.first))
    if target.dtype == "uint8":
        value = cast("uint8x16", value)
    if stream:
        target.view.store_stream(index, value)
    elif target.columns < CHUNK:
        edges.store_partial(target.view, index, value, target.columns)
    else:
        target.view.store(index, value, CHUNK)
