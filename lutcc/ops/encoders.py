"""Encoders: rows to codes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lutcc.ops.checks import dtype as check_dtype
from lutcc.ops.checks import matrix, require
from lutcc.ops.kernels import run
from lutcc.ops.library import define, launcher


def tree_encode(x: torch.Tensor, splitdims: torch.Tensor, splitvals: torch.Tensor) -> torch.Tensor:
    """Hash each row by one balanced binary regression tree per codebook.

    Parameters
    ----------
    x
        (N, D) float32 or uint8.
    splitdims
        (C, L) int32, columns of x; L in 1..7.
    splitvals
        (C, 2**L), dtype of x, in heap order (entry 0 unused).

    Returns
    -------
    torch.Tensor
        Codes (N, C) uint8.

    Raises
    ------
    InputError
        When shapes, dtypes or columns do not fit.

    Notes
    -----
    Source: Blalock and Guttag, Multiplying matrices without multiplying, algorithm 1.

    Examples
    --------
    >>> x = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    >>> tree_encode(x, torch.tensor([[0]], dtype=torch.int32), torch.tensor([[0.0, 1.0]])).tolist()
    [[0], [1]]
    """
    return torch.ops.lutcc.tree_encode(x, splitdims, splitvals)


def _tree_encode_check(x: torch.Tensor, splitdims: torch.Tensor, splitvals: torch.Tensor) -> None:
    op = "tree_encode"
    matrix(op, "x", x, (torch.float32, torch.uint8))
    matrix(op, "splitdims", splitdims, (torch.int32,))
    matrix(op, "splitvals", splitvals, (x.dtype,))
    codebooks, depth = splitdims.shape
    require(
        splitvals.shape[0] == codebooks and splitvals.shape[1] == 2**depth and 1 <= depth <= 7,
        op,
        f"splitdims {tuple(splitdims.shape)} needs splitvals (C, 2**L) with L in 1..7, got "
        f"{tuple(splitvals.shape)}",
        "pass the arrays of one fitted encoder",
    )


def _tree_encode_fake(
    x: torch.Tensor, splitdims: torch.Tensor, splitvals: torch.Tensor
) -> torch.Tensor:
    _tree_encode_check(x, splitdims, splitvals)
    return x.new_empty((x.shape[0], splitdims.shape[0]), dtype=torch.uint8)


def _tree_encode_cpu(
    x: torch.Tensor, splitdims: torch.Tensor, splitvals: torch.Tensor
) -> torch.Tensor:
    _tree_encode_check(x, splitdims, splitvals)
    return run("tree_encode", x, (splitdims, splitvals), {})


def _tree_encode_cuda(
    x: torch.Tensor, splitdims: torch.Tensor, splitvals: torch.Tensor
) -> torch.Tensor:
    _tree_encode_check(x, splitdims, splitvals)
    return launcher("tree_encode")(x, splitdims, splitvals)


define(
    "tree_encode(Tensor x, Tensor splitdims, Tensor splitvals) -> Tensor",
    cpu=_tree_encode_cpu,
    fake=_tree_encode_fake,
    cuda=_tree_encode_cuda,
)


def nearest_encode(
    x: torch.Tensor,
    centroids: torch.Tensor,
    half_norms: torch.Tensor,
    columns: torch.Tensor,
    starts: Sequence[int],
) -> torch.Tensor:
    """Return the nearest centroid of each codebook (product quantisation).

    Parameters
    ----------
    x
        (N, D) float32.
    centroids
        (K, D2) float32, centroids of all codebooks side by side.
    half_norms
        (C, K) float32, half the squared norm of each centroid.
    columns
        (D2,) int32, column of x that belongs to each column of the centroids.
    starts
        C + 1 positions: codebook c owns the columns starts[c]..starts[c+1]-1.

    Returns
    -------
    torch.Tensor
        Codes (N, C) uint8.

    Raises
    ------
    InputError
        When shapes, dtypes or columns do not fit.

    Notes
    -----
    Source: Jegou et al., Product quantization for nearest neighbor search, equation 9.

    Examples
    --------
    >>> x, centroids = torch.tensor([[0.9]]), torch.tensor([[0.0], [1.0]])
    >>> half = torch.tensor([[0.0, 0.5]])
    >>> nearest_encode(x, centroids, half, torch.tensor([0], dtype=torch.int32), [0, 1]).tolist()
    [[1]]
    """
    return torch.ops.lutcc.nearest_encode(x, centroids, half_norms, columns, list(starts))


def _nearest_encode_check(
    x: torch.Tensor,
    centroids: torch.Tensor,
    half_norms: torch.Tensor,
    columns: torch.Tensor,
    starts: Sequence[int],
) -> None:
    op, f32 = "nearest_encode", (torch.float32,)
    matrix(op, "x", x, f32)
    matrix(op, "centroids", centroids, f32)
    matrix(op, "half_norms", half_norms, f32)
    check_dtype(op, "columns", columns, (torch.int32,))
    require(
        columns.ndim == 1 and columns.shape[0] == centroids.shape[1],
        op,
        f"columns must be ({centroids.shape[1]},) like the centroids' columns, got "
        f"{tuple(columns.shape)}",
        "pass the arrays of one fitted encoder",
    )
    require(
        half_norms.shape[1] == centroids.shape[0] and len(starts) == half_norms.shape[0] + 1,
        op,
        f"half_norms must be (C, K) = ({len(starts) - 1}, {centroids.shape[0]}), got "
        f"{tuple(half_norms.shape)}",
        "pass the arrays of one fitted encoder",
    )


def _nearest_encode_fake(
    x: torch.Tensor,
    centroids: torch.Tensor,
    half_norms: torch.Tensor,
    columns: torch.Tensor,
    starts: Sequence[int],
) -> torch.Tensor:
    _nearest_encode_check(x, centroids, half_norms, columns, starts)
    return x.new_empty((x.shape[0], half_norms.shape[0]), dtype=torch.uint8)


def _nearest_encode_cpu(
    x: torch.Tensor,
    centroids: torch.Tensor,
    half_norms: torch.Tensor,
    columns: torch.Tensor,
    starts: Sequence[int],
) -> torch.Tensor:
    _nearest_encode_check(x, centroids, half_norms, columns, starts)
    return run(
        "nearest_encode", x, (centroids, half_norms, columns), {"starts": tuple(map(int, starts))}
    )


def _nearest_encode_cuda(
    x: torch.Tensor,
    centroids: torch.Tensor,
    half_norms: torch.Tensor,
    columns: torch.Tensor,
    starts: Sequence[int],
) -> torch.Tensor:
    _nearest_encode_check(x, centroids, half_norms, columns, starts)
    return launcher("nearest_encode")(x, centroids, half_norms, columns, starts)


define(
    "nearest_encode(Tensor x, Tensor centroids, Tensor half_norms, Tensor columns, "
    "int[] starts) -> Tensor",
    cpu=_nearest_encode_cpu,
    fake=_nearest_encode_fake,
    cuda=_nearest_encode_cuda,
)
