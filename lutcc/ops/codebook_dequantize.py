"""Rows of a matrix that is written with codebooks, and their gradients."""

from __future__ import annotations

from typing import Any

import torch

from lutcc.errors import InputError
from lutcc.ops.checks import dtype as check_dtype
from lutcc.ops.checks import require
from lutcc.ops.codebook_tables import Stored, check_stored
from lutcc.ops.kernels import run
from lutcc.ops.library import define, is_recorded, launcher, once, saves_nothing

_OP = "codebook_dequantize"


def codebook_dequantize(
    rows: torch.Tensor,
    indices: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    bits: int,
    columns: int,
    segment_size: int = 0,
) -> torch.Tensor:
    """Return rows of a matrix that is written with codebooks: an embedding.

    Parameters
    ----------
    rows
        Any shape, int32 or int64: which rows, 0 .. M - 1. They may repeat.
    indices
        (M, ceil(columns * bits / 8)) uint8: packed, the lowest bit first.
    codebooks
        (G, 2**bits) float32, float64, float16 or bfloat16.
    scales
        (T,), any of these dtypes; a single 1 where there are none.
    bits
        Bits of an index: 2, 3 or 4.
    columns
        Columns of the matrix.
    segment_size
        Columns of a region, a multiple of 32, where there are more codebooks or scales than rows.

    Returns
    -------
    torch.Tensor
        (*rows.shape, columns) float32; float64 if the codebooks or the scales are: y[..., k] =
        scales[t] * codebooks[g, index[rows, k]]. Differentiable in codebooks and scales.

    Raises
    ------
    InputError
        When shapes, dtypes or devices do not fit, or there is no such row (on the CPU; on a GPU
        rows are not looked at).

    Notes
    -----
    Source: Yvinec et al., JLCM, equations 1, 2 and 4.

    Examples
    --------
    >>> indices, books = torch.tensor([[57]], dtype=torch.uint8), torch.tensor([[-1.0, 0, 1, 2]])
    >>> codebook_dequantize(torch.tensor([0]), indices, books, torch.ones(1), 2, 4).tolist()
    [[0.0, 1.0, 2.0, -1.0]]
    """
    return torch.ops.lutcc.codebook_dequantize(
        rows, indices, codebooks, scales, bits, columns, segment_size
    )


def _stored(
    indices: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    bits: int,
    columns: int,
    segment_size: int,
) -> Stored:
    double = torch.float64 in (codebooks.dtype, scales.dtype)
    dtype = torch.float64 if double else torch.float32
    return Stored(indices, codebooks, scales, bits, columns, segment_size, dtype)


def _check(
    rows: torch.Tensor,
    indices: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    bits: int,
    columns: int,
    segment_size: int = 0,
) -> None:
    check_dtype(_OP, "rows", rows, (torch.int32, torch.int64))
    stored = _stored(indices, codebooks, scales, bits, columns, segment_size)
    check_stored(_OP, stored, beside=rows)


def _check_rows(op: str, rows: torch.Tensor, count: int) -> None:
    """Kernels trust rows: one that is not there would be read outside the matrix."""
    if not rows.is_cpu or not rows.numel():
        return
    low, high = (int(v) for v in rows.aminmax())
    if low < 0 or high >= count:
        raise InputError(
            f"rows holds {low if low < 0 else high}, but there are rows 0..{count - 1}",
            where=f"torch.ops.lutcc.{op}",
            fix="pass row numbers that exist",
        )


def _fake(
    rows: torch.Tensor,
    indices: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    bits: int,
    columns: int,
    segment_size: int = 0,
) -> torch.Tensor:
    stored = _stored(indices, codebooks, scales, bits, columns, segment_size)
    return codebooks.new_empty((*rows.shape, columns), dtype=stored.dtype)


def _cpu(
    rows: torch.Tensor,
    indices: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    bits: int,
    columns: int,
    segment_size: int = 0,
) -> torch.Tensor:
    _check_rows(_OP, rows, len(indices))
    stored = _stored(indices, codebooks, scales, bits, columns, segment_size)
    flat = rows.reshape(-1)

    def torch_way() -> torch.Tensor:
        return _look_up(flat.long(), stored)

    if is_recorded() or stored.dtype is torch.float64:
        y = torch_way()
    else:
        tables = (indices, codebooks, scales)
        y = run(
            _OP,
            flat.to(torch.int32),
            tables,
            {"bits": int(bits), "segment_size": int(segment_size), "columns": int(columns)},
            torch_way=torch_way,
            kept_as={i: "float32" for i, t in enumerate(tables) if t.dtype is torch.bfloat16},
        )
    return y.reshape(*rows.shape, columns)


def _look_up(rows: torch.Tensor, stored: Stored) -> torch.Tensor:
    out = stored.codebooks.new_empty((len(rows), stored.columns), dtype=stored.dtype)
    for piece in stored.pieces(len(rows)):
        out[piece] = stored.weights(rows[piece])
    return out


def _cuda(
    rows: torch.Tensor,
    indices: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    bits: int,
    columns: int,
    segment_size: int = 0,
) -> torch.Tensor:
    stored = _stored(indices, codebooks, scales, bits, columns, segment_size)
    flat = rows.reshape(-1)
    if stored.dtype is torch.float64:
        y = _look_up(flat.long(), stored)
    else:
        y = launcher(_OP)(flat, indices, codebooks, scales, bits, columns, segment_size)
    return y.reshape(*rows.shape, columns)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    rows, indices, codebooks, scales, *ctx.sizes = inputs
    ctx.save_for_backward(rows, indices, codebooks, scales)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    dcodebooks, dscales = torch.ops.lutcc.codebook_dequantize_backward(
        grad, *ctx.saved_tensors, *ctx.sizes
    )
    return (
        None,
        None,
        dcodebooks if ctx.needs_input_grad[2] else None,
        dscales if ctx.needs_input_grad[3] else None,
        None,
        None,
        None,
    )


define(
    "codebook_dequantize(Tensor rows, Tensor indices, Tensor codebooks, Tensor scales, int bits, "
    "int columns, int segment_size=0) -> Tensor",
    check=_check,
    cpu=_cpu,
    fake=_fake,
    backward=_backward,
    setup=_setup,
    cuda=_cuda,
)


def _grad_check(
    grad: torch.Tensor,
    rows: torch.Tensor,
    indices: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    bits: int,
    columns: int,
    segment_size: int,
) -> None:
    op = "codebook_dequantize_backward"
    check_dtype(op, "rows", rows, (torch.int32, torch.int64))
    stored = _stored(indices, codebooks, scales, bits, columns, segment_size)
    check_stored(op, stored, beside=rows)
    shape = (*rows.shape, columns)
    require(
        grad.dtype is stored.dtype and tuple(grad.shape) == shape,
        op,
        f"grad must be {stored.dtype} of shape {shape}, got {grad.dtype} of shape "
        f"{tuple(grad.shape)}",
        "pass the gradient of codebook_dequantize's result",
    )


def _grad_fake(
    grad: torch.Tensor,
    rows: torch.Tensor,
    indices: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    bits: int,
    columns: int,
    segment_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    return codebooks.new_empty(codebooks.shape), scales.new_empty(scales.shape)


def _grad_run(
    grad: torch.Tensor,
    rows: torch.Tensor,
    indices: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    bits: int,
    columns: int,
    segment_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    _check_rows("codebook_dequantize_backward", rows, len(indices))
    stored = _stored(indices, codebooks, scales, bits, columns, segment_size)
    flat, grads = rows.reshape(-1).long(), grad.reshape(-1, columns)
    dcodebooks, dscales = (grads.new_zeros(t.shape) for t in (codebooks, scales))
    for piece in stored.pieces(len(flat)):
        stored.add_gradients(flat[piece], grads[piece], dcodebooks, dscales)
    return dcodebooks.to(codebooks.dtype), dscales.to(scales.dtype)


def _grad_cuda(grad: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    way = _grad_run if grad.dtype is torch.float64 else launcher("codebook_dequantize_backward")
    return way(grad, *rest)


define(
    "codebook_dequantize_backward(Tensor grad, Tensor rows, Tensor indices, Tensor codebooks, "
    "Tensor scales, int bits, int columns, int segment_size) -> (Tensor, Tensor)",
    check=_grad_check,
    cpu=_grad_run,
    fake=_grad_fake,
    backward=once,
    setup=saves_nothing,
    cuda=_grad_cuda,
)
