"""Scaled dot product attention over heads that lie side by side: what compiled models hold."""

from __future__ import annotations

from typing import Any

import torch

from lutcc.ops.checks import require
from lutcc.ops.library import define

_OP = "attention"
_RANKS = 4


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    heads: int = 1,
    kv_heads: int = 1,
    scale: float | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """Attend, with the heads of a token in one row.

    Parameters
    ----------
    query
        (N, S, heads * D).
    key, value
        (N, T, kv_heads * D) and (N, T, kv_heads * E).
    mask
        Broadcast to (N, heads, S, T): what is added to the scores, or uint8, 0 for a key that is
        not seen.
    heads, kv_heads
        Heads of queries, and of keys and values, a divisor of them.
    scale
        What products are multiplied with; D ** -0.5 if None.
    causal
        Query i sees no key after i.

    Returns
    -------
    torch.Tensor
        (N, S, heads * E): :func:`torch.nn.functional.scaled_dot_product_attention`, zeros for a
        query that sees no key. Differentiable.

    Raises
    ------
    InputError
        When shapes or dtypes do not fit.

    Examples
    --------
    >>> tokens = torch.ones(1, 3, 8)
    >>> attention(tokens, tokens, tokens, heads=2, kv_heads=2).shape
    torch.Size([1, 3, 8])
    """
    return torch.ops.lutcc.attention(query, key, value, mask, heads, kv_heads, scale, causal)


def _check(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    heads: int = 1,
    kv_heads: int = 1,
    scale: float | None = None,
    causal: bool = False,
) -> None:
    ranks = all(t.ndim == 3 for t in (query, key, value))
    require(ranks, _OP, "query, key and value must be (N, length, columns)", "reshape them")
    fits = heads >= 1 and kv_heads >= 1 and heads % kv_heads == 0
    require(
        fits
        and query.shape[2] % heads == 0
        and key.shape[2] % kv_heads == value.shape[2] % kv_heads == 0
        and query.shape[2] // heads == key.shape[2] // kv_heads,
        _OP,
        f"{query.shape[2]}, {key.shape[2]} and {value.shape[2]} columns do not make {heads} heads "
        f"and {kv_heads} of keys and values",
        "columns are heads times the width of a head; kv_heads divides heads",
    )
    require(
        mask is None or (mask.ndim == _RANKS and (mask.dtype in (query.dtype, torch.uint8))),
        _OP,
        "the mask must have 4 dimensions and the dtype of the query, or uint8",
        "mask[:, None, None, :].to(torch.uint8)",
    )


def _fake(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    heads: int = 1,
    kv_heads: int = 1,
    scale: float | None = None,
    causal: bool = False,
) -> torch.Tensor:
    columns = value.shape[2] // kv_heads * heads
    return query.new_empty((query.shape[0], query.shape[1], columns))


def _torch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    heads: int = 1,
    kv_heads: int = 1,
    scale: float | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """Attend by torch's own operator, on any device."""
    parts = (
        t.unflatten(2, (count, -1)).transpose(1, 2)
        for t, count in ((query, heads), (key, kv_heads), (value, kv_heads))
    )
    q, k, v = parts
    seen = mask != 0 if mask is not None and mask.dtype is torch.uint8 else mask
    if causal and seen is not None:
        shape = (query.shape[1], key.shape[1])
        before = torch.ones(shape, dtype=torch.bool, device=query.device).tril()
        added = seen.dtype is not torch.bool
        seen = seen.masked_fill(~before, -torch.inf) if added else seen & before
    y = torch.nn.functional.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=seen,
        is_causal=causal and seen is None,
        scale=scale,
        enable_gqa=heads != kv_heads,
    )
    return y.transpose(1, 2).flatten(2)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, heads, kv_heads, scale, causal = inputs
    ctx.save_for_backward(*tensors)
    ctx.options = {"heads": heads, "kv_heads": kv_heads, "scale": scale, "causal": causal}


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    saved: tuple[Any, ...] = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:4]
    with torch.enable_grad():
        query, key, value, mask = (
            None if t is None else t.detach().requires_grad_(need)
            for t, need in zip(saved, wanted, strict=True)
        )
        assert query is not None
        assert key is not None
        assert value is not None
        y = _torch(query, key, value, mask, **ctx.options)
        leaves = (query, key, value, mask)
        given = [t for t, need in zip(leaves, wanted, strict=True) if need and t is not None]
        found = iter(torch.autograd.grad(y, given, grad))
    return *(next(found) if need else None for need in wanted), None, None, None, None


define(
    "attention(Tensor query, Tensor key, Tensor value, Tensor? mask=None, int heads=1, "
    "int kv_heads=1, float? scale=None, bool causal=False) -> Tensor",
    check=_check,
    cpu=_torch,
    fake=_fake,
    backward=_backward,
    setup=_setup,
    cuda=_torch,
)
