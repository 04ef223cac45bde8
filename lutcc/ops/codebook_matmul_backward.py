"""The gradients of linear layers whose weights are indices into codebooks."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

from lutcc.ops.checks import require
from lutcc.ops.codebook_products import check_operands, check_order, stored_weights
from lutcc.ops.codebook_tables import check_devices
from lutcc.ops.library import define, launcher, once, saves_nothing

_OP = "codebook_matmul_backward"
Gradients: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Of x, the codebooks and the scales; empty where none is wanted."""


def codebook_matmul_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    indices: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    order: torch.Tensor | None,
    bits: int,
    segment_size: int,
    *,
    for_x: bool,
    for_tables: bool,
) -> Gradients:
    """Return the gradients of :func:`lutcc.ops.codebook_matmul`.

    Parameters
    ----------
    grad
        (..., M), dtype of x: of its result.
    x, indices, codebooks, scales, order, bits, segment_size
        Its arguments.
    for_x, for_tables
        Which are wanted: that of x; those of the codebooks and the scales.
    """
    return torch.ops.lutcc.codebook_matmul_backward(
        grad, x, indices, codebooks, scales, order, bits, segment_size, for_x, for_tables
    )


def _check(
    grad: torch.Tensor,
    x: torch.Tensor,
    indices: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    order: torch.Tensor | None,
    bits: int,
    segment_size: int,
    for_x: bool,
    for_tables: bool,
) -> None:
    check_operands(_OP, x, indices, codebooks, scales, order, bits, segment_size)
    shape = (*x.shape[:-1], indices.shape[0])
    require(
        grad.dtype is x.dtype and tuple(grad.shape) == shape,
        _OP,
        f"grad must be {x.dtype} of shape {shape}, got {grad.dtype} of shape {tuple(grad.shape)}",
        "pass the gradient of codebook_matmul's result",
    )
    check_devices(_OP, x, grad=grad)


def _fake(
    grad: torch.Tensor,
    x: torch.Tensor,
    indices: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    *rest: Any,
) -> Gradients:
    *_, for_x, for_tables = rest
    return (
        x.new_empty(x.shape if for_x else (0,)),
        codebooks.new_empty(codebooks.shape if for_tables else (0,)),
        scales.new_empty(scales.shape if for_tables else (0,)),
    )


def _run(
    grad: torch.Tensor,
    x: torch.Tensor,
    indices: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    order: torch.Tensor | None,
    bits: int,
    segment_size: int,
    for_x: bool,
    for_tables: bool,
) -> Gradients:
    check_order(_OP, order)
    stored = stored_weights(x, indices, codebooks, scales, bits, segment_size)
    rows = x.reshape(-1, x.shape[-1]).to(stored.dtype)
    grads = grad.reshape(-1, grad.shape[-1]).to(stored.dtype)
    dx = rows.new_zeros(rows.shape if for_x else (0,))
    dcodebooks, dscales = (
        rows.new_zeros(t.shape if for_tables else (0,)) for t in (codebooks, scales)
    )
    for piece in stored.pieces():
        part = grads[:, piece] if order is None else grads[:, order[piece].long()]
        if for_x:
            dx.addmm_(part, stored.weights(piece))
        if for_tables:
            stored.add_gradients(piece, part.t() @ rows, dcodebooks, dscales)
    return (
        dx.to(x.dtype).reshape(x.shape if for_x else (0,)),
        dcodebooks.to(codebooks.dtype),
        dscales.to(scales.dtype),
    )


def _cuda(grad: torch.Tensor, *rest: Any) -> Gradients:
    way = _run if grad.dtype is torch.float64 else launcher(_OP)
    return way(grad, *rest)


define(
    "codebook_matmul_backward(Tensor grad, Tensor x, Tensor indices, Tensor codebooks, "
    "Tensor scales, Tensor? order, int bits, int segment_size, bool for_x, bool for_tables) "
    "-> (Tensor, Tensor, Tensor)",
    check=_check,
    cpu=_run,
    fake=_fake,
    backward=once,
    setup=saves_nothing,
    cuda=_cuda,
)
