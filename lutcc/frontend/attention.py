"""Scaled dot product attention in ops that compile."""

from __future__ import annotations

import torch

import lutcc.ops  # noqa: F401  registers torch.ops.lutcc
from lutcc.frontend.symbols import expression

_RANK = 4


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Attention as one op where images have heads, else as batched products around a softmax."""
    if _fits(query, key, value, attn_mask) and not dropout_p:
        return _whole(query, key, value, attn_mask, is_causal, scale)
    options = {"scale": scale, "enable_gqa": enable_gqa}
    return products(query, key, value, attn_mask, dropout_p, is_causal, **options)


def products(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Attention as batched products around a softmax."""
    if attn_mask is not None and attn_mask.dtype is torch.bool:  # the operator below would add 0, 1
        where_seen = torch.zeros((), dtype=query.dtype)
        attn_mask = torch.where(attn_mask, where_seen, -torch.inf)
    if attn_mask is not None or is_causal or enable_gqa or dropout_p:
        return torch.ops.aten._scaled_dot_product_attention_math.default(
            query,
            key,
            value,
            attn_mask,
            dropout_p,
            is_causal,
            None,
            scale=scale,
            enable_gqa=enable_gqa,
        )[0]
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    weights = torch.softmax(torch.matmul(query * factor, key.transpose(-2, -1)), dim=-1)
    return torch.matmul(weights, value)


def _fits(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> bool:
    tensors = (query, key, value)
    if any(t.dim() != _RANK or t.dtype is not torch.float32 for t in tensors):
        return False
    heads = [t.shape[1] for t in tensors]
    if not all(isinstance(h, int) for h in heads) or heads[1] != heads[2] or heads[0] % heads[1]:
        return False
    if not key.shape[0] == value.shape[0] == query.shape[0]:
        return False
    masks = () if mask is None else (mask,)
    if not all(_is_multiple(size) for t in (*tensors, *masks) for size in t.shape):
        return False
    return mask is None or (mask.dim() <= _RANK and mask.dtype in (torch.bool, torch.float32))


def _is_multiple(size: int | torch.SymInt) -> bool:
    """Tell whether a size is a number or a multiple of open sizes, as the IR's are."""
    factor, rest = expression(size).as_coeff_Mul()
    parts = rest.args if rest.is_Mul else (rest,)
    return bool(factor.is_Integer and factor > 0 and all(p.is_Symbol or p == 1 for p in parts))


def _whole(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float | None,
) -> torch.Tensor:
    heads, groups = query.shape[1], key.shape[1]
    if mask is not None:
        mask = mask[(None,) * (_RANK - mask.dim())]
        mask = mask.to(torch.uint8) if mask.dtype is torch.bool else mask
    rows = (t.transpose(1, 2).flatten(2) for t in (query, key, value))
    y = torch.ops.lutcc.attention(*rows, mask, heads, groups, scale, causal)
    return y.unflatten(2, (heads, value.shape[3])).transpose(1, 2)
