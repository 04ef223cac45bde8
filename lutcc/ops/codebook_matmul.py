"""Linear layers whose weights are indices into codebooks, and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch

from lutcc.errors import InputError
from lutcc.ir.codebooks import TABLE_LIMIT
from lutcc.ir.ops.codebook_matmul import MAX_INT8_COLUMNS, is_permutation
from lutcc.ops.arithmetic import floats, quantize_rows, wide
from lutcc.ops.checks import dtype as check_dtype
from lutcc.ops.checks import require
from lutcc.ops.codebook_tables import Stored, check_devices, check_stored
from lutcc.ops.kernels import as_array, run
from lutcc.ops.library import cast_to, define, is_recorded, launcher, once, saves_nothing
from lutcc.ops.sampled_products import check_bias

_OP = "codebook_matmul"
COMPUTE = ("float32", "bfloat16", "int8")

_EXACT_COLUMNS = (1 << 24) // (127 * TABLE_LIMIT)
"""Columns of integers whose sum of products float32 holds exactly, in any order."""


def codebook_matmul(
    x: torch.Tensor,
    indices: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    order: torch.Tensor | None,
    bias: torch.Tensor | None,
    bits: int,
    segment_size: int = 0,
    compute: str = "float32",
) -> torch.Tensor:
    """Apply a linear layer whose weights are indices into codebooks.

    Parameters
    ----------
    x
        (..., K) float32, float64, float16 or bfloat16.
    indices
        (M, ceil(K * bits / 8)) uint8: packed, the lowest bit first.
    codebooks
        (G, 2**bits), any of these dtypes; float64 only beside a float64 x.
    scales
        (T,) like the codebooks; a single 1 where there are none.
    order
        (M,) int32, a permutation: the output of each row of indices; None if they are in order.
    bias
        (M,), dtype of x (or float32, where x is of half precision), of each row of indices; None
        for zeros.
    bits
        Bits of an index: 2, 3 or 4.
    segment_size
        Columns of a region, a multiple of 32, where there are more codebooks or scales than rows.
    compute
        "float32"; "bfloat16": x and the weights are rounded to it; "int8": both are rounded to
        integers, whose sums are exact, the same bits on every backend. While gradients are
        recorded it is always float32 (float64 for float64).

    Returns
    -------
    torch.Tensor
        (..., M), dtype of x: y[..., order[m]] = bias[m] + sum over k of x[..., k] * scales[t] *
        codebooks[g, index[m, k]], summed in float32 at least. Differentiable in x, codebooks,
        scales and bias.

    Raises
    ------
    InputError
        When shapes, dtypes or devices do not fit, or order is not a permutation (on the CPU; on a
        GPU it is not looked at).

    Notes
    -----
    Source: Yvinec et al., JLCM, equations 1, 2 and 4. Which regions of the matrix codebooks and
    scales belong to is said in :mod:`lutcc.ir.codebooks`.

    Examples
    --------
    >>> indices, one = torch.tensor([[57, 3]], dtype=torch.uint8), torch.ones(1)
    >>> codebooks = torch.tensor([[-1.0, 0.0, 1.0, 2.0]])
    >>> codebook_matmul(torch.eye(5), indices, codebooks, one, None, None, 2).T.tolist()
    [[0.0, 1.0, 2.0, -1.0, 2.0]]
    """
    return torch.ops.lutcc.codebook_matmul(
        x, indices, codebooks, scales, order, bias, bits, segment_size, compute
    )


def _check(
    x: torch.Tensor,
    indices: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    order: torch.Tensor | None,
    bias: torch.Tensor | None,
    bits: int,
    segment_size: int = 0,
    compute: str = "float32",
) -> None:
    _check_operands(_OP, x, indices, codebooks, scales, order, bits, segment_size)
    check_bias(_OP, bias, indices.shape[0], x.dtype)
    check_devices(_OP, x, bias=bias)
    require(
        compute in COMPUTE,
        _OP,
        f"compute={compute!r} is unknown",
        "use 'float32', 'bfloat16' or 'int8'",
    )
    require(
        compute != "int8" or x.shape[-1] <= MAX_INT8_COLUMNS,
        _OP,
        f"K = {x.shape[-1]} columns may overflow the int32 sums of compute='int8'",
        "use compute='float32'",
    )


def _check_operands(
    op: str,
    x: torch.Tensor,
    indices: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    order: torch.Tensor | None,
    bits: int,
    segment_size: int,
) -> None:
    floats(op, "x", x)
    require(
        x.ndim >= 1 and x.shape[-1] >= 1,
        op,
        f"x needs a last dimension of at least 1, got shape {tuple(x.shape)}",
        "pass rows with columns",
    )
    stored = _stored(x, indices, codebooks, scales, bits, segment_size)
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


def _stored(
    x: torch.Tensor,
    indices: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    bits: int,
    segment_size: int,
) -> Stored:
    return Stored(indices, codebooks, scales, bits, x.shape[-1], segment_size, wide(x.dtype))


def _fake(
    x: torch.Tensor,
    indices: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    order: torch.Tensor | None,
    bias: torch.Tensor | None,
    bits: int,
    segment_size: int = 0,
    compute: str = "float32",
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], indices.shape[0]))


def _cpu(
    x: torch.Tensor,
    indices: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    order: torch.Tensor | None,
    bias: torch.Tensor | None,
    bits: int,
    segment_size: int = 0,
    compute: str = "float32",
) -> torch.Tensor:
    stored = _stored(x, indices, codebooks, scales, bits, segment_size)
    rows = x.reshape(-1, x.shape[-1])

    def torch_way() -> torch.Tensor:
        _check_order(_OP, order)
        return _product(rows.to(stored.dtype), stored, order, bias, compute)

    if is_recorded() or x.dtype is torch.float64:
        y = torch_way()
    else:
        y = run(
            _OP,
            rows.to(torch.float32),
            (indices, codebooks, scales, *_order_and_bias(order, bias, len(indices))),
            {"bits": int(bits), "segment_size": int(segment_size), "compute": compute},
            torch_way=torch_way,
            kept_as=_kept_as(codebooks, scales, bias),
        )
    return y.to(x.dtype).reshape(*x.shape[:-1], len(indices))


def _order_and_bias(
    order: torch.Tensor | None, bias: torch.Tensor | None, rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    same, zeros = _defaults(rows)
    return same if order is None else order, zeros if bias is None else bias


@lru_cache(maxsize=64)  # kernels know their tables by identity
def _defaults(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode(False):
        return torch.arange(rows, dtype=torch.int32), torch.zeros(rows)


def _kept_as(
    codebooks: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None
) -> dict[int, str]:
    """Return the dtypes in kernels where they differ: the tables are of float32 or float16."""
    kept = {i: "float32" for i, t in ((1, codebooks), (2, scales)) if t.dtype is torch.bfloat16}
    return kept if bias is None else {**kept, 4: "float32"}


def _check_order(op: str, order: torch.Tensor | None) -> None:
    if order is not None and order.is_cpu and not is_permutation(as_array(order)):
        raise InputError(
            "order is not a permutation of the rows",
            where=f"torch.ops.lutcc.{op}",
            fix="pass the order that the weights were fitted with",
        )


def _product(
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
        sums = _integer_sums(q, integers.gather(1, stored.places(piece)))
        return sums.to(torch.float32).mul_(unit * units.t())

    return multiply


def _integer_sums(q: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return (N, M) int32: the product of integers, which float32 holds piece by piece."""
    sums = q.new_zeros((len(q), len(weights)), dtype=torch.int32)
    for start in range(0, q.shape[1], _EXACT_COLUMNS):
        piece = slice(start, start + _EXACT_COLUMNS)
        sums += (q[:, piece] @ weights[:, piece].t()).to(torch.int32)
    return sums


def _cuda(
    x: torch.Tensor,
    indices: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    order: torch.Tensor | None,
    bias: torch.Tensor | None,
    bits: int,
    segment_size: int = 0,
    compute: str = "float32",
) -> torch.Tensor:
    rows = x.reshape(-1, x.shape[-1])
    if x.dtype is torch.float64:
        stored = _stored(x, indices, codebooks, scales, bits, segment_size)
        y = _product(rows, stored, order, bias, compute)
    else:
        y = launcher(_OP)(
            rows, indices, codebooks, scales, order, bias, bits, segment_size, compute
        )
    return y.reshape(*x.shape[:-1], len(indices))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, indices, codebooks, scales, order, bias, *sizes, _ = inputs
    ctx.sizes = sizes
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, indices, codebooks, scales, order)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, indices, codebooks, scales, order = ctx.saved_tensors
    for_x, for_codebooks, for_scales, for_bias = (ctx.needs_input_grad[i] for i in (0, 2, 3, 5))
    dx = dcodebooks = dscales = dbias = None
    if for_x or for_codebooks or for_scales:
        dx, dcodebooks, dscales = torch.ops.lutcc.codebook_matmul_backward(
            grad,
            x,
            indices,
            codebooks,
            scales,
            order,
            *ctx.sizes,
            for_x,
            for_codebooks or for_scales,
        )
    if for_bias:
        sums = grad.flatten(0, -2).sum(0, dtype=wide(grad.dtype)) if grad.ndim > 1 else grad
        dbias = (sums if order is None else sums[order.long()]).to(ctx.bias_dtype)
    return (
        dx if for_x else None,
        None,
        dcodebooks if for_codebooks else None,
        dscales if for_scales else None,
        None,
        dbias,
        None,
        None,
        None,
    )


def _recorded(args: Sequence[Any]) -> Sequence[Any]:
    *args, _ = args
    return *args, "float32"


def _autocast(dtype: torch.dtype, args: Any) -> Any:
    # the stored form stays what it is, which no kernel computes in
    x, *rest = args
    return cast_to(dtype, x), *rest


define(
    "codebook_matmul(Tensor x, Tensor indices, Tensor codebooks, Tensor scales, Tensor? order, "
    'Tensor? bias, int bits, int segment_size=0, str compute="float32") -> Tensor',
    check=_check,
    cpu=_cpu,
    fake=_fake,
    backward=_backward,
    setup=_setup,
    cuda=_cuda,
    autocast=_autocast,
    recorded=_recorded,
)


def _grad_check(
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
    op = "codebook_matmul_backward"
    _check_operands(op, x, indices, codebooks, scales, order, bits, segment_size)
    shape = (*x.shape[:-1], indices.shape[0])
    require(
        grad.dtype is x.dtype and tuple(grad.shape) == shape,
        op,
        f"grad must be {x.dtype} of shape {shape}, got {grad.dtype} of shape {tuple(grad.shape)}",
        "pass the gradient of codebook_matmul's result",
    )
    check_devices(op, x, grad=grad)


def _grad_fake(
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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        x.new_empty(x.shape if for_x else (0,)),
        codebooks.new_empty(codebooks.shape if for_tables else (0,)),
        scales.new_empty(scales.shape if for_tables else (0,)),
    )


def _grad_run(
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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    _check_order("codebook_matmul_backward", order)
    stored = _stored(x, indices, codebooks, scales, bits, segment_size)
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


def _grad_cuda(grad: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    way = _grad_run if grad.dtype is torch.float64 else launcher("codebook_matmul_backward")
    return way(grad, *rest)


define(
    "codebook_matmul_backward(Tensor grad, Tensor x, Tensor indices, Tensor codebooks, "
    "Tensor scales, Tensor? order, int bits, int segment_size, bool for_x, bool for_tables) "
    "-> (Tensor, Tensor, Tensor)",
    check=_grad_check,
    cpu=_grad_run,
    fake=_grad_fake,
    backward=once,
    setup=saves_nothing,
    cuda=_grad_cuda,
)
