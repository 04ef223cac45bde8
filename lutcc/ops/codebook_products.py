"""Products with weights that are indices into codebooks, in terms of torch's own operators."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lutcc.errors import InputError
from lutcc.ir.codebooks import TABLE_LIMIT
from lutcc.ir.ops.codebook_matmul import is_permutation
from lutcc.ops.arithmetic import float_rows, integer_product, quantize_rows, wide
from lutcc.ops.checks import dtype as check_dtype
from lutcc.ops.checks import require
from lutcc.ops.codebook_tables import Stored, check_devices, check_stored
from lutcc.ops.kernels import as_array


def check_operands(
    op: str,
    x: torch.Tensor,
    indices: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    order: torch.Tensor | None,
    bits: int,
    segment_size: int,
) -> None:
    """Raise InputError unless x, the weights and the order of their rows fit one another."""
    float_rows(op, "x", x)
    stored = stored_weights(x, indices, codebooks, scales, bits, segment_size)
    check_stored(op, stored, beside=x)
    if order is None:
        return
    check_dtype(op, "order", order, (torch.int32,))
    require(
        order.ndim == 1 and order.shape[0] == indices.shape[0],
        op,
        f"order must be ({indices.shape[0]},), got {tuple(order.shape)}",
        "pass one output per row of indices, or None",
    )
    check_devices(op, x, order=order)


def check_order(op: str, order: torch.Tensor | None) -> None:
    """Raise InputError unless an order on the CPU is a permutation."""
    if order is not None and order.is_cpu and not is_permutation(as_array(order)):
        raise InputError(
            "order is not a permutation of the rows",
            where=f"torch.ops.lutcc.{op}",
            fix="pass the order that the weights were fitted with",
        )


def stored_weights(
    x: torch.Tensor,
    indices: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    bits: int,
    segment_size: int,
) -> Stored:
    """Return the weights that multiply x, in the dtype in which products with x are summed."""
    return Stored(indices, codebooks, scales, bits, x.shape[-1], segment_size, wide(x.dtype))


def product(
    x: torch.Tensor,
    stored: Stored,
    order: torch.Tensor | None,
    bias: torch.Tensor | None,
    compute: str,
) -> torch.Tensor:
    """Return (N, M) float32, or float64 for float64; x is in that dtype."""
    rows = len(stored.indices)
    out = x.new_empty((len(x), rows))
    bias = x.new_zeros((rows,)) if bias is None else bias
    multiply = _integers(x) if compute == "int8" else _floats(x, compute)
    for piece in stored.pieces():
        y = multiply(stored, piece).add_(bias[piece])
        if order is None:
            out[:, piece] = y
        else:
            out[:, order[piece].long()] = y.to(out.dtype)
    return out


def _floats(x: torch.Tensor, compute: str) -> Callable[[Stored, slice], torch.Tensor]:
    """Return what multiplies with some rows of a matrix, in x's dtype."""

    def rounded(t: torch.Tensor) -> torch.Tensor:
        return t.to(torch.bfloat16).to(t.dtype) if compute == "bfloat16" else t

    rows = rounded(x)
    return lambda stored, piece: rows @ rounded(stored.weights(piece)).t()


def _integers(x: torch.Tensor) -> Callable[[Stored, slice], torch.Tensor]:
    """Return what multiplies with some rows of a matrix, both as integers: float32."""
    q, unit = quantize_rows(x.to(torch.float32), 127)

    def multiply(stored: Stored, piece: slice) -> torch.Tensor:
        integers, units = quantize_rows(stored.tables(piece).to(torch.float32), TABLE_LIMIT)
        sums = integer_product(q, integers.gather(1, stored.places(piece)), TABLE_LIMIT)
        return sums.to(torch.float32).mul_(unit * units.t())

    return multiply
