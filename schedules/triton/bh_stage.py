"""One stage of a BH projection, ``(x H) B``, in one pass over memory.

H of n = G * P is the Kronecker product of H_G and H_P, so ``x H B = ((x (H_G (x) I)) F)`` with the
folded blocks ``F = (I (x) H_P) B``: butterflies across the G stretches of P columns, which are in
registers of the same thread, then a block-diagonal product. The first keeps the mixed rows, which
the gradient of the blocks needs; both directions read and write each element once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from lutcc.schedules.triton.block_diagonal_matmul import (
    block_diagonal_matmul,
    block_diagonal_matmul_weight_grad,
)
from lutcc.schedules.triton.hadamard import butterflies, hadamard
from lutcc.schedules.triton.jit import jit
from lutcc.schedules.triton.rows import as_rows, next_power_of_two, sum_dtype, sum_type
from lutcc.schedules.triton.target import Target, current_target

#: More stretches, or wider rows, do not fit into registers.
MAX_GROUPS, MAX_COLUMNS = 16, 1024


@dataclass(frozen=True, slots=True)
class StageConfig:
    """How the fused stage is cut.

    Attributes
    ----------
    rows
        Rows per program: all of their columns are in registers, in float32.
    num_warps
        Warps per program.
    """

    rows: int
    num_warps: int


def choose_config(
    shape: tuple[int, int, int], dtype: torch.dtype, target: Target
) -> StageConfig | None:
    """Return the config of the fused stage for blocks (G, P, Q); None where it would not pay.

    It pays where rows stay in registers and one tensor-core product per block is enough: 2 to 16
    blocks, at most 1024 columns, 16-bit types. (The interpreter takes all types, for checks.)

    Examples
    --------
    >>> choose_config((8, 64, 64), torch.bfloat16, Target("sm_90", "cuda"))
    StageConfig(rows=16, num_warps=4)
    >>> choose_config((64, 16, 16), torch.bfloat16, Target("sm_90", "cuda"))
    """
    groups, p, q = shape
    powers = all(size == next_power_of_two(size) for size in shape)
    fits = 2 <= groups <= MAX_GROUPS and 16 <= p <= 128 and 16 <= q <= 128
    if not (powers and fits and groups * max(p, q) <= MAX_COLUMNS):
        return None
    if dtype.itemsize > 2 and target.backend != "interpreter":
        return None
    wide = groups * p > 512 and target.backend == "cuda"  # a warp of AMD has 64 threads
    return StageConfig(16, 8 if wide else 4)


@jit
def bh_stage_kernel(
    x,
    blocks,
    mixed,
    y,
    rows,
    columns_in,
    columns,
    x_stride,
    scale,
    GROUPS: tl.constexpr,
    LOG_GROUPS: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    ROWS: tl.constexpr,
    SUM: tl.constexpr,
):
    """Mix the stretches of ROWS rows, store them, multiply each by its block."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = (r < rows)[:, None]
    r = r.to(tl.int64)[:, None]
    p = tl.arange(0, P)
    q = tl.arange(0, Q)
    parts = ()
    for g in tl.static_range(GROUPS):
        c = g * P + p[None, :]
        v = tl.load(x + r * x_stride + c, mask=inside & (c < columns_in), other=0.0)
        parts = parts + (v.to(SUM),)
    parts = butterflies(parts, GROUPS, LOG_GROUPS)
    for g in tl.static_range(GROUPS):
        u = (parts[g] * scale).to(mixed.dtype.element_ty)
        tl.store(mixed + r * (GROUPS * P) + g * P + p[None, :], u, mask=inside)
        w = tl.load(blocks + g * P * Q + p[:, None] * Q + q[None, :])
        v = tl.dot(u, w, input_precision="ieee", out_dtype=SUM)
        c = g * Q + q[None, :]
        tl.store(y + r * columns + c, v.to(y.dtype.element_ty), mask=inside & (c < columns))


@jit
def bh_stage_input_grad_kernel(
    grad,
    blocks,
    dx,
    rows,
    columns_in,
    columns,
    grad_stride,
    scale,
    GROUPS: tl.constexpr,
    LOG_GROUPS: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    ROWS: tl.constexpr,
    SUM: tl.constexpr,
):
    """Multiply each stretch of the gradient by its block's transpose, then mix the results."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = (r < rows)[:, None]
    r = r.to(tl.int64)[:, None]
    p = tl.arange(0, P)
    q = tl.arange(0, Q)
    parts = ()
    for g in tl.static_range(GROUPS):
        c = g * Q + q[None, :]
        v = tl.load(grad + r * grad_stride + c, mask=inside & (c < columns), other=0.0)
        w = tl.load(blocks + g * P * Q + p[None, :] * Q + q[:, None])
        parts = parts + (tl.dot(v, w, input_precision="ieee", out_dtype=SUM),)
    parts = butterflies(parts, GROUPS, LOG_GROUPS)
    for g in tl.static_range(GROUPS):
        c = g * P + p[None, :]
        v = (parts[g] * scale).to(dx.dtype.element_ty)
        tl.store(dx + r * columns_in + c, v, mask=inside & (c < columns_in))


def fold(blocks: torch.Tensor, scale: float) -> torch.Tensor:
    """Return ``scale * H_P B`` for each block: its gradient is the same map of the gradient."""
    return hadamard(blocks.transpose(1, 2), scale).transpose(1, 2).contiguous()


def bh_stage(
    x: torch.Tensor, blocks: torch.Tensor, scale: float, columns: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``scale * x H B`` and what :func:`bh_stage_backward` needs beside its operands.

    Parameters
    ----------
    x
        (..., D) float16, bfloat16, float32 or float64 of any strides; padded with zeros to n = G*P
        columns, the next power of two.
    blocks
        (G, P, Q), dtype of x.
    scale
        Of the transform.
    columns
        How many columns of the result are computed; G*Q if None.

    Returns
    -------
    tuple of torch.Tensor
        (..., columns) and the mixed rows (..., n); dtype of x.

    Notes
    -----
    Source: Zeng et al., LookupFFN, equation 11. Where :func:`choose_config` says that fusing does
    not pay, this is :func:`hadamard` and :func:`block_diagonal_matmul`.

    Examples
    --------
    >>> x, blocks = torch.ones(5, 500).cuda(), torch.ones(8, 64, 64).cuda()  # doctest: +SKIP
    >>> bh_stage(x, blocks, 512**-0.5)[0].shape  # doctest: +SKIP
    torch.Size([5, 512])
    """
    groups, p, q = blocks.shape
    columns = groups * q if columns is None else columns
    config = choose_config((groups, p, q), x.dtype, current_target())
    flat = as_rows(x)
    rows = flat.shape[0]
    if config is None or not rows:
        mixed = hadamard(x, scale)
        return block_diagonal_matmul(mixed, blocks, columns), mixed
    mixed = x.new_empty((rows, groups * p))
    y = x.new_empty((rows, columns))
    # Mixing keeps the variance, so that float16 does not leave its range; the blocks get the rest.
    mix = groups**-0.5
    bh_stage_kernel[(triton.cdiv(rows, config.rows),)](
        flat,
        fold(blocks, scale / mix),
        mixed,
        y,
        rows,
        flat.shape[1],
        columns,
        flat.stride(0),
        mix,
        GROUPS=groups,
        LOG_GROUPS=groups.bit_length() - 1,
        P=p,
        Q=q,
        ROWS=config.rows,
        SUM=sum_type(x.dtype),
        num_warps=config.num_warps,
    )
    return y.reshape(*x.shape[:-1], columns), mixed.reshape(*x.shape[:-1], groups * p)


def bh_stage_backward(
    grad: torch.Tensor, mixed: torch.Tensor, blocks: torch.Tensor, scale: float, columns_in: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of x and of the blocks.

    Parameters
    ----------
    grad
        (..., columns), dtype of the blocks.
    mixed
        The second result of :func:`bh_stage`.
    blocks, scale
        As they were given to it.
    columns_in
        D, the columns of x.

    Returns
    -------
    tuple of torch.Tensor
        (..., D) and (G, P, Q).

    Examples
    --------
    >>> x, blocks = torch.ones(5, 500).cuda(), torch.ones(8, 64, 64).cuda()  # doctest: +SKIP
    >>> y, mixed = bh_stage(x, blocks, 512**-0.5)  # doctest: +SKIP
    >>> bh_stage_backward(y, mixed, blocks, 512**-0.5, 500)[0].shape  # doctest: +SKIP
    torch.Size([5, 500])
    """
    groups, p, q = blocks.shape
    config = choose_config((groups, p, q), grad.dtype, current_target())
    flat = as_rows(grad)
    rows, columns = flat.shape
    if config is None or not rows:
        dblocks = block_diagonal_matmul_weight_grad(mixed, grad, groups, q, blocks.dtype)
        whole = torch.nn.functional.pad(grad, (0, groups * q - columns))
        dmixed = block_diagonal_matmul(whole, blocks.transpose(1, 2))
        return hadamard(dmixed, scale)[..., :columns_in].contiguous(), dblocks
    wide = sum_dtype(grad.dtype)  # what is folded back is rounded once, afterwards
    dfolded = block_diagonal_matmul_weight_grad(mixed, grad, groups, q, wide)
    mix = groups**-0.5
    dblocks = fold(dfolded, scale / mix).to(blocks.dtype)
    dx = grad.new_empty((rows, columns_in))
    bh_stage_input_grad_kernel[(triton.cdiv(rows, config.rows),)](
        flat,
        fold(blocks, scale / mix),
        dx,
        rows,
        columns_in,
        columns,
        flat.stride(0),
        mix,
        GROUPS=groups,
        LOG_GROUPS=groups.bit_length() - 1,
        P=p,
        Q=q,
        ROWS=config.rows,
        SUM=sum_type(grad.dtype),
        num_warps=config.num_warps,
    )
    return dx.reshape(*grad.shape[:-1], columns_in), dblocks
