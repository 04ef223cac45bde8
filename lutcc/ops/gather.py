"""Weighted sums of table rows, and their gradients."""

from __future__ import annotations

from typing import Any

import torch

from lutcc.errors import InputError
from lutcc.ops.arithmetic import FLOATS, floats
from lutcc.ops.checks import dtype as check_dtype
from lutcc.ops.checks import require
from lutcc.ops.gather_cpu import float_sums, integer_sums, score_grad, table_grad
from lutcc.ops.kernels import run
from lutcc.ops.library import cast_to, define, is_recorded, once, saves_nothing

_OP = "weighted_gather"
_SCORE_DTYPES = ("float32", "bfloat16")


def weighted_gather(
    codes: torch.Tensor, scores: torch.Tensor, tables: torch.Tensor, score_dtype: str = "float32"
) -> torch.Tensor:
    """Sum one table row per code, each times its score.

    Parameters
    ----------
    codes
        (..., H*J) int32, below K.
    scores
        (..., H*J) float32, float64, float16 or bfloat16.
    tables
        (H, K, M), dtype of the scores; or bfloat16, float16 or int8 beside float32 scores; or int8
        beside those of half precision.
    score_dtype
        "bfloat16" rounds the scores to bfloat16 first; "float32" leaves them. Not for int8 tables.

    Returns
    -------
    torch.Tensor
        (..., M), dtype of the scores: y[..., m] = sum over e of scores[..., e] * tables[e // J,
        codes[..., e], m], summed in float32 at least. With int8 tables each row's scores are
        rounded to 8 bits and the sum is exact in integers, the same bits on every backend.
        Differentiable in scores and float tables.

    Raises
    ------
    InputError
        When shapes or dtypes do not fit, or a code is outside its table.

    Notes
    -----
    Source: Zeng et al., LookupFFN, equations 4 and 7.

    Examples
    --------
    >>> codes, scores = torch.tensor([[1]], dtype=torch.int32), torch.tensor([[0.5]])
    >>> weighted_gather(codes, scores, torch.tensor([[[1.0], [6.0]]])).tolist()
    [[3.0]]
    """
    return torch.ops.lutcc.weighted_gather(codes, scores, tables, score_dtype)


def _check(
    codes: torch.Tensor, scores: torch.Tensor, tables: torch.Tensor, score_dtype: str = "float32"
) -> None:
    _check_operands(_OP, codes, scores, tables)
    require(
        score_dtype in _SCORE_DTYPES,
        _OP,
        f"score_dtype={score_dtype!r} is unknown",
        "use 'float32' or 'bfloat16'",
    )
    require(
        score_dtype == "float32" or tables.dtype is not torch.int8,
        _OP,
        f"score_dtype={score_dtype!r} is not for int8 tables, whose scores are quantised from "
        "float32",
        "leave score_dtype out",
    )


def _check_operands(
    op: str, codes: torch.Tensor, scores: torch.Tensor, tables: torch.Tensor
) -> None:
    check_dtype(op, "codes", codes, (torch.int32,))
    floats(op, "scores", scores)
    check_dtype(op, "tables", tables, (*FLOATS, torch.int8))
    narrow = (torch.bfloat16, torch.float16, torch.int8)
    require(
        tables.dtype is scores.dtype
        or (scores.dtype is torch.float32 and tables.dtype in narrow)
        or (scores.dtype is not torch.float64 and tables.dtype is torch.int8),
        op,
        f"scores are {scores.dtype}, but tables are {tables.dtype}",
        f"tables.to({scores.dtype})",
    )
    require(
        tables.ndim == 3 and all(size >= 1 for size in tables.shape),
        op,
        f"tables must be (tables, entries, outputs), none of them 0, got {tuple(tables.shape)}",
        "pass one table as tables[None]",
    )
    require(
        codes.ndim >= 1 and codes.shape == scores.shape,
        op,
        f"codes {tuple(codes.shape)} and scores {tuple(scores.shape)} differ in shape",
        "pass both results of sign_hash",
    )
    require(
        codes.shape[-1] >= 1 and codes.shape[-1] % tables.shape[0] == 0,
        op,
        f"codes {tuple(codes.shape)} have no equal share of columns for each of the "
        f"{tables.shape[0]} tables {tuple(tables.shape)}",
        "pass num_tables * neighbors columns",
    )
    require(
        tables.dtype is not torch.int8 or codes.shape[-1] * 127 * 128 < 2**31,
        op,
        f"the sum of {codes.shape[-1]} rows of int8 tables may leave int32",
        "use float tables, or fewer",
    )


def _check_codes(op: str, codes: torch.Tensor, entries: int) -> None:
    """Kernels trust codes: one outside its table would read outside it."""
    if not codes.numel():
        return
    low, high = (int(v) for v in codes.aminmax())
    if low < 0 or high >= entries:
        raise InputError(
            f"codes holds {low if low < 0 else high}, but tables has K = {entries} entries",
            where=f"torch.ops.lutcc.{op}",
            fix="pass the codes of sign_hash with 2**code_length = K",
        )


def _fake(
    codes: torch.Tensor, scores: torch.Tensor, tables: torch.Tensor, score_dtype: str = "float32"
) -> torch.Tensor:
    return scores.new_empty((*codes.shape[:-1], tables.shape[2]))


def _cpu(
    codes: torch.Tensor, scores: torch.Tensor, tables: torch.Tensor, score_dtype: str = "float32"
) -> torch.Tensor:
    _check_codes(_OP, codes, tables.shape[1])
    flat = codes.reshape(-1, codes.shape[-1])
    weights = scores.reshape(-1, scores.shape[-1])

    def torch_way() -> torch.Tensor:
        if tables.dtype is torch.int8:
            return integer_sums(flat, weights, tables)
        rounded = weights.to(torch.bfloat16) if score_dtype == "bfloat16" else weights
        return float_sums(flat, rounded.to(weights.dtype), tables)

    if _has_kernel(scores, tables) and not is_recorded():
        attrs = {"score_dtype": score_dtype}
        y = run(_OP, (flat, weights), (tables,), attrs, torch_way=torch_way)
    else:
        y = torch_way()
    return y.reshape(*codes.shape[:-1], tables.shape[2])


def _has_kernel(scores: torch.Tensor, tables: torch.Tensor) -> bool:
    return scores.dtype is torch.float32 and tables.dtype is not torch.float16


def _setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    codes, scores, tables, ctx.score_dtype = inputs
    ctx.save_for_backward(codes, scores, tables)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    codes, scores, tables = ctx.saved_tensors
    # int8 tables, and rounded scores: the gradient of the unrounded product (straight through)
    dscores, dtables = torch.ops.lutcc.weighted_gather_backward(
        grad, codes, scores, tables, _state["deterministic"]
    )
    return (
        None,
        dscores if ctx.needs_input_grad[1] else None,
        dtables if ctx.needs_input_grad[2] else None,
        None,
    )


def _autocast(dtype: torch.dtype, args: Any) -> Any:
    codes, scores, tables, *rest = args
    if tables.dtype is torch.int8:
        return codes, cast_to(torch.float32, scores), tables, *rest
    return codes, cast_to(dtype, scores), cast_to(dtype, tables), *rest


define(
    "weighted_gather(Tensor codes, Tensor scores, Tensor tables, "
    'str score_dtype="float32") -> Tensor',
    check=_check,
    cpu=_cpu,
    fake=_fake,
    backward=_backward,
    setup=_setup,
    cuda=True,
    autocast=_autocast,
)

_state = {"deterministic": True}


def set_deterministic_gradients(enabled: bool) -> None:
    """Say whether the tables' gradient on a GPU is summed in a fixed order (the default).

    Otherwise atomic additions sum it, in an order that changes from run to run. On the CPU the
    order is always fixed.

    Examples
    --------
    >>> import lutcc
    >>> lutcc.ops.set_deterministic_gradients(True)
    """
    _state["deterministic"] = bool(enabled)


def _grad_check(
    grad: torch.Tensor,
    codes: torch.Tensor,
    scores: torch.Tensor,
    tables: torch.Tensor,
    deterministic: bool = True,
) -> None:
    op = "weighted_gather_backward"
    _check_operands(op, codes, scores, tables)
    shape = (*codes.shape[:-1], tables.shape[2])
    require(
        grad.dtype is scores.dtype and tuple(grad.shape) == shape,
        op,
        f"grad must be {scores.dtype} of shape {shape}, got {grad.dtype} of shape "
        f"{tuple(grad.shape)}",
        "pass the gradient of weighted_gather's result",
    )


def _grad_fake(
    grad: torch.Tensor,
    codes: torch.Tensor,
    scores: torch.Tensor,
    tables: torch.Tensor,
    deterministic: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = tables.shape if tables.is_floating_point() else (0,)
    return scores.new_empty(scores.shape), grad.new_empty(shape, dtype=_table_dtype(tables, grad))


def _grad_cpu(
    grad: torch.Tensor,
    codes: torch.Tensor,
    scores: torch.Tensor,
    tables: torch.Tensor,
    deterministic: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    _check_codes("weighted_gather_backward", codes, tables.shape[1])
    flat = codes.reshape(-1, codes.shape[-1])
    weights = scores.reshape(-1, scores.shape[-1])
    rows = grad.reshape(-1, grad.shape[-1])
    dscores = score_grad(rows, flat, tables).to(scores.dtype).reshape(scores.shape)
    if not tables.is_floating_point():
        return dscores, grad.new_empty((0,))
    dtables = table_grad(rows, flat, weights, tables.shape)
    return dscores, dtables.to(tables.dtype)


def _table_dtype(tables: torch.Tensor, grad: torch.Tensor) -> torch.dtype:
    return tables.dtype if tables.is_floating_point() else grad.dtype


define(
    "weighted_gather_backward(Tensor grad, Tensor codes, Tensor scores, Tensor tables, "
    "bool deterministic=True) -> (Tensor, Tensor)",
    check=_grad_check,
    cpu=_grad_cpu,
    fake=_grad_fake,
    backward=once,
    setup=saves_nothing,
    cuda=True,
)
