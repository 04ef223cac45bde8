"""The ops that torch.export's graph is brought to before it is imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.export import ExportedProgram

import lutcc.ops  # noqa: F401  registers torch.ops.lutcc
from lutcc.frontend.tracing import quiet_torch

_KEEP_WHOLE = (
    torch.ops.aten.linear.default,
    torch.ops.aten.conv1d.default,
    torch.ops.aten.conv2d.default,
)


def decompose(program: ExportedProgram) -> ExportedProgram:
    """Return the program in core ATen ops, whole linears and convolutions, functional."""
    table: dict[Any, Callable[..., Any]] = dict(torch.export.default_decompositions())
    for op in _KEEP_WHOLE:
        table.pop(op, None)
    table[torch.ops.aten.scaled_dot_product_attention.default] = _attention
    table[torch.ops.lutcc.codebook_dequantize.default] = _narrow_rows
    with quiet_torch():
        return program.run_decompositions(table)


def _narrow_rows(rows: torch.Tensor, *args: Any) -> Any:
    """Cast row numbers to int32, which the IR takes: it has no casts itself."""
    if rows.dtype is torch.int32:
        return NotImplemented  # stays as it is
    return torch.ops.lutcc.codebook_dequantize(rows.to(torch.int32), *args)


def _attention(
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
