"""Sums, for each entry of each table, over the rows of a batch that took it.

What :mod:`weighted_gather_backward` does by sorting codes is done here by products with ones and
zeros: tables of few entries are taken by many rows each, and nothing of the batch's size is made.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from lutcc.schedules.triton.jit import jit


@jit
def table_sums_kernel(
    grad,
    codes,
    out,
    rows,
    codebooks,
    outputs,
    share,
    grad_row,
    codes_row,
    ENTRIES: tl.constexpr,
    LEAVES: tl.constexpr,
    STEP: tl.constexpr,
    COLUMNS: tl.constexpr,
    SUM: tl.constexpr,
    PRODUCT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sum the gradients of the rows that took each entry, over a share of the batch.

    As a product with ones and zeros: each tile of the gradient is read once for LEAVES entries.
    """
    tiles = tl.cdiv(outputs, COLUMNS)
    groups = tl.cdiv(codebooks * ENTRIES, LEAVES)
    m = (tl.program_id(0) % tiles) * COLUMNS + tl.arange(0, COLUMNS)
    leaf = (tl.program_id(0) // tiles % groups) * LEAVES + tl.arange(0, LEAVES)
    part = (tl.program_id(0) // (tiles * groups)).to(tl.int64)
    known = leaf < codebooks * ENTRIES
    total = tl.zeros((LEAVES, COLUMNS), SUM)
    end = tl.minimum(part * share + share, rows)
    for start in range(part * share, end, STEP):
        r = (start + tl.arange(0, STEP)).to(tl.int64)
        inside = r < end
        code = tl.load(
            codes + r[None, :] * codes_row + (leaf // ENTRIES)[:, None],
            mask=known[:, None] & inside[None, :],
            other=0,
        ).to(tl.int32)
        taken = (code == (leaf % ENTRIES)[:, None]) & inside[None, :]
        g = tl.load(
            grad + r[:, None] * grad_row + m[None, :],
            mask=inside[:, None] & (m < outputs)[None, :],
            other=0.0,
        )
        taken = tl.where(taken, 1.0, 0.0).to(PRODUCT)
        total = tl.dot(taken, g.to(PRODUCT), total, input_precision=PRECISION, out_dtype=SUM)
    place = out + (part * codebooks * ENTRIES + leaf)[:, None] * outputs + m[None, :]
    tl.store(place, total, mask=known[:, None] & (m < outputs)[None, :])


def table_sums(
    grad: torch.Tensor,
    codes: torch.Tensor,
    entries: int,
    columns: int,
    leaves: int,
    kinds: dict[str, Any],
) -> torch.Tensor:
    """Return (C, K, M): the sum, for each entry of each table, over the rows that took it.

    Parameters
    ----------
    grad, codes
        (N, M) with adjacent columns, and (N, C) uint8 of any strides.
    entries
        K.
    columns, leaves
        Outputs, and entries of all tables, per program; powers of two from 16 on. Where these are
        few programs, each has a part of the batch, and parts are added up.
    kinds
        SUM, PRODUCT and PRECISION of the products.
    """
    (rows, codebooks), outputs = codes.shape, grad.shape[1]
    codes = codes if codes.stride(1) == 1 else codes.contiguous()
    tiles = triton.cdiv(outputs, columns) * triton.cdiv(codebooks * entries, leaves)
    parts = max(1, min(512 // tiles, rows // 512))
    share = triton.cdiv(rows, parts)
    out = grad.new_empty((parts, codebooks, entries, outputs))
    table_sums_kernel[(tiles * parts,)](
        grad,
        codes,
        out,
        rows,
        codebooks,
        outputs,
        share,
        grad.stride(0),
        codes.stride(0),
        ENTRIES=entries,
        LEAVES=leaves,
        STEP=16,
        COLUMNS=columns,
        num_warps=4,
        **kinds,
    )
    return out[0] if parts == 1 else out.sum(0)
