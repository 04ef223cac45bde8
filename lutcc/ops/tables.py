"""Tables: codes to sums, sums to values."""

from __future__ import annotations

from typing import Any

import torch

from lutcc.errors import InputError
from lutcc.ops.checks import dtype as check_dtype
from lutcc.ops.checks import matrix, require
from lutcc.ops.kernels import run
from lutcc.ops.library import define, launcher


def lut_accumulate(
    codes: torch.Tensor, lut: torch.Tensor, accumulate: str = "exact", upcast_every: int = 16
) -> torch.Tensor:
    """Look up one table row per code and sum over the codebooks.

    Parameters
    ----------
    codes
        (N, C) uint8, below K.
    lut
        (C, K, M) uint8, int8 or float32.
    accumulate
        "exact", or "mean" (pairwise averages in groups of ``upcast_every``; uint8 tables).
    upcast_every
        Group size of "mean", a power of two in 2..256.

    Returns
    -------
    torch.Tensor
        (N, M) int32, float32 for float tables.

    Raises
    ------
    InputError
        When shapes, dtypes or codes do not fit.

    Notes
    -----
    Source: Blalock and Guttag, Multiplying matrices without multiplying, section 4.4.
    Differentiable in a float ``lut``.

    Examples
    --------
    >>> codes = torch.tensor([[1, 0]], dtype=torch.uint8)
    >>> lut_accumulate(codes, torch.tensor([[[1], [9]], [[4], [2]]], dtype=torch.uint8)).tolist()
    [[13]]
    """
    return torch.ops.lutcc.lut_accumulate(codes, lut, accumulate, upcast_every)


def _lut_accumulate_check(
    codes: torch.Tensor, lut: torch.Tensor, accumulate: str, upcast_every: int
) -> None:
    op = "lut_accumulate"
    matrix(op, "codes", codes, (torch.uint8,))
    check_dtype(op, "lut", lut, (torch.uint8, torch.int8, torch.float32))
    require(
        lut.ndim == 3 and lut.shape[0] == codes.shape[1],
        op,
        f"codes {tuple(codes.shape)} need a lut of shape ({codes.shape[1]}, K, M), got "
        f"{tuple(lut.shape)}",
        "pass codes and tables of the same number of codebooks",
    )
    require(
        accumulate in ("exact", "mean"),
        op,
        f"accumulate={accumulate!r} is unknown",
        "use 'exact' or 'mean'",
    )
    require(
        accumulate == "exact" or lut.dtype is torch.uint8,
        op,
        f"accumulate='mean' needs a uint8 lut, got {lut.dtype}",
        "use accumulate='exact', or quantise the tables to uint8",
    )
    require(
        upcast_every in (2, 4, 8, 16, 32, 64, 128, 256),
        op,
        f"upcast_every={upcast_every} is no power of two in 2..256",
        "use 2, 4, 8, ..., 256",
    )


def _lut_accumulate_fake(
    codes: torch.Tensor, lut: torch.Tensor, accumulate: str = "exact", upcast_every: int = 16
) -> torch.Tensor:
    _lut_accumulate_check(codes, lut, accumulate, upcast_every)
    dtype = torch.float32 if lut.dtype is torch.float32 else torch.int32
    return codes.new_empty((codes.shape[0], lut.shape[2]), dtype=dtype)


def _lut_accumulate_cpu(
    codes: torch.Tensor, lut: torch.Tensor, accumulate: str = "exact", upcast_every: int = 16
) -> torch.Tensor:
    _lut_accumulate_check(codes, lut, accumulate, upcast_every)
    entries = lut.shape[1]
    # Kernels trust codes; a code past its table would read past it.
    if entries < 256 and codes.numel() and int(codes.max()) >= entries:
        raise InputError(
            f"codes holds {int(codes.max())}, but lut has K = {entries} entries per codebook",
            where="torch.ops.lutcc.lut_accumulate",
            fix="pass the codes of the encoder that the tables were made for",
        )
    attrs = {"accumulate": accumulate, "upcast_every": int(upcast_every)}
    return run("lut_accumulate", codes, (lut,), attrs)


def _lut_accumulate_cuda(
    codes: torch.Tensor, lut: torch.Tensor, accumulate: str = "exact", upcast_every: int = 16
) -> torch.Tensor:
    # Whether codes are below K is not asked: that would wait for the GPU. None is followed.
    _lut_accumulate_check(codes, lut, accumulate, upcast_every)
    return launcher("lut_accumulate")(codes, lut, accumulate, upcast_every)


def _lut_accumulate_setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    codes, lut = inputs[0], inputs[1]
    ctx.save_for_backward(codes)
    ctx.shape = lut.shape


def _lut_accumulate_backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """Return the gradient of a float table: each entry gets those of the rows that took it."""
    if not ctx.needs_input_grad[1]:
        return None, None, None, None
    (codes,) = ctx.saved_tensors
    codebooks, entries, outputs = ctx.shape
    first = torch.arange(codebooks, device=codes.device) * entries
    index = (codes.long() + first).t().reshape(-1)
    rows = grad.unsqueeze(0).expand(codebooks, *grad.shape).reshape(-1, outputs)
    table = grad.new_zeros((codebooks * entries, outputs)).index_add(0, index, rows)
    return None, table.reshape(codebooks, entries, outputs), None, None


define(
    'lut_accumulate(Tensor codes, Tensor lut, str accumulate="exact", int upcast_every=16) '
    "-> Tensor",
    cpu=_lut_accumulate_cpu,
    cuda=_lut_accumulate_cuda,
    fake=_lut_accumulate_fake,
    backward=_lut_accumulate_backward,
    setup=_lut_accumulate_setup,
)


def lut_dequantize(
    acc: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, activation: str = "none"
) -> torch.Tensor:
    """Turn integer sums into float32: ``activation(fma(float32(acc), scale, offset))``.

    Parameters
    ----------
    acc
        (N, M) int32.
    scale, offset
        (M,) float32.
    activation
        "none" or "relu".

    Returns
    -------
    torch.Tensor
        (N, M) float32. Differentiable in scale and offset.

    Raises
    ------
    InputError
        When shapes or dtypes do not fit.

    Notes
    -----
    Source: Blalock and Guttag, Multiplying matrices without multiplying, section 4.4; papers/000
    equation 3.

    Examples
    --------
    >>> acc = torch.tensor([[3]], dtype=torch.int32)
    >>> lut_dequantize(acc, torch.tensor([0.5]), torch.tensor([1.0])).tolist()
    [[2.5]]
    """
    return torch.ops.lutcc.lut_dequantize(acc, scale, offset, activation)


def _lut_dequantize_check(
    acc: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, activation: str
) -> None:
    op = "lut_dequantize"
    matrix(op, "acc", acc, (torch.int32,))
    for name, vector in (("scale", scale), ("offset", offset)):
        check_dtype(op, name, vector, (torch.float32,))
        require(
            vector.ndim == 1 and vector.shape[0] == acc.shape[1],
            op,
            f"{name} must be ({acc.shape[1]},) like the columns of acc, got {tuple(vector.shape)}",
            f"pass one {name} per output",
        )
    require(
        activation in ("none", "relu"),
        op,
        f"activation={activation!r} is unknown",
        "use 'none' or 'relu'",
    )


def _lut_dequantize_fake(
    acc: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, activation: str = "none"
) -> torch.Tensor:
    _lut_dequantize_check(acc, scale, offset, activation)
    return acc.new_empty(tuple(acc.shape), dtype=torch.float32)


def _lut_dequantize_cpu(
    acc: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, activation: str = "none"
) -> torch.Tensor:
    _lut_dequantize_check(acc, scale, offset, activation)
    return run("lut_dequantize", acc, (scale, offset), {"activation": activation})


def _lut_dequantize_cuda(
    acc: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, activation: str = "none"
) -> torch.Tensor:
    _lut_dequantize_check(acc, scale, offset, activation)
    return launcher("lut_dequantize")(acc, scale, offset, activation)


def _lut_dequantize_setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    acc, _, _, activation = inputs
    ctx.relu = activation == "relu"
    ctx.save_for_backward(acc, *((output,) if ctx.relu else ()))


def _lut_dequantize_backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    acc, *rest = ctx.saved_tensors
    if ctx.relu:
        grad = torch.where(rest[0] > 0, grad, torch.zeros_like(grad))
    scale = (grad * acc.to(grad.dtype)).sum(0) if ctx.needs_input_grad[1] else None
    offset = grad.sum(0) if ctx.needs_input_grad[2] else None
    return None, scale, offset, None


define(
    'lut_dequantize(Tensor acc, Tensor scale, Tensor offset, str activation="none") -> Tensor',
    cpu=_lut_dequantize_cpu,
    cuda=_lut_dequantize_cuda,
    fake=_lut_dequantize_fake,
    backward=_lut_dequantize_backward,
    setup=_lut_dequantize_setup,
)
