"""How products with codebooks end: sums of parts in a fixed order, units, bias, and order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from lutcc.schedules.triton.jit import jit
from lutcc.schedules.triton.rows import element_type

#: Programs that a product should have, and steps that each of them should take at least.
PROGRAMS, STEPS = 528, 4
#: Rows and outputs of a tile of the second kernel.
SUM_ROWS, SUM_OUTPUTS = 8, 128


@jit
def finish(
    value,
    n,
    m,
    order,
    bias,
    row_units,
    units,
    y,
    count,
    rows,
    HAS_ORDER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    INTEGER: tl.constexpr,
):
    """Write the sums of outputs m, the first axis, and rows n of x: scaled, with bias, in order."""
    if INTEGER:
        unit = tl.load(units + m, mask=m < rows, other=0.0)
        row_unit = tl.load(row_units + n, mask=n < count, other=0.0)
        value = value.to(tl.float32) * (row_unit[None, :] * unit[:, None])
    if HAS_BIAS:
        value += tl.load(bias + m, mask=m < rows, other=0.0).to(value.dtype)[:, None]
    target = m
    inside = m < rows
    if HAS_ORDER:
        target = tl.load(order + m, mask=inside, other=0)
        inside = inside & (target >= 0) & (target < rows)
    where = y + n.to(tl.int64)[None, :] * rows + target[:, None]
    tl.store(where, value.to(y.dtype.element_ty), mask=inside[:, None] & (n < count)[None, :])


@jit
def codebook_sum_kernel(
    parts,
    order,
    bias,
    row_units,
    units,
    y,
    count,
    rows,
    output_tiles,
    splits,
    HAS_ORDER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    INTEGER: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    SUM: tl.constexpr,
):
    """Add the parts of a product in their order, and finish it."""
    n = tl.program_id(0) // output_tiles * ROWS + tl.arange(0, ROWS)
    m = tl.program_id(0) % output_tiles * OUTPUTS + tl.arange(0, OUTPUTS)
    inside = (m < rows)[:, None] & (n < count)[None, :]
    total = tl.zeros((OUTPUTS, ROWS), SUM)
    for split in range(splits):
        line = (n.to(tl.int64) + split * count) * rows
        total += tl.load(parts + line[None, :] + m[:, None], mask=inside, other=0)
    finish(total, n, m, order, bias, row_units, units, y, count, rows, HAS_ORDER, HAS_BIAS, INTEGER)


def splits_of(tiles: int, length: int, depth: int) -> int:
    """Return in how many parts each of ``tiles`` sums over ``length`` numbers is computed.

    Examples
    --------
    >>> splits_of(64, 4096, 64), splits_of(1000, 4096, 64), splits_of(1, 128, 64)
    (8, 1, 1)
    """
    return max(1, min(PROGRAMS // tiles, length // (STEPS * depth)))


@dataclass(frozen=True, slots=True)
class Ending:
    """What is done to the sums of a product; see :func:`finish`."""

    order: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    row_units: torch.Tensor | None = None
    units: torch.Tensor | None = None

    def arguments(self, absent: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the tensors; ``absent`` for what there is not."""
        parts = (self.order, self.bias, self.row_units, self.units)
        return tuple(absent if part is None else part.contiguous() for part in parts)

    def constants(self) -> dict[str, Any]:
        """Return what kernels are compiled for."""
        return {
            "HAS_ORDER": self.order is not None,
            "HAS_BIAS": self.bias is not None,
            "INTEGER": self.units is not None,
            "enable_fp_fusion": False,  # each operation is rounded
        }


def add_parts(parts: torch.Tensor, y: torch.Tensor, ending: Ending) -> None:
    """Add ``parts`` (splits, N, M) in their order and write ``y`` (N, M)."""
    splits, count, rows = parts.shape
    output_tiles = triton.cdiv(rows, SUM_OUTPUTS)
    codebook_sum_kernel[(output_tiles * triton.cdiv(count, SUM_ROWS),)](
        parts,
        *ending.arguments(y),
        y,
        count,
        rows,
        output_tiles,
        splits,
        ROWS=SUM_ROWS,
        OUTPUTS=SUM_OUTPUTS,
        SUM=tl.int32 if parts.dtype is torch.int32 else element_type(parts.dtype),
        **ending.constants(),
    )
