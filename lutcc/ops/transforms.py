"""The Walsh-Hadamard transform of the last dimension."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from lutcc.ir.ops.hadamard import padded_size
from lutcc.ops.arithmetic import float_rows, row_chunks, wide
from lutcc.ops.kernels import run
from lutcc.ops.library import define, is_recorded


def hadamard(x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Return the Walsh-Hadamard transform of the last dimension, times ``scale``.

    Parameters
    ----------
    x
        (..., D) float32, float64, float16 or bfloat16; filled up with zeros to n columns, the power
        of two not below D.
    scale
        Factor of every element; the transform itself is not normalised (H H = n I).

    Returns
    -------
    torch.Tensor
        (..., n), dtype of x, summed in float32 at least. Differentiable.

    Raises
    ------
    InputError
        When the dtype does not fit, or there are no columns.

    Notes
    -----
    Source: Zeng et al., LookupFFN, section 3.2. H[i, j] = (-1)**popcount(i & j), Sylvester's order.

    Examples
    --------
    >>> hadamard(torch.tensor([[1.0, 2.0, 4.0]])).tolist()
    [[7.0, 3.0, -1.0, -5.0]]
    """
    return torch.ops.lutcc.hadamard(x, scale)


def _check(x: torch.Tensor, scale: float = 1.0) -> None:
    del scale
    float_rows("hadamard", "x", x)


def _fake(x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], padded_size(int(x.shape[-1]))))


def _cpu(x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    rows = x.reshape(-1, x.shape[-1])
    if x.dtype is torch.float32 and not is_recorded():
        y = run(
            "hadamard", rows, (), {"scale": float(scale)}, torch_way=lambda: transform(rows, scale)
        )
    else:
        y = transform(rows, scale)
    return y.reshape(*x.shape[:-1], y.shape[-1])


@lru_cache(maxsize=64)
def _matrix(size: int, dtype: torch.dtype, scale: float) -> torch.Tensor:
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    with torch.inference_mode(False):
        return torch.from_numpy(matrix * scale).to(dtype)


def transform(x: torch.Tensor, scale: float) -> torch.Tensor:
    """Return the transform of a matrix's rows: two small products in a cache-sized piece of rows.

    H of size a*b is the Kronecker product of H_a and H_b, so a row as a matrix (a, b) becomes
    H_a @ row @ H_b: 2 (a + b) FLOPs per element, at the speed of matrix products, instead of
    log2(n) passes over memory.
    """
    width = padded_size(x.shape[1])
    bits = width.bit_length() - 1
    outer = 1 if width <= 64 else 1 << (bits // 2)
    inner = width // outer
    dtype = wide(x.dtype)
    right = _matrix(inner, dtype, scale if outer == 1 else 1.0)
    left = _matrix(outer, dtype, scale)
    out = x.new_empty((x.shape[0], width))
    for piece in row_chunks(x.shape[0], width):
        part = x[piece].to(dtype)
        if part.shape[1] < width:
            part = torch.nn.functional.pad(part, (0, width - part.shape[1]))
        target = out[piece] if out.dtype is dtype else out.new_empty(part.shape, dtype=dtype)
        if outer == 1:
            torch.mm(part, right, out=target)
        else:
            count = part.shape[0]
            half = (part.reshape(-1, inner) @ right).view(count, outer, inner)
            torch.bmm(left.expand(count, outer, outer), half, out=target.view(half.shape))
        if out.dtype is not dtype:
            out[piece] = target
    return out


def _setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, ctx.scale = inputs
    ctx.columns = x.shape[-1]


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """Transform the gradient: H is symmetric."""
    return torch.ops.lutcc.hadamard(grad, ctx.scale)[..., : ctx.columns], None


define(
    "hadamard(Tensor x, float scale=1.0) -> Tensor",
    check=_check,
    cpu=_cpu,
    fake=_fake,
    backward=_backward,
    setup=_setup,
    cuda=True,
)
