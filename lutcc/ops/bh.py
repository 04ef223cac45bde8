"""One stage of a BH projection as one operator, which a GPU does in one pass over memory."""

from __future__ import annotations

from typing import Any

import torch

from lutcc.ir.ops.hadamard import padded_size
from lutcc.ops.arithmetic import floats
from lutcc.ops.block_diagonal import check_blocks
from lutcc.ops.checks import require
from lutcc.ops.library import cast_to, define, once, saves_nothing

_OP = "bh_stage"


def bh_stage(
    x: torch.Tensor, blocks: torch.Tensor, scale: float, columns: int | None = None
) -> torch.Tensor:
    """Return ``block_diagonal_matmul(hadamard(x, scale), blocks, columns)``.

    For training on a GPU, where both are one kernel for 16-bit types. The IR, and so the compiler
    and :func:`torch.export`, knows the two operators only.

    Parameters
    ----------
    x
        (..., D) of a floating-point dtype.
    blocks
        (G, P, Q) with G * P the power of two not below D; dtype of x, or bfloat16 beside float32.
    scale
        Of the transform.
    columns
        How many columns are computed; G*Q if None.

    Returns
    -------
    torch.Tensor
        (..., columns), dtype of x. Differentiable.

    Raises
    ------
    InputError
        When shapes or dtypes do not fit.

    Notes
    -----
    Source: Zeng et al., LookupFFN, equation 11.

    Examples
    --------
    >>> blocks = torch.tensor([[[2.0]], [[3.0]]])
    >>> bh_stage(torch.tensor([[1.0, 10.0]]), blocks, 1.0).tolist()
    [[22.0, -27.0]]
    """
    return torch.ops.lutcc.bh_stage(x, blocks, scale, columns)[0]


def _check(x: torch.Tensor, blocks: torch.Tensor, scale: float, columns: int | None = None) -> None:
    del scale
    check_blocks(_OP, x, blocks)
    groups, height, width = blocks.shape
    require(
        x.ndim >= 1 and x.shape[-1] >= 1 and padded_size(int(x.shape[-1])) == groups * height,
        _OP,
        f"x {tuple(x.shape)} is padded to a power of two, which G * P = {groups} * {height} = "
        f"{groups * height} must be",
        "pass blocks for that many columns",
    )
    require(
        columns is None or 1 <= columns <= groups * width,
        _OP,
        f"columns={columns} is not in 1..G * Q = {groups} * {width} = {groups * width}",
        "leave columns out to get them all",
    )


def _fake(
    x: torch.Tensor, blocks: torch.Tensor, scale: float, columns: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    groups, height, width = blocks.shape
    kept = groups * width if columns is None else columns
    rows = x.shape[:-1]
    return x.new_empty((*rows, kept)), x.new_empty((*rows, groups * height))


def _cpu(
    x: torch.Tensor, blocks: torch.Tensor, scale: float, columns: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    mixed = torch.ops.lutcc.hadamard(x, scale)
    return torch.ops.lutcc.block_diagonal_matmul(mixed, blocks, columns), mixed


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, blocks, ctx.scale, _ = inputs
    ctx.columns_in = x.shape[-1]
    ctx.save_for_backward(output[1], blocks)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
    mixed, blocks = ctx.saved_tensors
    dx, dblocks = torch.ops.lutcc.bh_stage_backward(grad, mixed, blocks, ctx.scale, ctx.columns_in)
    return dx, dblocks, None, None


def _autocast(dtype: torch.dtype, args: Any) -> Any:
    x, blocks, *rest = args
    return cast_to(dtype, x), cast_to(dtype, blocks), *rest


define(
    "bh_stage(Tensor x, Tensor blocks, float scale, int? columns=None) -> (Tensor, Tensor)",
    check=_check,
    cpu=_cpu,
    fake=_fake,
    backward=_backward,
    setup=_setup,
    cuda=True,
    autocast=_autocast,
)


def _grad_check(
    grad: torch.Tensor, mixed: torch.Tensor, blocks: torch.Tensor, scale: float, columns_in: int
) -> None:
    del scale
    op = "bh_stage_backward"
    floats(op, "grad", grad)
    require(
        mixed.dtype is grad.dtype,
        op,
        f"grad is {grad.dtype}, but mixed is {mixed.dtype}",
        f"grad.to({mixed.dtype})",
    )
    groups, height, width = blocks.shape
    require(
        grad.shape[:-1] == mixed.shape[:-1]
        and mixed.shape[-1] == groups * height
        and 1 <= grad.shape[-1] <= groups * width
        and 1 <= columns_in <= groups * height,
        op,
        f"grad {tuple(grad.shape)}, mixed {tuple(mixed.shape)} and columns_in={columns_in} do not "
        f"belong to blocks {tuple(blocks.shape)}",
        "pass what bh_stage returned, and was given",
    )


def _grad_fake(
    grad: torch.Tensor, mixed: torch.Tensor, blocks: torch.Tensor, scale: float, columns_in: int
) -> tuple[torch.Tensor, torch.Tensor]:
    return grad.new_empty((*grad.shape[:-1], columns_in)), blocks.new_empty(blocks.shape)


def _grad_cpu(
    grad: torch.Tensor, mixed: torch.Tensor, blocks: torch.Tensor, scale: float, columns_in: int
) -> tuple[torch.Tensor, torch.Tensor]:
    groups, _, width = blocks.shape
    whole = torch.nn.functional.pad(grad, (0, groups * width - grad.shape[-1]))
    dmixed = torch.ops.lutcc.block_diagonal_matmul(whole, blocks.transpose(1, 2))
    dblocks = torch.ops.lutcc.block_diagonal_matmul_weight_grad(mixed, whole, groups, width)
    dx = torch.ops.lutcc.hadamard(dmixed, scale)[..., :columns_in]
    return dx.contiguous(), dblocks.to(blocks.dtype)


define(
    "bh_stage_backward(Tensor grad, Tensor mixed, Tensor blocks, float scale, int columns_in) "
    "-> (Tensor, Tensor)",
    check=_grad_check,
    cpu=_grad_cpu,
    fake=_grad_fake,
    backward=once,
    setup=saves_nothing,
    cuda=True,
)
