"""Products with block-diagonal matrices."""

from __future__ import annotations

from typing import Any

import torch

from lutcc.ops.arithmetic import floats, row_chunks, wide
from lutcc.ops.checks import require
from lutcc.ops.kernels import run
from lutcc.ops.library import cast_to, define, is_recorded, once, saves_nothing


def block_diagonal_matmul(
    x: torch.Tensor, blocks: torch.Tensor, columns: int | None = None
) -> torch.Tensor:
    """Multiply each group of columns by a block of its own.

    Parameters
    ----------
    x
        (..., G*P) float32, float64, float16 or bfloat16.
    blocks
        (G, P, Q), dtype of x; or bfloat16 beside a float32 x, which is rounded to bfloat16 first.
    columns
        How many columns are computed, from the first on; G*Q if None.

    Returns
    -------
    torch.Tensor
        (..., columns), dtype of x: y[..., g*Q + q] = sum over p of x[..., g*P + p] * blocks[g, p,
        q], summed in float32 at least. Differentiable.

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
    >>> block_diagonal_matmul(torch.tensor([[1.0, 10.0]]), blocks).tolist()
    [[2.0, 30.0]]
    """
    return torch.ops.lutcc.block_diagonal_matmul(x, blocks, columns)


_OP = "block_diagonal_matmul"


def check_blocks(op: str, x: torch.Tensor, blocks: torch.Tensor) -> None:
    """Raise InputError unless x and blocks are of dtypes that go together, and blocks three-dim."""
    floats(op, "x", x)
    floats(op, "blocks", blocks)
    require(
        blocks.dtype is x.dtype or (x.dtype, blocks.dtype) == (torch.float32, torch.bfloat16),
        op,
        f"x is {x.dtype}, but blocks are {blocks.dtype}",
        f"blocks.to({x.dtype})",
    )
    require(
        blocks.ndim == 3 and all(size >= 1 for size in blocks.shape),
        op,
        f"blocks must be (groups, rows, columns), none of them 0, got {tuple(blocks.shape)}",
        "pass one matrix per group: blocks[None] for a single one",
    )


def _check(x: torch.Tensor, blocks: torch.Tensor, columns: int | None = None) -> None:
    check_blocks(_OP, x, blocks)
    groups, height, width = blocks.shape
    require(
        x.ndim >= 1 and x.shape[-1] == groups * height,
        _OP,
        f"x {tuple(x.shape)} needs G * P = {groups} * {height} = {groups * height} columns",
        "pad x, or pass blocks for its columns",
    )
    require(
        columns is None or 1 <= columns <= groups * width,
        _OP,
        f"columns={columns} is not in 1..G * Q = {groups} * {width} = {groups * width}",
        "leave columns out to get them all",
    )


def _fake(x: torch.Tensor, blocks: torch.Tensor, columns: int | None = None) -> torch.Tensor:
    kept = blocks.shape[0] * blocks.shape[2] if columns is None else columns
    return x.new_empty((*x.shape[:-1], kept))


def _cpu(x: torch.Tensor, blocks: torch.Tensor, columns: int | None = None) -> torch.Tensor:
    kept = blocks.shape[0] * blocks.shape[2] if columns is None else int(columns)
    rows = x.reshape(-1, x.shape[-1])

    def torch_way() -> torch.Tensor:
        return _product(rows, blocks, kept)

    if x.dtype is torch.float32 and not is_recorded():
        attrs = {} if columns is None else {"columns": kept}
        y = run(_OP, rows, (blocks,), attrs, torch_way=torch_way)
    else:
        y = torch_way()
    return y.reshape(*x.shape[:-1], kept)


def _product(x: torch.Tensor, blocks: torch.Tensor, columns: int) -> torch.Tensor:
    height, width = blocks.shape[1:]
    groups = -(-columns // width)
    dtype = wide(x.dtype)
    rounded = blocks.dtype if blocks.dtype is not x.dtype else None
    blocks = blocks[:groups].to(dtype)
    out = x.new_empty((x.shape[0], columns))
    direct = out.dtype is dtype and columns == groups * width
    for piece in row_chunks(x.shape[0], max(x.shape[1], groups * width)):
        part = x[piece, : groups * height]
        if rounded is not None:
            part = part.to(rounded)
        part = part.to(dtype).reshape(-1, groups, height).transpose(0, 1)
        if direct:
            torch.bmm(part, blocks, out=out[piece].view(-1, groups, width).transpose(0, 1))
        else:
            products = torch.bmm(part, blocks).transpose(0, 1)
            out[piece] = products.reshape(-1, groups * width)[:, :columns]
    return out


def _setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, blocks, _ = inputs
    ctx.save_for_backward(x, blocks)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, blocks = ctx.saved_tensors
    groups, _, width = blocks.shape
    # a column that was not computed has no part in the result
    grad = torch.nn.functional.pad(grad, (0, groups * width - grad.shape[-1]))
    dx = dblocks = None
    if ctx.needs_input_grad[0]:
        dx = torch.ops.lutcc.block_diagonal_matmul(grad, blocks.transpose(1, 2))
    if ctx.needs_input_grad[1]:
        dblocks = torch.ops.lutcc.block_diagonal_matmul_weight_grad(x, grad, groups, width)
        dblocks = dblocks.to(blocks.dtype)
    return dx, dblocks, None


def _autocast(dtype: torch.dtype, args: Any) -> Any:
    x, blocks, *rest = args
    return cast_to(dtype, x), cast_to(dtype, blocks), *rest


define(
    "block_diagonal_matmul(Tensor x, Tensor blocks, int? columns=None) -> Tensor",
    check=_check,
    cpu=_cpu,
    fake=_fake,
    backward=_backward,
    setup=_setup,
    cuda=True,
    autocast=_autocast,
)


def _grad_check(x: torch.Tensor, grad: torch.Tensor, groups: int, q: int) -> None:
    op = "block_diagonal_matmul_weight_grad"
    floats(op, "x", x)
    require(
        grad.dtype is x.dtype,
        op,
        f"x is {x.dtype}, but grad is {grad.dtype}",
        f"grad.to({x.dtype})",
    )
    require(
        groups >= 1 and q >= 1,
        op,
        f"groups={groups} and q={q} must both be at least 1",
        "pass the sizes of the blocks",
    )
    require(
        x.ndim >= 1
        and x.shape[:-1] == grad.shape[:-1]
        and x.shape[-1] % groups == 0
        and grad.shape[-1] == groups * q,
        op,
        f"x {tuple(x.shape)} and grad {tuple(grad.shape)} do not belong to {groups} groups of {q} "
        "columns",
        "pass x as it was given to block_diagonal_matmul, and a gradient of groups * q columns",
    )


def _grad_fake(x: torch.Tensor, grad: torch.Tensor, groups: int, q: int) -> torch.Tensor:
    return x.new_empty((groups, x.shape[-1] // groups, q))


def _grad_cpu(x: torch.Tensor, grad: torch.Tensor, groups: int, q: int) -> torch.Tensor:
    dtype = wide(x.dtype)
    left = x.reshape(-1, groups, x.shape[-1] // groups).to(dtype).permute(1, 2, 0)
    right = grad.reshape(-1, groups, q).to(dtype).transpose(0, 1)
    return torch.bmm(left, right).to(x.dtype)


define(
    "block_diagonal_matmul_weight_grad(Tensor x, Tensor grad, int groups, int q) -> Tensor",
    check=_grad_check,
    cpu=_grad_cpu,
    fake=_grad_fake,
    backward=once,
    setup=saves_nothing,
    cuda=True,
)
