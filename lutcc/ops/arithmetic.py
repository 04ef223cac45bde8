"""What the floating-point operators share: dtypes, and pieces of rows that fit into a cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lutcc.ops.checks import dtype as check_dtype
from lutcc.ops.checks import require

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

_ELEMENTS = 1 << 17
"""Elements of one piece per thread: half a MiB in float32, which stays in L2."""


def floats(op: str, name: str, tensor: torch.Tensor) -> None:
    """Raise InputError unless ``tensor`` is of a floating-point dtype."""
    check_dtype(op, name, tensor, FLOATS)


def float_rows(op: str, name: str, tensor: torch.Tensor) -> None:
    """Raise InputError unless ``tensor`` has a floating-point dtype and rows of some columns."""
    floats(op, name, tensor)
    require(
        tensor.ndim >= 1 and tensor.shape[-1] >= 1,
        op,
        f"{name} needs a last dimension of at least 1, got shape {tuple(tensor.shape)}",
        "pass rows with columns",
    )


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return what to compute in: float64 for float64, else float32."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def row_chunks(rows: int, columns: int, *, least: int = 1) -> Iterator[slice]:
    """Yield slices of rows of so many columns that a piece stays in the cores' caches.

    Examples
    --------
    >>> list(row_chunks(5, 1 << 40, least=2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = max(least, _ELEMENTS * torch.get_num_threads() // columns)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def quantize_rows(x: torch.Tensor, limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row as integers in -limit..limit (N, K), and its unit (N, 1), both float32.

    The same bits as :func:`lutcc.ir.arithmetic.quantize_rows`, where ``limit`` is 127.

    Examples
    --------
    >>> quantize_rows(torch.tensor([[1, -2, 0.5]]), 127)[0].tolist()
    [[64.0, -127.0, 32.0]]
    """
    largest = x.abs().amax(1, keepdim=True)
    # tensors on both sides: torch turns a division by a number, or of one, into a product
    whole = torch.full_like(largest, limit)
    inverse, unit = whole / largest, largest / whole
    usable = largest.isfinite() & inverse.isfinite()
    return torch.where(usable, (x * inverse).round_(), torch.zeros_like(x)), unit


def integer_product(q: torch.Tensor, weights: torch.Tensor, limit: int) -> torch.Tensor:
    """Return (N, M) int32: the product of integers in float32, which holds it piece by piece.

    Parameters
    ----------
    q
        (N, K) float32, integers in -127 .. 127.
    weights
        (M, K) float32, integers in -limit .. limit.
    limit
        Of the weights.

    Examples
    --------
    >>> integer_product(torch.full((1, 2000), 127.0), torch.full((1, 2000), 127.0), 127).tolist()
    [[32258000]]
    """
    # so many columns, whose sums of products float32 holds exactly, in any order
    exact = (1 << 24) // (127 * limit)
    sums = q.new_zeros((len(q), len(weights)), dtype=torch.int32)
    for start in range(0, q.shape[1], exact):
        piece = slice(start, start + exact)
        sums += (q[:, piece] @ weights[:, piece].t()).to(torch.int32)
    return sums
