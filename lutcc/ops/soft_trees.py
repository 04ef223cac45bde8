"""Straight-through gradients of look-ups by trees, through the probabilities of their paths."""

from __future__ import annotations

from typing import Any

import torch

from lutcc.ops.arithmetic import row_chunks
from lutcc.ops.checks import dtype as check_dtype
from lutcc.ops.checks import matrix, require
from lutcc.ops.library import define, launcher, once, saves_nothing

#: Where a sigmoid's slope is 0 in float32: what is compared beyond it counts as this.
_FAR = 1e4

Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def soft_tree_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    codes: torch.Tensor,
    splitdims: torch.Tensor,
    splitvals: torch.Tensor,
    log_temperature: torch.Tensor,
    lut: torch.Tensor,
    unit: torch.Tensor,
    bfloat16: bool = False,
) -> Gradients:
    """Return the straight-through gradients of the sums of table rows that trees choose.

    The value is that of hard codes; the gradient of x, thresholds and temperatures that of soft
    ones, the product along a path of sigmoid((x - threshold) / temperature).

    Parameters
    ----------
    grad
        (N, M) float32 (float64 on a CPU), the gradient of the sums.
    x
        (N, D), dtype of grad.
    codes
        (N, C) uint8, those of x.
    splitdims, splitvals
        (C, L) int32, and (C, 2**L) of the dtype of grad, in heap order (entry 0 unused).
    log_temperature
        (C,), dtype of grad.
    lut, unit
        (C, 2**L, M) uint8 or the dtype of grad, and (M,) of the dtype of grad: an entry is worth
        ``lut * unit``, and whatever all entries of a codebook have in common.
    bfloat16
        Whether products round their operands to bfloat16.

    Returns
    -------
    tuple of torch.Tensor
        The gradients of x (N, D), splitvals, log_temperature, and of tables in units of the sums
        (C, 2**L, M): each entry's is the sum over the rows that took it. (N, C, 2**L) numbers are
        nowhere held.

    Raises
    ------
    InputError
        When shapes or dtypes do not fit.

    Notes
    -----
    Source: the differentiable hash that ITLUMM asks for in section 4; soft trees as in
    halutmatmul. This is what the look-ups of :func:`lutcc.finetune` take on a GPU.

    Examples
    --------
    >>> x, one = torch.tensor([[0.5]]), torch.ones(1)
    >>> dims, vals = torch.zeros(1, 1, dtype=torch.int32), torch.tensor([[0.0, 0.5]])
    >>> codes = torch.ops.lutcc.tree_encode(x, dims, vals)
    >>> lut = torch.tensor([[[0.0], [4.0]]])
    >>> found = soft_tree_backward(x * 2, x, codes, dims, vals, one * 0, lut, one)
    >>> [g.flatten().tolist() for g in found]  # 4 * sigmoid'(0) is 1
    [[1.0], [0.0, -1.0], [0.0], [1.0, 0.0]]
    """
    return torch.ops.lutcc.soft_tree_backward(
        grad, x, codes, splitdims, splitvals, log_temperature, lut, unit, bfloat16
    )


def _check(
    grad: torch.Tensor,
    x: torch.Tensor,
    codes: torch.Tensor,
    splitdims: torch.Tensor,
    splitvals: torch.Tensor,
    log_temperature: torch.Tensor,
    lut: torch.Tensor,
    unit: torch.Tensor,
    bfloat16: bool = False,
) -> None:
    op = "soft_tree_backward"
    matrix(op, "grad", grad, (torch.float32, torch.float64))
    matrix(op, "codes", codes, (torch.uint8,))
    matrix(op, "splitdims", splitdims, (torch.int32,))
    same = (grad.dtype,)
    matrix(op, "x", x, same)
    matrix(op, "splitvals", splitvals, same)
    check_dtype(op, "log_temperature", log_temperature, same)
    check_dtype(op, "unit", unit, same)
    check_dtype(op, "lut", lut, (torch.uint8, grad.dtype))
    (rows, outputs), (codebooks, depth) = grad.shape, splitdims.shape
    require(1 <= depth <= 7, op, f"splitdims has L = {depth} levels", "use trees of 1..7 levels")
    wanted = {
        "x": (x, (rows, x.shape[1])),
        "codes": (codes, (rows, codebooks)),
        "splitvals": (splitvals, (codebooks, 2**depth)),
        "log_temperature": (log_temperature, (codebooks,)),
        "lut": (lut, (codebooks, 2**depth, outputs)),
        "unit": (unit, (outputs,)),
    }
    for name, (tensor, shape) in wanted.items():
        require(
            tuple(tensor.shape) == shape,
            op,
            f"{name} must be {shape} for grad {tuple(grad.shape)} and splitdims "
            f"{tuple(splitdims.shape)}, got {tuple(tensor.shape)}",
            "pass the tensors of one layer and one batch",
        )


def _fake(
    grad: torch.Tensor,
    x: torch.Tensor,
    codes: torch.Tensor,
    splitdims: torch.Tensor,
    splitvals: torch.Tensor,
    log_temperature: torch.Tensor,
    lut: torch.Tensor,
    unit: torch.Tensor,
    bfloat16: bool = False,
) -> Gradients:
    return (
        grad.new_empty(x.shape),
        grad.new_empty(splitvals.shape),
        grad.new_empty(log_temperature.shape),
        grad.new_empty(lut.shape),
    )


def _cpu(
    grad: torch.Tensor,
    x: torch.Tensor,
    codes: torch.Tensor,
    splitdims: torch.Tensor,
    splitvals: torch.Tensor,
    log_temperature: torch.Tensor,
    lut: torch.Tensor,
    unit: torch.Tensor,
    bfloat16: bool = False,
) -> Gradients:
    codebooks, depth = splitdims.shape
    entries, dims = 2**depth, splitdims.T.flatten().long()
    found = _fake(grad, x, codes, splitdims, splitvals, log_temperature, lut, unit)
    dx, dvals, dlog, dtables = (each.zero_() for each in found)
    dtype = torch.bfloat16 if bfloat16 else grad.dtype
    tables = lut.to(dtype).flatten(0, 1)
    first = torch.arange(codebooks) * entries
    for piece in row_chunks(len(x), codebooks * entries):
        values = x[piece][:, dims].view(-1, depth, codebooks)
        worth = ((grad[piece] * unit).to(dtype) @ tables.T).to(grad.dtype)
        worth = worth.view(-1, codebooks, entries)
        dvalues, more, cold = tree_gradients(worth, values, splitvals, log_temperature[:, None])
        dvals += more
        dlog += cold[:, 0]
        dx[piece] = dx[piece].index_add(1, dims, dvalues.flatten(1))
        leaves = (codes[piece].long() + first).T.flatten()
        rows = grad[piece].to(dtype).to(grad.dtype).expand(codebooks, -1, -1).flatten(0, 1)
        dtables.view(-1, grad.shape[1]).index_add_(0, leaves, rows)
    return dx, dvals, dlog, dtables


def tree_gradients(
    worth: torch.Tensor,
    values: torch.Tensor,
    thresholds: torch.Tensor,
    log_temperature: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of soft trees: of the values compared, thresholds, log temperatures.

    A node is worth the mean of its children by their probabilities; its own probability is the
    product along the path to it.

    Parameters
    ----------
    worth
        (N, C, K), the gradient of the soft codes.
    values
        (N, L, C): what is compared at each level.
    thresholds, log_temperature
        (C, K) in heap order, and (C, 1).

    Examples
    --------
    >>> worth, values = torch.tensor([[[0.0, 4.0]]]), torch.tensor([[[0.5]]])
    >>> found = tree_gradients(worth, values, torch.tensor([[0.0, 0.5]]), torch.zeros(1, 1))
    >>> [g.flatten().tolist() for g in found]  # 4 * sigmoid'(0) is 1
    [[1.0], [0.0, -1.0], [0.0]]
    """
    depth = values.shape[1]
    cold = (-log_temperature).exp().T  # (1, C)
    places, shares, reached = [], [], values.new_ones(1)
    for level in range(depth):
        nodes = thresholds[:, 2**level : 2 ** (level + 1)].T
        place = ((values[:, level : level + 1] - nodes) * cold).clamp_(-_FAR, _FAR)
        right = torch.sigmoid(place)
        places.append(place)
        shares.append((right, reached))
        if level + 1 < depth:
            far = right * reached
            reached = torch.stack([reached - far, far], 2).flatten(1, 2)
    worth = worth.transpose(1, 2)  # (N, K, C): of each node, from the leaves up
    d_values, d_nodes = torch.empty_like(values), torch.zeros_like(thresholds)
    d_log = torch.zeros_like(log_temperature)
    for level in reversed(range(depth)):
        (right, reached), place = shares.pop(), places.pop()
        left = worth[:, 0::2]
        gain = worth[:, 1::2] - left
        worth = torch.addcmul(left, gain, right)
        slope = gain.mul_(reached).mul_(right.mul_(1 - right))
        d_log -= torch.linalg.vecdot(slope, place, dim=0).sum(0)[:, None]
        slope *= cold
        d_values[:, level] = slope.sum(1)
        d_nodes[:, 2**level : 2 ** (level + 1)] = -slope.sum(0).T
    return d_values, d_nodes, d_log


def _cuda(grad: torch.Tensor, *rest: Any) -> Gradients:
    require(
        grad.dtype is torch.float32,
        "soft_tree_backward",
        f"a GPU's kernel takes float32, not {grad.dtype}",
        "cast the tensors, or move them to the CPU",
    )
    return launcher("soft_tree_backward")(grad, *rest)


define(
    "soft_tree_backward(Tensor grad, Tensor x, Tensor codes, Tensor splitdims, Tensor splitvals, "
    "Tensor log_temperature, Tensor lut, Tensor unit, bool bfloat16=False) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    check=_check,
    cpu=_cpu,
    fake=_fake,
    backward=once,
    setup=saves_nothing,
    cuda=_cuda,
)
