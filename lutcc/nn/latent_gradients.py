"""Sums of table rows with the gradients of soft codes, without the soft codes.

What a look-up passes forward depends on hard codes only, so nothing soft is computed there.
Backward, the gradient of a code, (N, C, K), comes from one product with the tables; that of the
tables is a sum of rows for each entry. Both may be products in bfloat16, which processors that have
it do several times as fast; forward, nothing changes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from lutcc.ops.soft_trees import tree_gradients


class TreeCode(torch.autograd.Function):
    """A handle of the soft codes (N, C, K) of trees: empty forward, their gradient backward.

    The soft code of leaf k is the product, along its path, of sigmoid((x - threshold) /
    temperature) or of 1 minus that.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, thresholds: Tensor, log_temperature: Tensor) -> Tensor:
        """Take what is compared (N, L, C), thresholds (C, K) in heap order, temperatures (C, 1)."""
        ctx.save_for_backward(values, thresholds, log_temperature)
        rows, _, codebooks = values.shape
        return values.new_zeros(1).expand(rows, codebooks, thresholds.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of all three for that of the codes."""
        return tree_gradients(grads[0], *ctx.saved_tensors)


class Compared(torch.autograd.Function):
    """The columns (N, L, C) of rows (N, D) that trees compare: (C, L) column numbers."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor) -> Tensor:
        """Gather."""
        ctx.save_for_backward(columns)
        ctx.width = rows.shape[1]
        codebooks, depth = columns.shape
        return rows.index_select(1, columns.T.reshape(-1)).view(-1, depth, codebooks)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Add up what reached each column."""
        (columns,) = ctx.saved_tensors
        flat = grads[0].flatten(1)
        index = columns.T.reshape(1, -1).expand_as(flat)
        return flat.new_zeros(len(flat), ctx.width).scatter_add_(1, index, flat), None


class LookedUp(torch.autograd.Function):
    """Values of a look-up layer, with the gradients of its sum: to the bit, as no sum would be."""

    @staticmethod
    def forward(
        ctx: Any,
        code: Tensor,
        tables: Tensor,
        shift: Tensor,
        chosen: Tensor,
        read: Tensor,
        exact: Tensor,
        relu: bool,
        dtype: torch.dtype,
    ) -> Tensor:
        """Return ``exact``.

        Parameters
        ----------
        code
            (N, C, K), whose values are not read: takes the gradient of a soft code.
        tables, shift
            (C, K, M) and (M,), which take theirs.
        chosen
            (N, C) rows of ``read`` that were added up.
        read
            (C * K, M): the tables as they were read, less the mean of each codebook: codes add up
            to 1, so that only differences reach them, and those lose less in rounding.
        exact
            (N, M): the layer's output.
        relu, dtype
            Whether it went through a ReLU, and what gradients are multiplied in.
        """
        ctx.relu, ctx.dtype, ctx.shape = relu, dtype, tables.shape
        ctx.save_for_backward(chosen, read, exact if relu else exact.new_empty(0))
        return exact.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of codes, tables and shift."""
        chosen, read, exact = ctx.saved_tensors
        grad = torch.where(exact > 0, grads[0], 0) if ctx.relu else grads[0]
        codebooks, entries, _ = ctx.shape
        small = grad.to(ctx.dtype)
        d_code = d_tables = None
        if ctx.needs_input_grad[0]:
            d_code = (small @ read.to(ctx.dtype).T).to(grad.dtype).view(-1, codebooks, entries)
        if ctx.needs_input_grad[1]:
            if ctx.dtype is torch.float32:
                found = _sums_of_rows(grad, chosen, codebooks * entries)
            else:
                hard = small.new_zeros(len(grad), codebooks * entries).scatter_(1, chosen, 1)
                found = (hard.T @ small).to(grad.dtype)
            d_tables = found.view(ctx.shape)
        d_shift = grad.sum(0) if ctx.needs_input_grad[2] else None
        return d_code, d_tables, d_shift, None, None, None, None, None


def _sums_of_rows(grad: Tensor, chosen: Tensor, entries: int) -> Tensor:
    """Return, for each entry of the tables, the sum of the rows (N, M) of ``grad`` that chose it.

    ``chosen`` (N, C) are places among all entries. That is a product with one-hot rows, without
    them: each row is added C times.
    """
    flat = chosen.T.reshape(-1)
    counts = torch.bincount(flat, minlength=entries)
    rows = flat.argsort(stable=True) % len(grad)
    return embedding_bag(rows, grad, counts.cumsum(0) - counts, mode="sum")
