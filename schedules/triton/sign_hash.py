"""``sign_hash``: hash codes from the signs of a projection, their weights, and the gradient.

A program hashes a tile of (rows * tables, T) numbers, T rounded up to a power of two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from lutcc.schedules.triton.jit import jit
from lutcc.schedules.triton.rows import as_whole_rows, next_power_of_two, sum_type
from lutcc.schedules.triton.target import Target, current_target

VARIANTS = {"constant": 0, "softmax": 1, "gelu": 2}


@dataclass(frozen=True, slots=True)
class HashConfig:
    """How hashing is cut.

    Attributes
    ----------
    width
        T rounded up to a power of two.
    codes
        Codes (without neighbours) per program.
    num_warps
        Warps per program.
    """

    width: int
    codes: int
    num_warps: int = 4


def choose_config(code_length: int, target: Target) -> HashConfig:
    """Return the config: 8 numbers per thread, 16 bytes of 16-bit data.

    Examples
    --------
    >>> choose_config(8, Target("sm_90", "cuda"))
    HashConfig(width=8, codes=128, num_warps=4)
    """
    width = next_power_of_two(code_length)
    return HashConfig(width, 64 if target.backend == "interpreter" else 1024 // width)


@jit
def least_certain(key, taken, t, T: tl.constexpr):
    """Return the position (codes, 1) of the smallest key not taken; of equal ones the lowest."""
    free = tl.where(taken, (1 << 63) - 1, key)
    smallest = tl.min(free, 1)[:, None]
    return tl.min(tl.where((free == smallest) & (t < T), t, T), 1)[:, None]


@jit
def magnitude_key(magnitude):
    """Return the bits of numbers that are not negative: the same order, with NaN last."""
    if magnitude.dtype == tl.float64:
        key = magnitude.to(tl.int64, bitcast=True)
    else:
        key = magnitude.to(tl.int32, bitcast=True).to(tl.int64)
    # A NaN counts as one number, above infinity and below the mark of what is taken.
    return tl.where(magnitude == magnitude, key, (1 << 63) - 2)


@jit
def decays(magnitude, there):
    """Return exp(-2 |z|), and the product over the bits of 1 / (1 + exp(-2 |z|)) as (codes, 1)."""
    decay = tl.exp(-2.0 * magnitude)
    logs = tl.where(there, tl.log(1.0 + decay), 0.0)
    return decay, tl.exp(-tl.sum(logs, 1))[:, None]


@jit
def sign_hash_kernel(
    z,
    codes,
    scores,
    count,
    T: tl.constexpr,
    WIDTH: tl.constexpr,
    NEIGHBORS: tl.constexpr,
    VARIANT: tl.constexpr,
    CODES: tl.constexpr,
    SUM: tl.constexpr,
):
    """Hash CODES stretches of T numbers out of ``count``."""
    r = tl.program_id(0).to(tl.int64) * CODES + tl.arange(0, CODES)[:, None]
    t = tl.arange(0, WIDTH)[None, :]
    inside = r < count
    there = inside & (t < T)
    v = tl.load(z + r * T + t, mask=there, other=0.0).to(SUM)
    code = tl.sum(tl.where(v > 0, 1 << t, 0), 1)[:, None]
    tl.store(codes + r * NEIGHBORS, code, mask=inside)
    if VARIANT == 0:
        one = tl.full((CODES, 1), 1.0, SUM)
        tl.store(scores + r * NEIGHBORS, one.to(scores.dtype.element_ty), mask=inside)
    else:
        magnitude = tl.abs(v)
        _, weight = decays(magnitude, there)
        score = weight
        total = tl.sum(magnitude, 1)[:, None]
        if VARIANT == 2:
            score = weight * total
        tl.store(scores + r * NEIGHBORS, score.to(scores.dtype.element_ty), mask=inside)
        if NEIGHBORS > 1:
            key = magnitude_key(magnitude)
            taken = t >= T
            for j in tl.static_range(1, NEIGHBORS):
                position = least_certain(key, taken, t, T)
                here = t == position
                taken = taken | here
                # where, not a product: NaN and infinity of other bits must stay out of the sum
                near = tl.sum(tl.where(here, magnitude, 0.0), 1)[:, None]
                score = weight * tl.exp(-2.0 * near)
                if VARIANT == 2:
                    score = score * (total - 2.0 * near)
                out = r * NEIGHBORS + j
                tl.store(codes + out, code ^ (1 << position), mask=inside)
                tl.store(scores + out, score.to(scores.dtype.element_ty), mask=inside)


@jit
def sign_hash_backward_kernel(
    z,
    grad,
    dz,
    count,
    T: tl.constexpr,
    WIDTH: tl.constexpr,
    NEIGHBORS: tl.constexpr,
    VARIANT: tl.constexpr,
    CODES: tl.constexpr,
    SUM: tl.constexpr,
):
    """Write the gradient of CODES stretches of T numbers, with codes and their order held.

    With r_j = w exp(-2 |z_b|) (r_0 = w) a score is r_j, or l_j r_j with l_j = P - 2 |z_b|. By
    |z_t|, r_j has the derivative r_j (2 u_t - 2 [t = b_j]), u_t = 1 - sigmoid(2 |z_t|), and l_j
    has 1 - 2 [t = b_j].
    """
    r = tl.program_id(0).to(tl.int64) * CODES + tl.arange(0, CODES)[:, None]
    t = tl.arange(0, WIDTH)[None, :]
    inside = r < count
    there = inside & (t < T)
    v = tl.load(z + r * T + t, mask=there, other=0.0).to(SUM)
    magnitude = tl.abs(v)
    decay, weight = decays(magnitude, there)
    total = tl.sum(magnitude, 1)[:, None]
    direct = tl.load(grad + r * NEIGHBORS, mask=inside, other=0.0).to(SUM) * weight
    through = direct
    if VARIANT == 2:
        through = direct * total
    flipped = tl.zeros((CODES, WIDTH), SUM)
    if NEIGHBORS > 1:
        key = magnitude_key(magnitude)
        taken = t >= T
        for j in tl.static_range(1, NEIGHBORS):
            here = t == least_certain(key, taken, t, T)
            taken = taken | here
            near = tl.sum(tl.where(here, magnitude, 0.0), 1)[:, None]
            g = tl.load(grad + r * NEIGHBORS + j, mask=inside, other=0.0).to(SUM)
            part = g * weight * tl.exp(-2.0 * near)
            if VARIANT == 2:
                direct += part
                through += part * (total - 2.0 * near)
                flipped = tl.where(here, part * (1.0 + total - 2.0 * near), flipped)
            else:
                through += part
                flipped = tl.where(here, part, flipped)
    slope = 2.0 * through * decay / (1.0 + decay) - 2.0 * flipped
    if VARIANT == 2:
        slope += direct
    sign = tl.where(v > 0, 1.0, tl.where(v < 0, -1.0, v))  # 0 at 0, NaN at NaN
    tl.store(dz + r * T + t, (slope * sign).to(dz.dtype.element_ty), mask=there)


def sign_hash(
    z: torch.Tensor, code_length: int, variant: str = "gelu", neighbors: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hash each group of ``code_length`` columns by its signs, and weigh the codes.

    Parameters
    ----------
    z
        (..., H*T) float16, bfloat16, float32 or float64 of any strides; T = code_length in 1..16.
    variant
        "gelu", "softmax" or "constant".
    neighbors
        Codes J per table, 1..T+1 (1 for "constant").

    Returns
    -------
    tuple of torch.Tensor
        Codes (..., H*J) int32; scores (..., H*J) in the dtype of z, computed in float32 (float64).

    Notes
    -----
    Source: Zeng et al., LookupFFN, equations 3, 6 and 7 and section 4.

    Examples
    --------
    >>> codes, scores = sign_hash(torch.ones(2, 24, device="cuda"), 8)  # doctest: +SKIP
    >>> codes.shape  # doctest: +SKIP
    torch.Size([2, 3])
    """
    flat = as_whole_rows(z)
    count = flat.numel() // code_length
    shape = (*z.shape[:-1], z.shape[-1] // code_length * neighbors)
    codes = z.new_empty(shape, dtype=torch.int32)
    scores = z.new_empty(shape)
    if count:
        config = choose_config(code_length, current_target())
        sign_hash_kernel[(triton.cdiv(count, config.codes),)](
            flat,
            codes,
            scores,
            count,
            T=code_length,
            WIDTH=config.width,
            NEIGHBORS=neighbors,
            VARIANT=VARIANTS[variant],
            CODES=config.codes,
            SUM=sum_type(z.dtype),
            num_warps=config.num_warps,
        )
    return codes, scores


def sign_hash_backward(
    z: torch.Tensor, grad_scores: torch.Tensor, code_length: int, variant: str, neighbors: int
) -> torch.Tensor:
    """Return the gradient of z from that of the scores of :func:`sign_hash`.

    Parameters
    ----------
    z, code_length, variant, neighbors
        As they were given to :func:`sign_hash`.
    grad_scores
        (..., H*J), dtype of z.

    Returns
    -------
    torch.Tensor
        Shape and dtype of z; zero for variant "constant".

    Examples
    --------
    >>> z, grad = torch.ones(2, 24).cuda(), torch.ones(2, 3).cuda()  # doctest: +SKIP
    >>> sign_hash_backward(z, grad, 8, "gelu", 1).shape  # doctest: +SKIP
    torch.Size([2, 24])
    """
    if variant == "constant":
        return z.new_zeros(z.shape)
    flat, grad = as_whole_rows(z), as_whole_rows(grad_scores)
    count = flat.numel() // code_length
    dz = z.new_empty(z.shape)
    if count:
        config = choose_config(code_length, current_target())
        sign_hash_backward_kernel[(triton.cdiv(count, config.codes),)](
            flat,
            grad,
            dz,
            count,
            T=code_length,
            WIDTH=config.width,
            NEIGHBORS=neighbors,
            VARIANT=VARIANTS[variant],
            CODES=config.codes,
            SUM=sum_type(z.dtype),
            num_warps=config.num_warps,
        )
    return dz
