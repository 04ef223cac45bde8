"""The weighted gather and its gradients in terms of torch's own CPU operators.

Many tokens are taken table by table: the rows of one table and the sums of a piece of the tokens
stay in the cache, while a whole token's rows are scattered over all tables.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lutcc.ops.arithmetic import quantize_rows, row_chunks, wide

_SMALL = 1 << 20
"""Looked-up elements of a call that takes all its rows at once."""

_EXACT_ROWS = (1 << 24) // (127 * 128)
"""Rows of int8 tables, times 8-bit scores, whose sum float32 holds exactly."""


def float_sums(codes: torch.Tensor, scores: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    """Return (N, M) sums in the dtype of the scores, of float tables."""
    if scores.dtype is tables.dtype:
        return torch.nn.functional.embedding_bag(
            _flat_index(codes, tables), _rows(tables), per_sample_weights=scores, mode="sum"
        )
    return _sums(codes, scores, tables, wide(scores.dtype)).to(scores.dtype)


def integer_sums(codes: torch.Tensor, scores: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    """Return (N, M) sums in the dtype of the scores, of int8 tables, by the exact integer rule."""
    narrow, scores = scores.dtype, scores.to(torch.float32)
    weights, unit = quantize_rows(scores, 127)
    exact = torch.float32 if codes.shape[1] <= _EXACT_ROWS else torch.float64
    sums = _sums(codes, weights.to(exact), tables, exact)
    # adding 0 turns a sum of -0 into +0, as integers have it
    return ((sums + 0).to(torch.float32) * unit).to(narrow)


def score_grad(grad: torch.Tensor, codes: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    """Return (N, E): the product of each looked-up row with its token's gradient."""
    dtype = wide(grad.dtype)
    count, outputs = grad.shape
    out = grad.new_empty((count, codes.shape[1]), dtype=dtype)
    if count * codes.shape[1] * outputs <= _SMALL:
        taken = _take(codes, tables).to(dtype)
        return torch.bmm(taken, grad.to(dtype)[:, :, None])[:, :, 0]
    neighbors = codes.shape[1] // tables.shape[0]
    for piece in row_chunks(count, outputs, least=64):
        part, columns = grad[piece].to(dtype), codes[piece].t().contiguous()
        found = part.new_empty((codes.shape[1], part.shape[0]))
        for e, column in enumerate(columns):
            taken = tables[e // neighbors].index_select(0, column).to(dtype)
            torch.sum(taken.mul_(part), 1, out=found[e])
        out[piece] = found.t()
    return out


def table_grad(
    grad: torch.Tensor, codes: torch.Tensor, scores: torch.Tensor, shape: Sequence[int]
) -> torch.Tensor:
    """Return (H, K, M): each table row's sum of the gradients of the tokens that took it.

    That is a weighted gather too, of the gradients' rows: sorted by table row, the tokens of each
    are a bag. The sort is stable, so the order of every sum is fixed.
    """
    tables, entries, outputs = shape
    count, columns = codes.shape
    if not count:
        return grad.new_zeros(tuple(shape))
    neighbors = columns // tables
    first = torch.arange(columns) // neighbors * entries
    keys, order = (codes.long() + first).t().reshape(-1).sort(stable=True)
    sizes = keys.bincount(minlength=tables * entries)
    starts = sizes.cumsum(0) - sizes
    sums = torch.nn.functional.embedding_bag(
        order % count,
        grad,
        starts,
        per_sample_weights=scores.t().reshape(-1)[order],
        mode="sum",
    )
    return sums.view(tables, entries, outputs)


def _rows(tables: torch.Tensor) -> torch.Tensor:
    return tables.reshape(-1, tables.shape[2])


def _flat_index(codes: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    neighbors = codes.shape[1] // tables.shape[0]
    return codes.long() + torch.arange(codes.shape[1]) // neighbors * tables.shape[1]


def _take(codes: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    index = _flat_index(codes, tables)
    return _rows(tables).index_select(0, index.view(-1)).view(*codes.shape, tables.shape[2])


def _sums(
    codes: torch.Tensor, scores: torch.Tensor, tables: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Return (N, M) sums in ``dtype`` of rows that are widened to it."""
    count, outputs = codes.shape[0], tables.shape[2]
    scores = scores.to(dtype)
    if count * codes.shape[1] * outputs <= _SMALL:
        return torch.bmm(scores[:, None], _take(codes, tables).to(dtype))[:, 0]
    out = scores.new_zeros((count, outputs))
    neighbors = codes.shape[1] // tables.shape[0]
    for piece in row_chunks(count, outputs, least=64):
        target, weights = out[piece], scores[piece]
        for e, column in enumerate(codes[piece].t().contiguous()):
            taken = tables[e // neighbors].index_select(0, column).to(dtype)
            target.addcmul_(taken, weights[:, e, None])
    return out
