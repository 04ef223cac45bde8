"""Columns that a sample takes, as the kernels of its products find them, and tiles of those."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl

from lutcc.schedules.triton.jit import jit
from lutcc.schedules.triton.rows import sum_type
from lutcc.schedules.triton.target import Target, product_precision

#: Tiles of rows that take turns with the tiles of columns, so that both stay in L2.
TURN = 8
#: Adjacent columns that a wide load may take.
WIDEST = 16


@dataclass(frozen=True, slots=True)
class ProductConfig:
    """Tiles of a product: rows, columns, and what one step sums over."""

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int


def choose_config(dtype: torch.dtype, target: Target, run: int) -> ProductConfig:
    """Return the tiles for operands of ``dtype`` whose columns lie ``run`` side by side.

    Single columns pass through registers on their way, so that a step takes fewer of them.

    Examples
    --------
    >>> choose_config(torch.bfloat16, Target("sm_90", "cuda"), 16)
    ProductConfig(rows=128, columns=128, depth=64, num_warps=8, num_stages=3)
    """
    if target.backend == "interpreter":
        return ProductConfig(16, 16, 16, 4, 1)  # tests are of small matrices
    # Before Hopper both operands of a product are in registers.
    roomy = target.backend == "hip" or target.name in ("sm_90", "sm_100")
    if dtype.itemsize <= 2:
        if target.backend == "cuda" and run >= 8:
            return ProductConfig(128, 128, 64, 8, 3)
        return ProductConfig(128 if roomy else 64, 128, 32, 8, 2)
    if dtype is torch.float32:
        return ProductConfig(128, 64, 32 if roomy else 16, 8, 2)
    return ProductConfig(32, 32, 16, 4, 1)


def aligned_run(group_size: int) -> int:
    """Return how many columns of a group lie side by side from a multiple of their number on.

    Examples
    --------
    >>> [aligned_run(g) for g in (1, 12, 16, 64)]
    [1, 4, 16, 16]
    """
    return min(WIDEST, group_size & -group_size)


@jit
def count_kernel(scales, live, places, STEP: tl.constexpr):
    """Count the places that take something; they come first."""
    total = tl.zeros((), tl.int32)
    for start in range(0, places, STEP):
        i = start + tl.arange(0, STEP)
        scale = tl.load(scales + i, mask=i < places, other=0.0)
        total += tl.sum((scale != 0.0).to(tl.int32), 0)
    tl.store(live, total)


@jit
def columns_taken(indices, scales, q, live, columns, GROUP: tl.constexpr, RUN: tl.constexpr):
    """Return the q-th columns taken, whether they exist, and the scale of each."""
    slot = q // GROUP
    taken = q < live * GROUP
    index = tl.load(indices + slot, mask=taken, other=0)
    scale = tl.load(scales + slot, mask=taken, other=0.0)
    column = index * GROUP + q % GROUP
    if RUN > 1:
        column = tl.max_contiguous(tl.multiple_of(column, RUN), RUN)
    return column, taken & (column < columns), scale


@jit
def tile_of(number, row_tiles, column_tiles, TURN: tl.constexpr):
    """Return the tile of rows and of columns of a program: TURN tiles of rows take turns."""
    per_turn = TURN * column_tiles
    first = number // per_turn * TURN
    height = tl.minimum(row_tiles - first, TURN)
    return first + number % per_turn % height, number % per_turn // height


def count_taken(scales: torch.Tensor) -> torch.Tensor:
    """Return int32 (1,): how many places take something, counted on the GPU."""
    live = scales.new_empty((1,), dtype=torch.int32)
    count_kernel[(1,)](scales, live, scales.shape[0], STEP=1024)
    return live


def product_options(dtype: torch.dtype, group_size: int, target: Target) -> dict[str, Any]:
    """Return what both kernels of products are compiled for."""
    return {
        "GROUP": group_size,
        "RUN": aligned_run(group_size),
        "TURN": TURN,
        "SUM": sum_type(dtype),
        "PRECISION": product_precision(dtype, target),
    }
