"""Linear layers whose weights are indices into codebooks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from lutcc.ir.ops.codebook_matmul import MAX_INT8_COLUMNS
from lutcc.ops.arithmetic import wide
from lutcc.ops.checks import check_bias, require
from lutcc.ops.codebook_matmul_backward import codebook_matmul_backward
from lutcc.ops.codebook_products import check_operands, check_order, product, stored_weights
from lutcc.ops.codebook_tables import check_devices
from lutcc.ops.kernels import run
from lutcc.ops.library import cast_to, define, is_recorded, launcher

_OP = "codebook_matmul"
COMPUTE = ("float32", "bfloat16", "int8")


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
    check_operands(_OP, x, indices, codebooks, scales, order, bits, segment_size)
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


def _fake(x: torch.Tensor, indices: torch.Tensor, *rest: Any) -> torch.Tensor:
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
    stored = stored_weights(x, indices, codebooks, scales, bits, segment_size)
    rows = x.reshape(-1, x.shape[-1])

    def torch_way() -> torch.Tensor:
        check_order(_OP, order)
        return product(rows.to(stored.dtype), stored, order, bias, compute)

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
        stored = stored_weights(x, indices, codebooks, scales, bits, segment_size)
        y = product(rows, stored, order, bias, compute)
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
        dx, dcodebooks, dscales = codebook_matmul_backward(
            grad,
            x,
            indices,
            codebooks,
            scales,
            order,
            *ctx.sizes,
            for_x=for_x,
            for_tables=for_codebooks or for_scales,
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
