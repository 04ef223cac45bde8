"""Products with sparse matrices, added to what is there, and their gradients."""

from __future__ import annotations

from typing import Any

import torch

from lutcc.errors import InputError
from lutcc.ir.ops.sparse_add import problem
from lutcc.ops.arithmetic import FLOATS, floats, row_chunks, wide
from lutcc.ops.checks import dtype as check_dtype
from lutcc.ops.checks import require
from lutcc.ops.codebook_tables import check_devices
from lutcc.ops.kernels import as_array, run
from lutcc.ops.library import cast_to, define, is_recorded, launcher, once, saves_nothing

_OP = "sparse_add"


def sparse_add(
    base: torch.Tensor,
    x: torch.Tensor,
    starts: torch.Tensor,
    columns: torch.Tensor,
    values: torch.Tensor,
) -> torch.Tensor:
    """Add the product with a sparse matrix: weights that no codebook holds.

    Parameters
    ----------
    base
        (..., M) float32, float64, float16 or bfloat16: what is added to.
    x
        (..., K), dtype of base.
    starts
        (M + 1,) int32: where the values of each output begin, compressed by rows.
    columns
        (Z,) int32: the column of x of each value.
    values
        (Z,), any of these dtypes; float64 only beside a float64 base.

    Returns
    -------
    torch.Tensor
        (..., M), dtype of base: y[..., m] = base[..., m] + sum over z from starts[m] to starts[m +
        1] - 1 of x[..., columns[z]] * values[z], summed in float32 at least. Differentiable in
        base, x and values.

    Raises
    ------
    InputError
        When shapes, dtypes or devices do not fit, or starts and columns are no sparse matrix (on
        the CPU; on a GPU they are not looked at).

    Notes
    -----
    Source: Yvinec et al., REx, as in JLCM, section 4.3.

    Examples
    --------
    >>> starts, columns = torch.tensor([0, 0, 1]).int(), torch.tensor([1]).int()
    >>> x, values = torch.tensor([[5.0, 7.0]]), torch.tensor([2.0])
    >>> sparse_add(torch.ones(1, 2), x, starts, columns, values).tolist()
    [[1.0, 15.0]]
    """
    return torch.ops.lutcc.sparse_add(base, x, starts, columns, values)


def _check(
    base: torch.Tensor,
    x: torch.Tensor,
    starts: torch.Tensor,
    columns: torch.Tensor,
    values: torch.Tensor,
) -> None:
    _check_operands(_OP, "base", base, x, starts, columns, values)


def _check_operands(
    op: str,
    name: str,
    base: torch.Tensor,
    x: torch.Tensor,
    starts: torch.Tensor,
    columns: torch.Tensor,
    values: torch.Tensor,
) -> None:
    floats(op, "x", x)
    require(
        base.dtype is x.dtype,
        op,
        f"{name} is {base.dtype}, but x is {x.dtype}",
        f"{name}.to({x.dtype})",
    )
    check_dtype(op, "values", values, FLOATS)
    require(
        values.dtype is not torch.float64 or x.dtype is torch.float64,
        op,
        f"values are float64, beside {x.dtype}",
        "values.to(torch.float32)",
    )
    require(
        x.ndim >= 1
        and base.ndim == x.ndim
        and base.shape[:-1] == x.shape[:-1]
        and x.shape[-1] >= 1
        and base.shape[-1] >= 1,
        op,
        f"{name} {tuple(base.shape)} and x {tuple(x.shape)} must be (..., M) and (..., K)",
        "pass as many rows of each",
    )
    for what, tensor in (("starts", starts), ("columns", columns)):
        check_dtype(op, what, tensor, (torch.int32,))
    require(
        starts.ndim == 1 and starts.shape[0] == base.shape[-1] + 1,
        op,
        f"starts must be ({base.shape[-1] + 1},), one more than the outputs, got "
        f"{tuple(starts.shape)}",
        "pass a matrix compressed by rows",
    )
    require(
        columns.ndim == 1 and columns.shape == values.shape,
        op,
        f"columns {tuple(columns.shape)} and values {tuple(values.shape)} must be (Z,)",
        "pass one column per value",
    )
    check_devices(op, x, **{name: base, "starts": starts, "columns": columns, "values": values})


def _check_matrix(op: str, starts: torch.Tensor, columns: torch.Tensor, width: int) -> None:
    if not starts.is_cpu:
        return
    wrong = problem(as_array(starts), as_array(columns), width)
    if wrong is not None:
        raise InputError(
            wrong,
            where=f"torch.ops.lutcc.{op}",
            fix="pass a matrix compressed by rows, with as many columns as x",
        )


def _fake(
    base: torch.Tensor,
    x: torch.Tensor,
    starts: torch.Tensor,
    columns: torch.Tensor,
    values: torch.Tensor,
) -> torch.Tensor:
    return base.new_empty(base.shape)


def _cpu(
    base: torch.Tensor,
    x: torch.Tensor,
    starts: torch.Tensor,
    columns: torch.Tensor,
    values: torch.Tensor,
) -> torch.Tensor:
    dtype = wide(x.dtype)
    sums, rows = (t.reshape(-1, t.shape[-1]).to(dtype) for t in (base, x))

    def torch_way() -> torch.Tensor:
        _check_matrix(_OP, starts, columns, x.shape[-1])
        return _sums(sums, rows, starts, columns, values)

    if is_recorded() or dtype is torch.float64 or not values.numel():
        y = torch_way()
    else:
        y = run(
            _OP,
            (sums, rows),
            (starts, columns, values),
            {},
            torch_way=torch_way,
            kept_as={2: "float32"},
        )
    return y.to(base.dtype).reshape(base.shape)


def _sums(
    base: torch.Tensor,
    x: torch.Tensor,
    starts: torch.Tensor,
    columns: torch.Tensor,
    values: torch.Tensor,
) -> torch.Tensor:
    """Return (N, M): each output is a bag of x's columns, with weights."""
    parts = torch.nn.functional.embedding_bag(
        columns,
        x.t().contiguous(),
        starts,
        per_sample_weights=values.to(x.dtype),
        mode="sum",
        include_last_offset=True,
    )
    return base + parts.t()


def _cuda(
    base: torch.Tensor,
    x: torch.Tensor,
    starts: torch.Tensor,
    columns: torch.Tensor,
    values: torch.Tensor,
) -> torch.Tensor:
    sums, rows = (t.reshape(-1, t.shape[-1]) for t in (base, x))
    way = _sums if x.dtype is torch.float64 or not values.numel() else launcher(_OP)
    return way(sums, rows, starts, columns, values).reshape(base.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    for_base, for_x, for_values = (ctx.needs_input_grad[i] for i in (0, 1, 4))
    dx = dvalues = None
    if for_x or for_values:
        dx, dvalues = torch.ops.lutcc.sparse_add_backward(
            grad, *ctx.saved_tensors, for_x, for_values
        )
    return (
        grad if for_base else None,
        dx if for_x else None,
        None,
        None,
        dvalues if for_values else None,
    )


def _autocast(dtype: torch.dtype, args: Any) -> Any:
    base, x, *rest = args
    return cast_to(dtype, base), cast_to(dtype, x), *rest


define(
    "sparse_add(Tensor base, Tensor x, Tensor starts, Tensor columns, Tensor values) -> Tensor",
    check=_check,
    cpu=_cpu,
    fake=_fake,
    backward=_backward,
    setup=_setup,
    cuda=_cuda,
    autocast=_autocast,
)


def _grad_check(
    grad: torch.Tensor,
    x: torch.Tensor,
    starts: torch.Tensor,
    columns: torch.Tensor,
    values: torch.Tensor,
    for_x: bool,
    for_values: bool,
) -> None:
    _check_operands("sparse_add_backward", "grad", grad, x, starts, columns, values)


def _grad_fake(
    grad: torch.Tensor,
    x: torch.Tensor,
    starts: torch.Tensor,
    columns: torch.Tensor,
    values: torch.Tensor,
    for_x: bool,
    for_values: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        x.new_empty(x.shape if for_x else (0,)),
        values.new_empty(values.shape if for_values else (0,)),
    )


def _grad_run(
    grad: torch.Tensor,
    x: torch.Tensor,
    starts: torch.Tensor,
    columns: torch.Tensor,
    values: torch.Tensor,
    for_x: bool,
    for_values: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    _check_matrix("sparse_add_backward", starts, columns, x.shape[-1])
    dtype = wide(x.dtype)
    grads, rows = (t.reshape(-1, t.shape[-1]).to(dtype).t().contiguous() for t in (grad, x))
    counts = starts.diff().long()
    outputs = torch.arange(len(counts), device=x.device).repeat_interleave(counts)
    dx, dvalues = x.new_empty((0,)), values.new_empty((0,))
    if for_x:  # each column is a bag of the outputs that take it
        order = columns.argsort(stable=True)
        sizes = columns.bincount(minlength=x.shape[-1])
        bags = torch.nn.functional.embedding_bag(
            outputs[order],
            grads,
            sizes.cumsum(0) - sizes,
            per_sample_weights=values.to(dtype)[order],
            mode="sum",
        )
        dx = bags.t().to(x.dtype).reshape(x.shape)
    if for_values:
        sums = rows.new_empty(values.shape)
        for piece in row_chunks(len(values), max(1, rows.shape[1])):
            taken = rows.index_select(0, columns[piece])
            sums[piece] = taken.mul_(grads.index_select(0, outputs[piece])).sum(1)
        dvalues = sums.to(values.dtype)
    return dx, dvalues


def _grad_cuda(grad: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    way = _grad_run if grad.dtype is torch.float64 else launcher("sparse_add_backward")
    return way(grad, *rest)


define(
    "sparse_add_backward(Tensor grad, Tensor x, Tensor starts, Tensor columns, Tensor values, "
    "bool for_x, bool for_values) -> (Tensor, Tensor)",
    check=_grad_check,
    cpu=_grad_run,
    fake=_grad_fake,
    backward=once,
    setup=saves_nothing,
    cuda=_grad_cuda,
)
