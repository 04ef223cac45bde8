"""Scores of column-row pairs: products of norms, by which the modes of sampling choose."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from lutcc.ops.arithmetic import floats, row_chunks, wide
from lutcc.ops.checks import require
from lutcc.ops.library import define

_SMALLEST_SUM = 1e-30
"""Below this, squares that were summed may have lost bits to underflow in float32."""
_LARGEST_SUM = 1e38
"""Above this, they may have overflowed."""


def check_product(op: str, a: torch.Tensor, b: torch.Tensor, group_size: int) -> None:
    """Raise InputError unless a (N, K) and b (K, M) can be multiplied, in groups of columns."""
    floats(op, "a", a)
    floats(op, "b", b)
    require(a.dtype is b.dtype, op, f"a is {a.dtype}, but b is {b.dtype}", f"b.to({a.dtype})")
    require(
        a.ndim == 2 and b.ndim == 2 and a.shape[1] == b.shape[0] and b.shape[0] >= 1,
        op,
        f"a {tuple(a.shape)} and b {tuple(b.shape)} must be (N, K) and (K, M) with K >= 1",
        "pass matrices: x.flatten(0, -2), and the transpose of a layer's weight",
    )
    require(group_size >= 1, op, f"group_size={group_size} is not at least 1", "use 1 or 16")


def pairs_of(columns: int, group_size: int) -> int:
    """Return how many pairs so many columns make: whole groups, of which the last may be short."""
    return -(-columns // group_size)


def column_row_scores(
    a: torch.Tensor, b: torch.Tensor, group_size: int = 1, weights_only: bool = False
) -> torch.Tensor:
    """Return a score for each column of a and row of b: the product of their norms.

    Parameters
    ----------
    a, b
        (N, K) and (K, M) of one floating-point dtype, any strides.
    group_size
        A pair is a group of so many adjacent columns and rows; its score is the root of the sum of
        their scores' squares.
    weights_only
        Take the norms of b alone.

    Returns
    -------
    torch.Tensor
        (ceil(K / group_size),) float32, float64 for float64. Not differentiable.

    Raises
    ------
    InputError
        When shapes or dtypes do not fit.

    Notes
    -----
    Source: Adelman et al., Faster neural network training with approximate tensor operations,
    equation 4.

    Examples
    --------
    >>> a, b = torch.tensor([[3.0, 1.0], [4.0, 0.0]]), torch.tensor([[2.0], [7.0]])
    >>> column_row_scores(a, b).tolist()
    [10.0, 7.0]
    """
    return torch.ops.lutcc.column_row_scores(a, b, group_size, weights_only)


def _check(
    a: torch.Tensor, b: torch.Tensor, group_size: int = 1, weights_only: bool = False
) -> None:
    check_product("column_row_scores", a, b, group_size)


def _fake(
    a: torch.Tensor, b: torch.Tensor, group_size: int = 1, weights_only: bool = False
) -> torch.Tensor:
    return a.new_empty((pairs_of(a.shape[1], group_size),), dtype=wide(a.dtype))


def _cpu(
    a: torch.Tensor, b: torch.Tensor, group_size: int = 1, weights_only: bool = False
) -> torch.Tensor:
    norms = column_norms(b.t()).double()
    if not weights_only:
        norms = norms * column_norms(a)
    pairs = pairs_of(a.shape[1], group_size)
    padded = torch.nn.functional.pad(norms, (0, pairs * group_size - len(norms)))
    # in float64 the squares of float32 numbers neither overflow nor vanish
    scores = torch.linalg.vector_norm(padded.view(pairs, group_size), dim=1)
    return scores.to(wide(a.dtype))


def column_norms(x: torch.Tensor) -> torch.Tensor:
    """Return the norm of each column of a matrix on the CPU, in float32 at least.

    Takes x in pieces that stay in a cache, along the rows of its memory.
    """
    rows, columns = x.shape
    dtype = wide(x.dtype)
    along_rows = x.stride(1) <= x.stride(0)
    if along_rows:
        squares = x.new_zeros((columns,), dtype=dtype)
        for piece in row_chunks(rows, max(columns, 1), least=16):
            squares += squared(x[piece]).sum(0)
    else:
        squares = x.new_empty((columns,), dtype=dtype)
        for piece in row_chunks(columns, max(rows, 1), least=16):
            squares[piece] = squared(x[:, piece].t()).sum(1)
    return roots(squares, lambda index: x.t().index_select(0, index).to(dtype))


def squared(x: torch.Tensor) -> torch.Tensor:
    """Return the squares, in float32 at least."""
    if x.dtype is wide(x.dtype):
        return x * x
    x = x.to(wide(x.dtype))
    return x.mul_(x)


def roots(squares: torch.Tensor, values: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Return the roots of sums of squares; sums that left float32's range are formed again.

    ``values`` returns what was squared for some of the sums, (sums, values): divided by the largest
    magnitude it can be squared.
    """
    sums = squares.numpy()  # NumPy takes less time for so few numbers
    fine = (sums > _SMALLEST_SUM) & (sums <= _LARGEST_SUM)
    norms = squares.sqrt_()
    if not fine.all():
        index = torch.from_numpy(np.flatnonzero(~fine))
        norms[index] = scaled_norms(values(index))
    return norms


def scaled_norms(x: torch.Tensor) -> torch.Tensor:
    """Return the norm of each row of a matrix without overflow or underflow of squares."""
    if not x.shape[1]:
        return x.new_zeros((x.shape[0],))
    largest = x.abs().amax(1)
    unit = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    return torch.linalg.vector_norm(x / unit[:, None], dim=1) * unit


define(
    "column_row_scores(Tensor a, Tensor b, int group_size=1, bool weights_only=False) -> Tensor",
    check=_check,
    cpu=_cpu,
    fake=_fake,
    cuda=True,
)
