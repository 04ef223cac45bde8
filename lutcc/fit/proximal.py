"""Soft assignment of weights to codewords, and its proximal gradient (JLCM, equations 7 to 9).

Arrays stand in planes: the codeword is the first axis, so that each step of a softmax over a few
codewords is a pass over whole matrices.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def proximal_direction(tables: Tensor, assigned: Tensor, unit: Tensor | float = 1.0) -> Tensor:
    """Return D of equation 8, as printed.

    ``D[j] = sign(C[a] - C[j]) / (1 + |C[a] - C[j]| / unit) - (1 if j == a else 0)`` with
    ``sign(0) = 1`` and a the codeword that is assigned: 0 at a, and the smaller the farther away.
    The paper has no unit, that is a unit of 1: weights are some hundredths, all distances are then
    next to nothing, and D is +-1 wherever the codeword stands.

    Parameters
    ----------
    tables
        (L, ...) codewords; the other axes broadcast with those of ``assigned``.
    assigned
        (...) int64: the codeword of each weight.
    unit
        What distances are measured in, a number or (...).

    Returns
    -------
    Tensor
        (L, ...).

    Examples
    --------
    >>> codebook = torch.tensor([-1.0, 0.0, 1.0, 3.0])[:, None]
    >>> proximal_direction(codebook, torch.tensor([1]))[:, 0].tolist()
    [0.5, 0.0, -0.5, -0.25]
    """
    codewords = tables.expand(len(tables), *assigned.shape)
    difference = codewords.gather(0, assigned[None]) - codewords
    sign = torch.where(difference >= 0, 1.0, -1.0).to(tables.dtype)
    direction = sign / difference.abs().div_(unit).add_(1)
    return direction.scatter_add_(0, assigned[None], -torch.ones_like(difference[:1]))


def assigned_codewords(logits: Tensor) -> Tensor:
    """Return ``logits.argmax(0)`` int64, the first where several are equal.

    Plane by plane, which is ten times faster than ``argmax`` over a first axis.

    Examples
    --------
    >>> assigned_codewords(torch.tensor([[0.0, 2.0], [1.0, 2.0]])).tolist()
    [1, 0]
    """
    highest = logits[0].clone()
    assigned = torch.zeros(highest.shape, dtype=torch.long)
    for j in range(1, len(logits)):
        assigned.masked_fill_(logits[j] > highest, j)
        torch.maximum(highest, logits[j], out=highest)
    return assigned


class _Softness(torch.autograd.Function):
    """The second regularisation of equation 6 with one power for value and gradient."""

    @staticmethod
    def forward(ctx: Any, shares: Tensor, beta: float) -> Tensor:
        centred = shares.mul(2).sub_(1)
        power = centred.abs().clamp_min_(1e-12).pow_(beta - 1)
        value = shares.numel() - (power * centred.abs()).sum()
        ctx.save_for_backward(power.mul_(centred.sign_()).mul_(-2 * beta))
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None


def softness(shares: Tensor, beta: float) -> Tensor:
    """Return L2 of equation 6: the sum of ``1 - |2 shares - 1|**beta``, 0 if all are 0 or 1.

    Examples
    --------
    >>> float(softness(torch.tensor([0.0, 0.5, 1.0]), 2.0))
    1.0
    """
    return _Softness.apply(shares, beta)  # pyright: ignore[reportReturnType]


class _Assign(torch.autograd.Function):
    """Weights and shares of soft assignments, with the gradient of equation 9 to the logits."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, tables: Tensor, unit: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        shares = logits.softmax(0)
        ctx.save_for_backward(logits, tables, shares)
        ctx.unit = unit
        return (shares * tables).sum(0), shares

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None]:
        grad_weights, grad_shares = grads
        logits, tables, shares = ctx.saved_tensors
        direction = proximal_direction(tables, assigned_codewords(logits), ctx.unit)
        grad_logits = direction.mul_(grad_weights).neg_()
        grad_tables = shares * grad_weights
        if grad_shares is not None:  # of the regularisation: the chain rule as it is
            inner = (grad_shares * shares).sum(0)
            grad_logits += shares * (grad_shares - inner)
        return grad_logits, grad_tables.sum_to_size(tables.shape), None


def soft_assign(
    logits: Tensor, tables: Tensor, *, proximal: bool = True, unit: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return the weights ``sum_j softmax(logits)[j] * tables[j]`` and the softmax itself.

    The gradient to the tables is the chain rule's (first row of equations 7 and 9). That of the
    weights to the logits is the chain rule's too, or, if ``proximal``, ``-g * D`` with g the
    gradient of the weight and D of :func:`proximal_direction`. The minus is ours: printed as it is,
    equation 9 lowers the logits of the codewords that the weight should move to. With g < 0 the
    weight should grow; D is negative for codewords above the assigned one, g * D is positive, and
    descent lowers their logits. The paper's own example (0.12, g < 0: from -0.09 to 0.17) needs
    the other sign, which is also the chain rule's.

    Parameters
    ----------
    logits
        (L, ...) float.
    tables
        (L, ...) codewords, broadcast over the other axes.
    proximal
        Take the gradient of equation 9.
    unit
        See :func:`proximal_direction`.

    Examples
    --------
    >>> logits = torch.zeros(2, 1, requires_grad=True)
    >>> weights, shares = soft_assign(logits, torch.tensor([[1.0], [3.0]]))
    >>> weights.tolist(), shares.tolist()
    ([2.0], [[0.5], [0.5]])
    """
    if proximal:
        weights, shares = _Assign.apply(logits, tables, unit)  # pyright: ignore[reportGeneralTypeIssues]
        return weights, shares
    shares = logits.softmax(0)
    return (shares * tables).sum(0), shares
