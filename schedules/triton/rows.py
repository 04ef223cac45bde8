"""Tensors as kernels see them: rows of unit stride, element types, types of sums."""

from __future__ import annotations

import torch
import triton.language as tl

from lutcc.errors import InputError

_TYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


def element_type(dtype: torch.dtype) -> tl.dtype:
    """Return Triton's name of a floating-point dtype.

    Raises
    ------
    InputError
        For any other dtype.
    """
    if dtype not in _TYPES:
        raise InputError(
            f"kernels take float16, bfloat16, float32 and float64, not {dtype}",
            where="lutcc.schedules.triton",
            fix="cast the tensor",
        )
    return _TYPES[dtype]


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return what sums of ``dtype`` are kept in: float64 for float64, else float32."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def sum_type(dtype: torch.dtype) -> tl.dtype:
    """Return Triton's name of :func:`sum_dtype`."""
    return _TYPES[sum_dtype(dtype)]


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """Return ``x`` (..., D) as (rows, D) with adjacent columns; a view where strides allow it."""
    flat = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    return flat if flat.stride(1) == 1 or flat.shape[1] == 1 else flat.contiguous()


def as_whole_rows(x: torch.Tensor) -> torch.Tensor:
    """Return ``x`` (..., D) as contiguous (rows, D)."""
    return as_rows(x).contiguous()


def next_power_of_two(n: int) -> int:
    """Return the power of two not below ``n``.

    Examples
    --------
    >>> [next_power_of_two(n) for n in (1, 3, 512, 768)]
    [1, 4, 512, 1024]
    """
    return 1 << (n - 1).bit_length()
