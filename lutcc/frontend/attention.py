"""Scaled dot product attention in ops that compile."""

from __future__ import annotations

import torch


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
    """Attention as batched products around a softmax; unmasked rows need no guard against -inf."""
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
