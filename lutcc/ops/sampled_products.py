"""Products of the pairs that are taken, and their gradients."""

from __future__ import annotations

from typing import Any

import torch

from lutcc.ops.arithmetic import floats
from lutcc.ops.checks import check_bias, require
from lutcc.ops.kernels import Plan, input_plan
from lutcc.ops.library import cast_to, define, once, saves_nothing
from lutcc.ops.sampled_choice import Product, choose
from lutcc.ops.sampled_pairs import check_range, check_sample, product, taken
from lutcc.ops.sampled_scores import check_product, pairs_of

_OP = "sampled_matmul"
BACKWARDS = ("sampled", "unscaled", "exact")


def check_backward(op: str, backward: str) -> None:
    """Raise InputError unless this says how gradients are computed."""
    require(
        backward in BACKWARDS,
        op,
        f"backward={backward!r} is unknown",
        "use 'sampled', 'unscaled' or 'exact'",
    )


def _check(
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    indices: torch.Tensor,
    scales: torch.Tensor,
    group_size: int = 1,
    backward: str = "sampled",
) -> None:
    check_product(_OP, a, b, group_size)
    check_bias(_OP, bias, b.shape[1], a.dtype)
    check_sample(_OP, indices, scales)
    check_backward(_OP, backward)


def _fake(
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    indices: torch.Tensor,
    scales: torch.Tensor,
    group_size: int = 1,
    backward: str = "sampled",
) -> torch.Tensor:
    return a.new_empty((a.shape[0], b.shape[1]))


def _run(
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    indices: torch.Tensor,
    scales: torch.Tensor,
    group_size: int = 1,
    backward: str = "sampled",
) -> torch.Tensor:
    check_range(_OP, indices, scales, pairs_of(a.shape[1], group_size))
    operands = (a, b, bias, indices, scales, group_size)
    plan = _cpu_plan(a, b, group_size) if a.is_cpu else None
    return choose(Product(_OP, operands, _by_index_select, plan, _cpu_operands))


def _cpu_plan(a: torch.Tensor, b: torch.Tensor, group_size: int) -> Plan | None:
    """Return the plan of the kernel, whatever the rows and k are; None for other dtypes."""
    if a.dtype not in (torch.float32, torch.bfloat16) or not b.shape[1]:
        return None
    (columns, outputs), dtype = b.shape, str(a.dtype).removeprefix("torch.")
    slots = pairs_of(columns, group_size)
    inputs = (
        (dtype, (None, columns)),
        (dtype, (columns, outputs)),
        ("int32", (slots,)),
        ("float32", (slots,)),
        ("float32", (outputs,)),
    )
    return input_plan(_OP, (("group_size", group_size),), inputs)


def _cpu_operands(
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    indices: torch.Tensor,
    scales: torch.Tensor,
    group_size: int,
) -> tuple[torch.Tensor, ...]:
    """Return what the kernel takes: places for all pairs, so that one kernel serves every k."""
    missing = pairs_of(b.shape[0], group_size) - indices.shape[0]
    indices, scales = (torch.nn.functional.pad(t, (0, missing)) for t in (indices, scales))
    bias = scales.new_zeros((b.shape[1],)) if bias is None else bias.to(torch.float32)
    return a, b, indices, scales, bias


def _by_index_select(
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    indices: torch.Tensor,
    scales: torch.Tensor,
    group_size: int,
) -> torch.Tensor:
    chosen = taken(indices, scales, group_size, a.shape[1])
    return product(chosen.select(a, 1), chosen.scaled(b, 0), bias)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    a, b, bias, indices, scales, ctx.group_size, ctx.how = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(a, b, indices, scales)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    a, b, indices, scales = ctx.saved_tensors
    da = db = dbias = None
    if ctx.how == "exact":
        if ctx.needs_input_grad[0]:
            da = torch.ops.lutcc.sampled_dense_product(grad, b.t())
        if ctx.needs_input_grad[1]:
            db = weight_grad_like(b, a, grad)
    else:
        if ctx.how == "unscaled":
            scales = (scales != 0).to(scales.dtype)
        sample = (indices, scales, ctx.group_size)
        if ctx.needs_input_grad[0]:
            da = torch.ops.lutcc.sampled_matmul_input_grad(grad, b, *sample)
        if ctx.needs_input_grad[1] and _is_transposed(b):
            # the same product with the roles changed: the gradient then lies in memory as b does,
            # and autograd need not copy it
            db = torch.ops.lutcc.sampled_matmul_input_grad(grad.t(), a.t(), *sample).t()
        elif ctx.needs_input_grad[1]:
            db = torch.ops.lutcc.sampled_matmul_weight_grad(a, grad, *sample)
    if ctx.needs_input_grad[2]:
        dbias = bias_grad(grad, ctx.bias_dtype)
    return da, db, dbias, None, None, None, None


def _is_transposed(b: torch.Tensor) -> bool:
    return b.stride(0) < b.stride(1)


def weight_grad_like(b: torch.Tensor, a: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """Return ``a.t() @ grad``, which lies in memory as b does."""
    if _is_transposed(b):
        return torch.ops.lutcc.sampled_dense_product(grad.t(), a).t()
    return torch.ops.lutcc.sampled_dense_product(a.t(), grad)


def bias_grad(grad: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the sum of the rows, or of all but dimension 1, in the dtype of the bias."""
    dims = [d for d in range(grad.ndim) if d != 1]
    return grad.sum(dims, dtype=torch.promote_types(grad.dtype, torch.float32)).to(dtype)


def _autocast(dtype: torch.dtype, args: Any) -> Any:
    a, b, bias, *rest = args
    return cast_to(dtype, a), cast_to(dtype, b), cast_to(dtype, bias), *rest


define(
    "sampled_matmul(Tensor a, Tensor b, Tensor? bias, Tensor indices, Tensor scales, "
    'int group_size=1, str backward="sampled") -> Tensor',
    check=_check,
    cpu=_run,
    fake=_fake,
    backward=_backward,
    setup=_setup,
    cuda=_run,
    autocast=_autocast,
)


def _input_check(
    grad: torch.Tensor,
    b: torch.Tensor,
    indices: torch.Tensor,
    scales: torch.Tensor,
    group_size: int,
) -> None:
    op = "sampled_matmul_input_grad"
    _check_grad(op, grad, b, "b")
    check_sample(op, indices, scales)
    require(
        grad.shape[1] == b.shape[1] and group_size >= 1,
        op,
        f"grad {tuple(grad.shape)} does not belong to b {tuple(b.shape)}",
        "pass the gradient of sampled_matmul's result",
    )


def _check_grad(op: str, grad: torch.Tensor, other: torch.Tensor, name: str) -> None:
    """Check a gradient, or the first factor of a product, and what it is multiplied with."""
    floats(op, "grad", grad)
    require(
        grad.dtype is other.dtype,
        op,
        f"grad is {grad.dtype}, but {name} is {other.dtype}",
        f"grad.to({other.dtype})",
    )
    require(
        grad.ndim == 2 and other.ndim == 2,
        op,
        f"grad {tuple(grad.shape)} and {name} {tuple(other.shape)} must be matrices",
        "flatten the leading dimensions",
    )


def _input_fake(
    grad: torch.Tensor,
    b: torch.Tensor,
    indices: torch.Tensor,
    scales: torch.Tensor,
    group_size: int,
) -> torch.Tensor:
    return grad.new_empty((grad.shape[0], b.shape[0]))


def _input_run(
    grad: torch.Tensor,
    b: torch.Tensor,
    indices: torch.Tensor,
    scales: torch.Tensor,
    group_size: int,
) -> torch.Tensor:
    op = "sampled_matmul_input_grad"
    check_range(op, indices, scales, pairs_of(b.shape[0], group_size))
    operands = (grad, b, indices, scales, group_size)
    return choose(Product(op, operands, _input_by_index_select))


def _input_by_index_select(
    grad: torch.Tensor,
    b: torch.Tensor,
    indices: torch.Tensor,
    scales: torch.Tensor,
    group_size: int,
) -> torch.Tensor:
    chosen = taken(indices, scales, group_size, b.shape[0])
    return chosen.spread(product(grad, chosen.scaled(b, 0).t()), 1, b.shape[0])


define(
    "sampled_matmul_input_grad(Tensor grad, Tensor b, Tensor indices, Tensor scales, "
    "int group_size) -> Tensor",
    check=_input_check,
    cpu=_input_run,
    fake=_input_fake,
    backward=once,
    setup=saves_nothing,
    cuda=_input_run,
)


def _weight_check(
    a: torch.Tensor,
    grad: torch.Tensor,
    indices: torch.Tensor,
    scales: torch.Tensor,
    group_size: int,
) -> None:
    op = "sampled_matmul_weight_grad"
    _check_grad(op, grad, a, "a")
    check_sample(op, indices, scales)
    require(
        grad.shape[0] == a.shape[0] and group_size >= 1,
        op,
        f"grad {tuple(grad.shape)} does not belong to a {tuple(a.shape)}",
        "pass the gradient of sampled_matmul's result",
    )


def _weight_fake(
    a: torch.Tensor,
    grad: torch.Tensor,
    indices: torch.Tensor,
    scales: torch.Tensor,
    group_size: int,
) -> torch.Tensor:
    return a.new_empty((a.shape[1], grad.shape[1]))


def _weight_run(
    a: torch.Tensor,
    grad: torch.Tensor,
    indices: torch.Tensor,
    scales: torch.Tensor,
    group_size: int,
) -> torch.Tensor:
    op = "sampled_matmul_weight_grad"
    check_range(op, indices, scales, pairs_of(a.shape[1], group_size))
    operands = (a, grad, indices, scales, group_size)
    return choose(Product(op, operands, _weight_by_index_select))


def _weight_by_index_select(
    a: torch.Tensor,
    grad: torch.Tensor,
    indices: torch.Tensor,
    scales: torch.Tensor,
    group_size: int,
) -> torch.Tensor:
    chosen = taken(indices, scales, group_size, a.shape[1])
    parts = product(chosen.scaled(a, 1).t(), grad)
    return chosen.spread(parts, 0, a.shape[1])


define(
    "sampled_matmul_weight_grad(Tensor a, Tensor grad, Tensor indices, Tensor scales, "
    "int group_size) -> Tensor",
    check=_weight_check,
    cpu=_weight_run,
    fake=_weight_fake,
    backward=once,
    setup=saves_nothing,
    cuda=_weight_run,
)


def _dense_check(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    _check_grad("sampled_dense_product", a, b, "b")
    check_bias("sampled_dense_product", bias, b.shape[1], a.dtype)


def _dense_fake(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return a.new_empty((a.shape[0], b.shape[1]))


# All pairs: torch's product, but never the emulation of half precision that torch has for CPUs
# without it. An operator, so that this choice is made where it runs, not where it is traced.
define(
    "sampled_dense_product(Tensor a, Tensor b, Tensor? bias=None) -> Tensor",
    check=_dense_check,
    cpu=product,
    fake=_dense_fake,
    backward=once,
    setup=saves_nothing,
    cuda=product,
)
