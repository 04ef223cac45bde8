"""``block_diagonal_matmul``: rows as they lie; each block's weights serve all rows at hand.

Work: P Q fused multiply-adds a block and row. A tile of some rows by 16 columns loads one vector of
weights and one broadcast value a row for each step of its depth, so that both FMA ports stay busy
from six rows on; a block's 16 columns of weights (64 P bytes) stay in the L1 cache for all rows of
the stage, and all weights are read once for them.

A ``hadamard`` before the product is not done in full: with H_n = H_{n/P} (x) H_P, the factor H_P
and the scale are folded into the blocks when they are packed, and only the mix of blocks is left
(``hadamard.mix``): 3 of 9 steps for n = 512 and P = 64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lutcc.ir.module import Operation
from lutcc.schedules.x86 import bfloat16
from lutcc.schedules.x86.context import Row, StageContext
from lutcc.schedules.x86.emit import LANES, Expr, bind, cast, fma, i64, loop, registers, splat
from lutcc.schedules.x86.emit import branch as emit_branch
from lutcc.schedules.x86.isa import Isa
from lutcc.schedules.x86.pack import chunk_starts, round_up

#: Up to this many rows are done one by one, over several chunks of columns at a time: enough
#: independent sums to hide the latency of an addition.
FEW_ROWS = 2
_FEW_CHUNKS = 4


def foldable(product: Operation) -> bool:
    """Whether a ``hadamard`` can be folded into the blocks of the product that reads it."""
    blocks = product.operands[1].type
    height = blocks.size(1)
    power = height % LANES == 0 and height & (height - 1) == 0
    return power and blocks.dtype == "float32"  # bfloat16 rounds what the transform returns


def uses_pairs(isa: Isa, op: Operation) -> bool:
    """Whether the product takes bfloat16 values two by two (``vdpbf16ps``)."""
    blocks = op.operands[1].type
    return blocks.dtype == "bfloat16" and isa.has_bf16 and blocks.size(1) % 2 == 0


def blocks_needed(op: Operation) -> int:
    """Return how many blocks the kept columns touch."""
    return -(-op.results[0].type.size(1) // op.operands[1].type.size(2))


def padded_columns(op: Operation) -> int:
    """Return how many columns of a row the tiles write, kept or not."""
    width = op.operands[1].type.size(2)
    return blocks_needed(op) * width + (LANES if width < LANES else 0)


def emit_rows(
    ctx: StageContext,
    op: Operation,
    source: Row,
    rows: Expr,
    capacity: int,
    finish: Callable[[Expr, Expr, Expr], None],
    folded: Operation | None = None,
) -> None:
    """Multiply ``rows`` rows (at most ``capacity``); ``finish(row, first column, 16 values)``.

    Columns past a block of fewer than 16 are written too, and then overwritten by the next block.
    ``folded`` is the transform whose inner factor the blocks hold. With bfloat16 blocks the rows
    have been rounded, to uint16 halves where :func:`uses_pairs`.
    """
    _, height, width = op.operands[1].type.sizes()
    pairs = uses_pairs(ctx.isa, op)
    steps = height // 2 if pairs else height
    starts = chunk_starts(width)
    where = ctx.blob.add("ints", "int32", [], values=starts)
    scale = float(folded.attr("scale")) if folded is not None else 1.0  # type: ignore[arg-type]
    weights = ctx.blob.add(
        "block_diagonal",
        "uint32" if pairs else "float32",
        [ctx.ref(op.operands[1])],
        blocks_kept=blocks_needed(op),
        fold=folded is not None,
        scale=scale,
        pairs=pairs,
    )

    def tile(block: Expr, chunk: Expr, chunks: int, row: Expr, count: int) -> None:
        acc = registers(chunks * count, "float32", LANES)
        for slot in range(chunks * count):
            acc.set(slot, splat(0.0))
        bases = [
            bind(((i64(block) * len(starts)) + chunk + k) * (steps * LANES)) for k in range(chunks)
        ]
        lines = [source.at(row + r).view.at(i64(block) * height) for r in range(count)]
        if pairs:
            lines = [line.as_dtype("uint32") for line in lines]
        with loop(steps) as d:
            vectors = [bind(weights.load(base + d * LANES, LANES)) for base in bases]
            for r, line in enumerate(lines):
                value = bind(splat(line.load(d)))
                for k in range(chunks):
                    slot = k * count + r
                    add = bfloat16.dot_pairs if pairs else _fma
                    acc.set(slot, add(acc.get(slot), value, vectors[k]))
        for k in range(chunks):
            first = bind(i64(block) * width + cast("int64", where.load(chunk + k)))
            for r in range(count):
                finish(bind(row + r), first, acc.get(k * count + r))

    def product(chunks: int, batches: Sequence[int]) -> None:
        together = min(chunks, len(starts))
        with loop(blocks_needed(op)) as block:
            with loop(len(starts) // together) as c:
                _row_batches(
                    rows, batches, lambda row, n: tile(block, c * together, together, row, n)
                )
            rest = len(starts) % together
            if rest:
                first = i64(len(starts) - rest)
                _row_batches(rows, batches, lambda row, n: tile(block, first, rest, row, n))

    largest = min(ctx.configs.rows.linear_batch, capacity)
    smaller = {n for n in (largest // 2, 3, 2, 1) if 0 < n < largest}
    with emit_branch(rows <= i64(FEW_ROWS)) as (few, many):
        with few:
            product(_FEW_CHUNKS, (1,))
        with many:
            product(ctx.configs.rows.linear_chunks, (largest, *sorted(smaller, reverse=True)))


def _fma(acc: Expr, value: Expr, vector: Expr) -> Expr:
    return fma(value, vector, acc)


def _row_batches(rows: Expr, batches: Sequence[int], tile: Callable[[Expr, int], None]) -> None:
    """Cover all rows by tiles, the largest first."""
    done = i64(0)
    for batch in batches:
        whole = bind((rows - done) // i64(batch))
        with loop(whole) as b:
            tile(bind(done + b * batch), batch)
        done = bind(done + whole * batch)


def row_stride(columns: int) -> int:
    """Return the distance of rows in scratch, an odd number of cache lines.

    At a power of two, the same columns of all rows would compete for one set of the L1 cache.
    """
    return (round_up(columns, LANES) // LANES | 1) * LANES
