"""Exact linear layers in float32, bfloat16 or int8, and their gradients."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch

from lutcc.ir.ops.codebook_matmul import MAX_INT8_COLUMNS
from lutcc.ops.arithmetic import FLOATS, floats, integer_product, quantize_rows, wide
from lutcc.ops.checks import check_bias, matrix, require
from lutcc.ops.codebook_tables import check_devices
from lutcc.ops.kernels import run
from lutcc.ops.library import cast_to, define, is_recorded

_OP = "dense"
COMPUTE = ("float32", "bfloat16", "int8")
LIMIT = 127
"""Integers are in -127 .. 127."""


def dense(
    x: torch.Tensor,
    weight: torch.Tensor,
    units: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    compute: str = "float32",
) -> torch.Tensor:
    """Apply a linear layer in one of three arithmetics.

    Parameters
    ----------
    x
        (..., K) float32, float64, float16 or bfloat16.
    weight
        (M, K), any of these dtypes (float64 only beside a float64 x); or int8 in -127 .. 127, for
        compute="int8".
    units
        (M,) float32, float16 or bfloat16: what the sum of each row of weights is multiplied with;
        None for ones. Integers need them.
    bias
        (M,), dtype of x (or float32, where x is of half precision); None for zeros.
    compute
        "float32"; "bfloat16": x and the weights are rounded to it; "int8": rows of x, and of
        weights in floats, are rounded to integers (symmetric, one scale a row), whose sums are
        exact, the same bits on every backend.

    Returns
    -------
    torch.Tensor
        (..., M), dtype of x: units * (x weight^T) + bias, summed in float32 at least.
        Differentiable in x, floating-point weights, units and bias: straight through the rounding,
        as if the product were one of floats.

    Raises
    ------
    InputError
        When shapes, dtypes or devices do not fit.

    Examples
    --------
    >>> x, weight = torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 1.0]])
    >>> dense(x, weight).tolist()
    [[1.0]]
    >>> dense(x, torch.tensor([[127, 42]], dtype=torch.int8), torch.ones(1), None, "int8").shape
    torch.Size([1, 1])
    """
    return torch.ops.lutcc.dense(x, weight, units, bias, compute)


def _check(
    x: torch.Tensor,
    weight: torch.Tensor,
    units: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    compute: str = "float32",
) -> None:
    floats(_OP, "x", x)
    matrix(_OP, "weight", weight, (*FLOATS, torch.int8))
    require(
        x.ndim >= 1 and x.shape[-1] == weight.shape[1] and weight.shape[1] >= 1,
        _OP,
        f"x of shape {tuple(x.shape)} does not fit weights of shape {tuple(weight.shape)}",
        "the last dimensions must be equal, and at least 1",
    )
    check_weights(_OP, x, weight, units, bias, compute)


def check_weights(
    op: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    units: torch.Tensor | None,
    bias: torch.Tensor | None,
    compute: str,
) -> None:
    """Raise InputError unless weights (M, ...) can be multiplied so, and units and bias fit."""
    require(
        compute in COMPUTE,
        op,
        f"compute={compute!r} is unknown",
        "use 'float32', 'bfloat16' or 'int8'",
    )
    integers = weight.dtype is torch.int8
    absent = " without units" if units is None else ""
    require(
        not integers or (compute == "int8" and units is not None),
        op,
        f"int8 weights cannot be used with compute={compute!r}{absent}",
        "pass compute='int8' and the units of the weights' rows",
    )
    require(
        weight.dtype is not torch.float64 or x.dtype is torch.float64,
        op,
        f"weight is float64, but x is {x.dtype}",
        "weight.float()",
    )
    require(
        compute != "int8" or math.prod(weight.shape[1:]) <= MAX_INT8_COLUMNS,
        op,
        f"K = {math.prod(weight.shape[1:])} columns may overflow the int32 sums of compute='int8'",
        "use compute='float32'",
    )
    if units is not None:
        floats(op, "units", units)
        require(
            units.ndim == 1 and units.shape[0] == weight.shape[0],
            op,
            f"units must be ({weight.shape[0]},), got {tuple(units.shape)}",
            "pass one number per output, or None",
        )
    check_bias(op, bias, weight.shape[0], x.dtype)
    check_devices(op, x, weight=weight, units=units, bias=bias)


def _fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    units: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    compute: str = "float32",
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _cpu(
    x: torch.Tensor,
    weight: torch.Tensor,
    units: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    compute: str = "float32",
) -> torch.Tensor:
    rounded_here = compute == "int8" and weight.dtype is not torch.int8
    if is_recorded() or rounded_here or x.dtype is torch.float64:
        return _torch(x, weight, units, bias, compute)
    ones, zeros = defaults(weight.shape[0])
    tables = (weight, ones if units is None else units, zeros if bias is None else bias)
    kept: dict[int, str] = {1: "float32", 2: "float32"}
    if weight.dtype is torch.float16:
        kept[0] = "float32"
    half = x.dtype is torch.bfloat16  # which kernels read and write themselves
    rows = x.reshape(-1, x.shape[-1]).to(x.dtype if half else torch.float32)
    y = run(
        _OP,
        rows,
        tables,
        {"compute": compute, "out_dtype": "bfloat16" if half else "float32"},
        torch_way=lambda: _torch(rows, weight, units, bias, compute),
        kept_as=kept,
    )
    return y.to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])


@lru_cache(maxsize=64)  # kernels know their tables by identity
def defaults(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the units and the bias of so many outputs that have none."""
    with torch.inference_mode(False):
        return torch.ones(rows), torch.zeros(rows)


def _torch(
    x: torch.Tensor,
    weight: torch.Tensor,
    units: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    compute: str = "float32",
) -> torch.Tensor:
    """Compute by torch's own products, on any device."""
    dtype = wide(x.dtype)
    rows = x.reshape(-1, x.shape[-1]).to(dtype)
    factor = None if units is None else units.to(dtype)
    if compute == "int8":
        q, unit = quantize_rows(rows.float(), LIMIT)
        if weight.dtype is torch.int8:
            integers = weight.float()
        else:
            integers, own = quantize_rows(weight.float(), LIMIT)
            factor = own[:, 0] if units is None else own[:, 0] * units.float()
        assert factor is not None
        y = integer_product(q, integers, LIMIT).float() * (unit * factor.float())
    else:
        w = weight.to(dtype)
        if compute == "bfloat16":
            rows, w = (t.to(torch.bfloat16).to(dtype) for t in (rows, w))
        y = rows @ w.t()
        y = y if factor is None else y * factor
    if bias is not None:
        y = y + bias.to(y.dtype)
    return y.to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, units, bias, _ = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, weight, units)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, weight, units = ctx.saved_tensors
    for_x, for_weight, for_units, for_bias = ctx.needs_input_grad[:4]
    dtype = wide(grad.dtype)
    rows, grads = (t.reshape(-1, t.shape[-1]).to(dtype) for t in (x, grad))
    w = weight.to(dtype)
    scaled = grads if units is None else grads * units.to(dtype)
    dx = dweight = dunits = dbias = None
    if for_x:
        dx = (scaled @ w).to(x.dtype).reshape(x.shape)
    if for_weight:
        dweight = (scaled.t() @ rows).to(weight.dtype)
    if for_units:
        assert units is not None
        dunits = (grads * (rows @ w.t())).sum(0).to(units.dtype)
    if for_bias:
        dbias = grads.sum(0).to(ctx.bias_dtype)
    return dx, dweight, dunits, dbias, None


def _autocast(dtype: torch.dtype, args: Any) -> Any:
    # the stored form stays what it is
    x, *rest = args
    return cast_to(dtype, x), *rest


define(
    "dense(Tensor x, Tensor weight, Tensor? units=None, Tensor? bias=None, "
    'str compute="float32") -> Tensor',
    check=_check,
    cpu=_cpu,
    fake=_fake,
    backward=_backward,
    setup=_setup,
    cuda=_torch,
    autocast=_autocast,
)
