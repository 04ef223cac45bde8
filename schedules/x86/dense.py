"""``dense``: the schedules of codebook products, with weights that need no look-up.

Weights lie in the blob in the order in which they are multiplied: 16 bytes of each row of W in a
vector, the vectors of a panel side by side. Few rows stream them
(:mod:`lutcc.schedules.x86.codebook_few`), many rows multiply panels of them in place
(:mod:`lutcc.schedules.x86.codebook_many`). Where the level lacks the products of the weights' type,
weights are widened in registers, or into a panel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lutcc.ir.module import Operation
from lutcc.schedules.space import Space
from lutcc.schedules.x86 import codebook_matmul
from lutcc.schedules.x86.codebook_rows import PreparedRows
from lutcc.schedules.x86.config import MOST_FEW, DenseConfig
from lutcc.schedules.x86.context import Constant, External, Scratch
from lutcc.schedules.x86.emit import Expr, View, bind, i64, reinterpret
from lutcc.schedules.x86.granules import Granules, widened
from lutcc.schedules.x86.isa import Isa
from lutcc.schedules.x86.pack_dense import DenseLayout
from lutcc.schedules.x86.panels import ThreadLoop
from lutcc.schedules.x86.product_cut import Cut, default_panels
from lutcc.schedules.x86.product_space import dense_space
from lutcc.schedules.x86.product_weights import Weights

#: Operands that are packed into the blob.
PACKED = (1, 2, 3)
#: The part of a product's record that holds its config.
PART = "dense"
#: Up to so many rows stream the weights; more are faster by panels. With AVX2, of floats, fewer do:
#: their panels need not be expanded.
FEW_ROWS, FEW_FLOATS_256 = 4, 2
#: Weights of more bytes come from memory, which streaming asks for in time: it is faster for all
#: rows that it can take (measured with AVX-512: 5 rows of 2048 x 2048 floats by 1.2, of 4096 x 4096
#: by 1.3, bfloat16 by 2; of 8 MiB, panels are faster by 1.3).
MEMORY_BYTES = 8 << 20


@dataclass(frozen=True)
class DenseWeights:
    """Packed weights in the blob.

    Attributes
    ----------
    layout, arithmetic
        How they lie, and what is computed with them.
    indices
        Bytes.
    """

    layout: DenseLayout
    arithmetic: Granules
    indices: View

    @property
    def direct(self) -> bool:
        """Whether weights lie as they are multiplied."""
        return not halves(self.arithmetic)

    def packed(self, tile: Expr, step: Expr | int, vector: int) -> list[Expr]:
        """Load the packed vectors of a step of row vector ``vector`` of a row tile."""
        layout, width = self.layout, self.layout.vector_bytes
        at = (i64(tile) * layout.steps + i64(step)) * layout.step_bytes
        first = vector * layout.step_vectors
        places = range(layout.step_vectors)
        return [bind(self.indices.load(at + (first + v) * width, width)) for v in places]

    def table(self, tile: Expr, number: Expr | int, vector: int) -> list[Expr]:
        """Return nothing: weights are not looked up."""
        del tile, number, vector
        return []

    def granules(self, packed: Sequence[Expr], tables: Sequence[list[Expr]]) -> Iterator[Expr]:
        """Yield the weights of a step, a granule of each lane after the other."""
        del tables
        for vector in packed:
            if self.direct:
                yield vector
            elif self.layout.itemsize == 2:
                yield from widened(reinterpret(f"uint16x{self.layout.lanes * 8}", vector))
            else:
                yield from widened(vector)


ITEMSIZE = {"int8": 1, "bfloat16": 2, "float32": 4}


def halves(granules: Granules) -> bool:
    """Tell whether weights have half the bits of what is multiplied."""
    size = {"words": 2, "bfloats": 2, "floats": 4}.get(granules.kind, 1)
    return size > ITEMSIZE[granules.form]


def layout_of(op: Operation, granules: Granules, config: DenseConfig) -> DenseLayout:
    """Return how the op's weights are packed."""
    rows, columns = op.operands[1].type.static_shape
    itemsize, lanes = ITEMSIZE[granules.form], granules.isa.vector_bytes // 16
    return DenseLayout(itemsize, rows, columns, lanes, config.vectors, granules.offset)


def default_config(op: Operation, isa: Isa) -> DenseConfig:
    """Return the hand-picked config."""
    granules = Granules.of_dense(isa, str(op.attr("compute")))
    panels = default_panels(granules, direct=not halves(granules))
    few = FEW_ROWS if isa.has_avx512 or halves(granules) else FEW_FLOATS_256
    nbytes = math.prod(op.operands[1].type.static_shape) * ITEMSIZE[granules.form]
    if isa.has_avx512 and nbytes > MEMORY_BYTES:
        few = MOST_FEW
    return DenseConfig(few=few, prefetch=8192, **panels)


def space(op: Operation, isa: Isa) -> Space:
    """Return the configs worth trying."""
    granules = Granules.of_dense(isa, str(op.attr("compute")))

    def cut_of(config: DenseConfig) -> Cut:
        return Cut(granules, layout_of(op, granules, config), config)

    rows = op.operands[0].type.size(0)
    return dense_space(PART, default_config(op, isa), cut_of, rows)


def take_shared(op: Operation, isa: Isa, config: DenseConfig, scratch: Scratch) -> PreparedRows:
    """Assign the shared part of the workspace."""
    granules = Granules.of_dense(isa, str(op.attr("compute")))
    layout = layout_of(op, granules, config)
    return codebook_matmul.take_rows(op, granules, layout, config, scratch)


def pack(op: Operation, x: PreparedRows, operands: list[Any]) -> Weights:
    """Pack the constants of the op."""
    layout = x.layout
    assert isinstance(layout, DenseLayout)
    _, weight, units, bias = operands
    ones = not x.granules.integers and bool((np.asarray(units.array) == 1).all())
    packed = Constant.pack("dense", "uint8", [weight], **layout.to_json())
    return Weights(
        DenseWeights(layout, x.granules, packed),
        None if ones else Constant.pack("vector", "float32", [units]),
        Constant.pack("vector", "float32", [bias]),
        None,
        activation=str(op.attr("activation")),
    )


def emit(
    op: Operation,
    config: DenseConfig,
    operands: list[Any],
    target: External,
    rows: Expr,
    shared: PreparedRows,
    thread_loop: ThreadLoop,
    private: Callable[[Expr], Scratch],
) -> None:
    """Emit the product; see :func:`lutcc.schedules.x86.codebook_matmul.emit`."""
    weights = pack(op, shared, operands)
    product = codebook_matmul.Product(op, weights, shared, operands[0], target, config)
    product.emit(rows, thread_loop, private)
