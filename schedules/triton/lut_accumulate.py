"""``lut_accumulate`` and ``lut_dequantize``: codes to sums of table rows, sums to values.

A program sums a tile of rows and columns over all codebooks, as that of ``weighted_gather`` does.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lutcc.schedules.triton.jit import jit
from lutcc.schedules.triton.rows import as_whole_rows
from lutcc.schedules.triton.target import current_target
from lutcc.schedules.triton.weighted_gather import choose_config

_DEQUANTIZED = 1024  # values of a program


@jit
def table_rows(codes, lut, r, m, e, inside, wanted, codebooks, entries, outputs, codes_row):
    """Return which codes (ROWS, 1) are entries of table ``e``, and their rows; 0 of others."""
    here = inside & (e < codebooks)
    code = tl.load(codes + r * codes_row + e, mask=here, other=0).to(tl.int64)
    valid = code < entries
    row = e * entries + code
    v = tl.load(lut + row * outputs + m, mask=here & valid & wanted, other=0)
    return valid, v


@jit
def averaged(
    codes, lut, r, m, e, inside, wanted, codebooks, entries, outputs, codes_row,
    COUNT: tl.constexpr,
):  # fmt: skip
    """Return the averages of the rows of COUNT tables from ``e`` on, rounded up pair by pair."""
    if COUNT == 1:
        _, v = table_rows(
            codes, lut, r, m, e, inside, wanted, codebooks, entries, outputs, codes_row
        )
        return v.to(tl.int32)
    else:
        left = averaged(
            codes, lut, r, m, e, inside, wanted, codebooks, entries, outputs, codes_row, COUNT // 2
        )
        right = averaged(
            codes, lut, r, m, e + COUNT // 2, inside, wanted, codebooks, entries, outputs,
            codes_row, COUNT // 2,
        )  # fmt: skip
        return (left + right + 1) >> 1


@jit
def lut_accumulate_kernel(
    codes,
    lut,
    y,
    rows,
    codebooks,
    entries,
    outputs,
    codes_row,
    GROUP: tl.constexpr,
    MEAN: tl.constexpr,
    FLOATS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SUM: tl.constexpr,
):
    """Sum a tile over all codebooks, GROUP at a time; float sums in the codebooks' order."""
    blocks = tl.cdiv(rows, ROWS)
    r = (tl.program_id(0) % blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    m = (tl.program_id(0) // blocks) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside, wanted = r < rows, m < outputs
    total = tl.zeros((ROWS, COLUMNS), SUM)
    for start in range(0, codebooks, GROUP):
        if MEAN:
            total += averaged(
                codes, lut, r, m, start, inside, wanted, codebooks, entries, outputs, codes_row,
                GROUP,
            )  # fmt: skip
        else:
            for u in tl.static_range(GROUP):
                valid, v = table_rows(
                    codes, lut, r, m, start + u, inside, wanted, codebooks, entries, outputs,
                    codes_row,
                )  # fmt: skip
                v = v.to(SUM)
                if FLOATS:
                    v = tl.where(valid, v, float("nan"))
                total += v
    tl.store(y + r * outputs + m, total, mask=inside & wanted)


@jit
def lut_dequantize_kernel(
    acc, scale, offset, y, count, outputs, RELU: tl.constexpr, VALUES: tl.constexpr
):
    """Write ``activation(fma(float32(acc), scale, offset))`` of VALUES sums."""
    at = tl.program_id(0).to(tl.int64) * VALUES + tl.arange(0, VALUES)
    inside = at < count
    m = at % outputs
    total = tl.load(acc + at, mask=inside, other=0).to(tl.float32)
    v = tl.fma(
        total,
        tl.load(scale + m, mask=inside, other=0.0),
        tl.load(offset + m, mask=inside, other=0.0),
    )
    if RELU:
        v = tl.where(v < 0.0, 0.0, v)
    tl.store(y + at, v, mask=inside)


def lut_accumulate(
    codes: torch.Tensor, lut: torch.Tensor, accumulate: str = "exact", upcast_every: int = 16
) -> torch.Tensor:
    """Look up one table row per code and sum over the codebooks.

    Parameters
    ----------
    codes
        (N, C) uint8 of any strides, below K.
    lut
        (C, K, M) uint8, int8, float32 or float64.
    accumulate
        "exact", or "mean" (pairwise averages in groups of ``upcast_every``; uint8 tables).
    upcast_every
        Group size of "mean", a power of two in 2..256.

    Returns
    -------
    torch.Tensor
        (N, M) int32, the dtype of float tables: the bits of every other backend. A code outside
        its table adds 0 to integers, and makes sums of floats NaN.

    Notes
    -----
    Source: Blalock and Guttag, Multiplying matrices without multiplying, section 4.4.

    Examples
    --------
    >>> codes = torch.tensor([[1, 0]], dtype=torch.uint8).cuda()               # doctest: +SKIP
    >>> lut = torch.tensor([[[1], [9]], [[4], [2]]], dtype=torch.uint8).cuda()  # doctest: +SKIP
    >>> lut_accumulate(codes, lut).tolist()                                     # doctest: +SKIP
    [[13]]
    """
    (rows, codebooks), (_, entries, outputs) = codes.shape, lut.shape
    floating = lut.is_floating_point()
    y = codes.new_empty((rows, outputs), dtype=lut.dtype if floating else torch.int32)
    if y.numel():
        codes = codes if codes.stride(1) == 1 else codes.contiguous()
        config = choose_config(outputs, lut.element_size(), current_target())
        kinds = {torch.float32: tl.float32, torch.float64: tl.float64}
        grid = (triton.cdiv(rows, config.rows) * triton.cdiv(outputs, config.columns),)
        mean = accumulate == "mean"
        lut_accumulate_kernel[grid](
            codes,
            lut.contiguous(),
            y,
            rows,
            codebooks,
            entries,
            outputs,
            codes.stride(0),
            GROUP=upcast_every if mean else config.unroll,
            MEAN=mean,
            FLOATS=floating,
            ROWS=config.rows,
            COLUMNS=config.columns,
            SUM=kinds.get(lut.dtype, tl.int32),
            num_warps=config.num_warps,
        )
    return y


def lut_dequantize(
    acc: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, activation: str = "none"
) -> torch.Tensor:
    """Turn integer sums into float32: ``activation(fma(float32(acc), scale, offset))``.

    Parameters
    ----------
    acc
        (N, M) int32 of any strides.
    scale, offset
        (M,) float32.
    activation
        "none" or "relu".

    Returns
    -------
    torch.Tensor
        (N, M) float32: the bits of every other backend.

    Notes
    -----
    Source: McCarter and Dronen, Look-ups are not (yet) all you need, equation 3.

    Examples
    --------
    >>> acc, one = torch.tensor([[3]]).int().cuda(), torch.ones(1).cuda()       # doctest: +SKIP
    >>> lut_dequantize(acc, one / 2, one).tolist()                              # doctest: +SKIP
    [[2.5]]
    """
    flat = as_whole_rows(acc)
    y = torch.empty_like(flat, dtype=torch.float32)
    if flat.numel():
        lut_dequantize_kernel[(triton.cdiv(flat.numel(), _DEQUANTIZED),)](
            flat,
            scale.contiguous(),
            offset.contiguous(),
            y,
            flat.numel(),
            flat.shape[1],
            RELU=activation == "relu",
            VALUES=_DEQUANTIZED,
            num_warps=4,
        )
    return y
