"""``codebook_matmul``: weights are looked up in registers, or in tiles for many rows.

Rows of x are brought into the order and the type of the products once, for all threads: integers
with their unit, float32, or bfloat16. Few rows share each weight as it is looked up
(:mod:`lutcc.schedules.x86.codebook_few`), many rows weights that were expanded into the L1 cache
(:mod:`lutcc.schedules.x86.codebook_many`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lutcc.ir.module import Operation
from lutcc.schedules.x86 import codebook_few, codebook_many
from lutcc.schedules.x86.codebook_decode import PackedWeights
from lutcc.schedules.x86.codebook_rows import PreparedRows
from lutcc.schedules.x86.config import CodebookConfig, default_codebook
from lutcc.schedules.x86.context import Constant, External, Scratch
from lutcc.schedules.x86.emit import Expr, branch, i64
from lutcc.schedules.x86.isa import Isa
from lutcc.schedules.x86.pack_codebooks import CodebookLayout
from lutcc.schedules.x86.panels import ThreadLoop

#: Operands that are packed into the blob.
PACKED = (1, 2, 3, 4, 5)
#: Up to so many rows look their weights up in registers.
FEW = codebook_few.MOST_ROWS


def layout_of(op: Operation, isa: Isa, config: CodebookConfig) -> CodebookLayout:
    """Return how the op's weights are packed."""
    _, columns = op.operands[0].type.shape
    size = op.attr("segment_size")
    assert isinstance(columns, int)
    assert isinstance(size, int)
    return CodebookLayout.of(
        op.operands[2].type.size(0),
        op.operands[3].type.size(0),
        int(op.attr("bits")),  # type: ignore[arg-type]
        op.operands[1].type.size(0),
        columns,
        size,
        lanes=isa.vector_bytes // 16,
        tile=config.tile,
    )


def default_config(op: Operation, isa: Isa) -> CodebookConfig:
    """Return the hand-picked config."""
    return default_codebook(isa, str(op.attr("compute")))


def take_shared(op: Operation, isa: Isa, config: CodebookConfig, scratch: Scratch) -> PreparedRows:
    """Assign the shared part of the workspace."""
    layout, form = layout_of(op, isa, config), str(op.attr("compute"))
    return PreparedRows.take(isa, layout, form, _capacity(op, isa, layout), scratch)


def _rows(op: Operation) -> int | None:
    """Return N where it is known."""
    size = op.operands[0].type.shape[0]
    return size if isinstance(size, int) else None


def _capacity(op: Operation, isa: Isa, layout: CodebookLayout) -> int:
    """Return how many rows of x are prepared at a time at most."""
    rows = _rows(op)
    if rows is not None and rows <= FEW:
        return codebook_few.MOST_ROWS
    return codebook_many.Cut(isa, layout, str(op.attr("compute"))).block_rows(rows)


def pack(op: Operation, layout: CodebookLayout, operands: list[Any]) -> codebook_few.Weights:
    """Pack the constants of the op."""
    _, indices, codebooks, scales, order, bias = operands
    form = str(op.attr("compute"))
    params = {**layout.to_json(), "segment_size": op.attr("segment_size")}
    packed = PackedWeights(
        layout,
        form,
        Constant.pack("codebook_indices", "uint8", [indices, codebooks, scales], **params),
        Constant.pack("codebook_tables", "uint8", [codebooks, scales], form=form, **params),
    )
    units = None
    if form == "int8":
        units = Constant.pack("codebook_units", "float32", [codebooks, scales], **params)
    identity = bool(np.array_equal(order.array, np.arange(layout.rows)))
    return codebook_few.Weights(
        packed,
        units,
        Constant.pack("vector", "float32", [bias]),
        None if identity else Constant.pack("raw", "int32", [order]),
    )


def emit(
    op: Operation,
    config: CodebookConfig,
    operands: list[Any],
    target: External,
    rows: Expr,
    shared: PreparedRows,
    thread_loop: ThreadLoop,
    private: Callable[[Expr], Scratch],
) -> None:
    """Emit the product.

    Parameters
    ----------
    op, config
        What is computed, in which blocks.
    operands
        x as it lies, and :class:`Constant` for the others.
    target, rows
        The result, and N.
    shared
        See :func:`take_shared`.
    thread_loop, private
        Opens a loop over threads; the scratch of one.
    """
    weights = pack(op, shared.layout, operands)
    size, isa, layout = _rows(op), shared.isa, shared.layout

    def few() -> None:
        shared.fill(operands[0], i64(0), rows)
        product = codebook_few.Few(shared, weights, config, target, i64(0), rows)
        product.emit(thread_loop, private, size)

    def many() -> None:
        cut = codebook_many.Cut(isa, layout, shared.form)
        capacity = _capacity(op, isa, layout)
        product = codebook_many.Many(cut, weights, shared, capacity, operands[0], target)
        product.emit(rows, thread_loop, private)

    if size is not None:
        (few if size <= FEW else many)()
        return
    with branch(rows <= i64(FEW)) as (below, above):
        with below:
            few()
        with above:
            many()
