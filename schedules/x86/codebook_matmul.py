"""``codebook_matmul``: weights are looked up in registers, or in tiles for many rows.

Rows of x are brought into the order and the type of the products once, for all threads: integers
with their unit, float32, or bfloat16. Few rows share each weight as it is looked up
(:mod:`lutcc.schedules.x86.codebook_few`), many rows weights that were expanded into the L1 cache
(:mod:`lutcc.schedules.x86.codebook_many`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lutcc.ir.module import Operation
from lutcc.schedules.space import Space
from lutcc.schedules.x86 import codebook_few, codebook_many
from lutcc.schedules.x86.codebook_decode import PackedWeights
from lutcc.schedules.x86.codebook_rows import PreparedRows
from lutcc.schedules.x86.config import MOST_FEW, CodebookConfig, DenseConfig
from lutcc.schedules.x86.context import Constant, External, Scratch
from lutcc.schedules.x86.emit import Expr, branch, i64
from lutcc.schedules.x86.granules import Granules
from lutcc.schedules.x86.isa import Isa
from lutcc.schedules.x86.pack_codebooks import CodebookLayout
from lutcc.schedules.x86.pack_rows import RowLayout
from lutcc.schedules.x86.panels import ThreadLoop
from lutcc.schedules.x86.product_cut import Cut, default_panels
from lutcc.schedules.x86.product_space import dense_space
from lutcc.schedules.x86.product_weights import Weights

#: Operands that are packed into the blob.
PACKED = (1, 2, 3, 4, 5)
#: The part of a product's record that holds its config.
PART = "codebook"


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
    compute = str(op.attr("compute"))
    panels = default_panels(Granules.of_codebooks(isa, compute), direct=False)
    tile = 4 if compute == "int8" and isa.has_avx512 else 2
    return CodebookConfig(few=MOST_FEW, prefetch=8192, tile=tile, **panels)


def space(op: Operation, isa: Isa) -> Space:
    """Return the configs worth trying."""
    granules = Granules.of_codebooks(isa, str(op.attr("compute")))

    def cut_of(config: CodebookConfig) -> Cut:
        return Cut(granules, layout_of(op, isa, config), config)

    rows = op.operands[0].type.size(0)
    return dense_space(PART, default_config(op, isa), cut_of, rows)


def take_shared(op: Operation, isa: Isa, config: CodebookConfig, scratch: Scratch) -> PreparedRows:
    """Assign the shared part of the workspace."""
    granules = Granules.of_codebooks(isa, str(op.attr("compute")))
    return take_rows(op, granules, layout_of(op, isa, config), config, scratch)


def take_rows(
    op: Operation, granules: Granules, layout: RowLayout, config: DenseConfig, scratch: Scratch
) -> PreparedRows:
    """Assign room for as many rows as are prepared at a time."""
    return PreparedRows.take(granules, layout, _capacity(op, granules, layout, config), scratch)


def _rows(op: Operation) -> int | None:
    """Return N where it is known."""
    size = op.operands[0].type.shape[0]
    return size if isinstance(size, int) else None


def _capacity(op: Operation, granules: Granules, layout: RowLayout, config: DenseConfig) -> int:
    """Return how many rows of x are prepared at a time at most, by either schedule."""
    rows = _rows(op)
    if rows is not None and rows <= config.few:
        return MOST_FEW
    block = Cut(granules, layout, config).block_rows(rows)
    return block if rows is not None else max(block, config.few)


def pack(op: Operation, x: PreparedRows, operands: list[Any]) -> Weights:
    """Pack the constants of the op."""
    layout = x.layout
    assert isinstance(layout, CodebookLayout)
    _, indices, codebooks, scales, order, bias = operands
    form = str(op.attr("compute"))
    params = {**layout.to_json(), "segment_size": op.attr("segment_size")}
    packed = PackedWeights(
        layout,
        x.granules,
        Constant.pack("codebook_indices", "uint8", [indices, codebooks, scales], **params),
        Constant.pack("codebook_tables", "uint8", [codebooks, scales], form=form, **params),
    )
    units = None
    if form == "int8":
        units = Constant.pack("codebook_units", "float32", [codebooks, scales], **params)
    identity = bool(np.array_equal(order.array, np.arange(layout.rows)))
    return Weights(
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
    weights = pack(op, shared, operands)
    product = Product(op, weights, shared, operands[0], target, config)
    product.emit(rows, thread_loop, private)


@dataclass(frozen=True)
class Product:
    """A product of prepared rows with packed weights, by one of two schedules.

    Attributes
    ----------
    op
        What is computed.
    weights, shared
        W, and room for rows of x.
    source, target
        x and the result.
    config
        Which schedule serves how many rows, and how they cut.
    """

    op: Operation
    weights: Weights
    shared: PreparedRows
    source: External
    target: External
    config: DenseConfig

    def emit(self, rows: Expr, thread_loop: ThreadLoop, private: Callable[[Expr], Scratch]) -> None:
        """Emit it, for ``rows`` rows."""
        size, shared, config = _rows(self.op), self.shared, self.config

        def few() -> None:
            shared.fill(self.source, i64(0), rows)
            product = codebook_few.Few(
                shared, self.weights, config.prefetch, self.target, i64(0), rows
            )
            product.emit(thread_loop, private, size)

        def many() -> None:
            cut = Cut(shared.granules, shared.layout, config)
            capacity = cut.block_rows(size)
            product = codebook_many.Many(
                cut, self.weights, shared, capacity, self.source, self.target
            )
            product.emit(rows, thread_loop, private)

        if size is not None:
            (few if size <= config.few else many)()
            return
        if not config.few:
            many()
            return
        with branch(rows <= i64(config.few)) as (below, above):
            with below:
                few()
            with above:
                many()
