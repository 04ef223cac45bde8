"""Look-ups by trees that are trained on a GPU: kernels forward and backward, no soft code held."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lutcc.nn.latent_lookup import LatentLookup


class TreeLookedUp(torch.autograd.Function):
    """Values of a look-up layer, with the gradients of soft trees."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        compared: Tensor,
        log_temperature: Tensor,
        tables: Tensor,
        shift: Tensor,
        splitdims: Tensor,
        codes: Tensor,
        read: Tensor,
        unit: Tensor,
        exact: Tensor,
        relu: bool,
        bfloat16: bool,
    ) -> Tensor:
        """Return ``exact``.

        Parameters
        ----------
        rows, compared, log_temperature, tables, shift
            (N, D), (C, K), (C, 1), (C, K, M) and (M,), which take gradients.
        splitdims, codes
            (C, L) and (N, C): which columns are compared, and what comes of it.
        read, unit
            (C, K, M) uint8 or float32, and (M,): tables as they were read, and what one of them is
            worth.
        exact
            (N, M): the layer's output.
        relu, bfloat16
            Whether it went through a ReLU, and whether gradients are multiplied in bfloat16.
        """
        ctx.relu, ctx.bfloat16 = relu, bfloat16
        kept = exact if relu else exact.new_empty(0)
        ctx.save_for_backward(rows, compared, log_temperature, splitdims, codes, read, unit, kept)
        return exact.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of rows, thresholds, temperatures, tables and shift."""
        rows, compared, log_temperature, splitdims, codes, read, unit, exact = ctx.saved_tensors
        grad = torch.where(exact > 0, grads[0], 0) if ctx.relu else grads[0]
        given = (splitdims, compared, log_temperature[:, 0], read, unit, ctx.bfloat16)
        d_rows, d_compared, d_log, d_tables = torch.ops.lutcc.soft_tree_backward(
            grad, rows, codes, *given
        )
        return (d_rows, d_compared, d_log[:, None], d_tables, grad.sum(0), *[None] * 7)


def look_up(latent: LatentLookup, rows: Tensor) -> Tensor:
    """Return (N, M) for ``rows`` (N, D): what ``latent.look_up`` does for trees, by kernels.

    The values are the same bits, the gradients the same sums. Beside rows, codes (N, C) of one
    byte and outputs nothing of the batch's size is kept.
    """
    layer = latent.layer[0]
    with torch.no_grad():
        if not bool(latent.begun):
            columns = layer.splitdims.long()
            latent._begin(rows[:, columns])
        lut, scale, _, offset = latent.quantised()
        codes = torch.ops.lutcc.tree_encode(rows, layer.splitdims, latent.compared)
        if lut is None:
            y = torch.ops.lutcc.lut_accumulate(codes, latent.tables) + latent.shift
            read = latent.tables - latent.tables.mean(1, keepdim=True)
            unit = torch.ones_like(latent.shift)
            exact = torch.relu(y) if layer.activation == "relu" else y
        else:
            read, averaged = lut.to(torch.uint8), layer.accumulate == "mean"
            unit = scale / (layer.upcast_every if averaged else 1)
            how = (layer.accumulate, layer.upcast_every)
            sums = torch.ops.lutcc.lut_accumulate(codes, read, *how)
            named = layer.activation or "none"
            exact = torch.ops.lutcc.lut_dequantize(sums, scale, offset, named)
    trained = (latent.compared, latent.log_temperature, latent.tables, latent.shift)
    relu, small = layer.activation == "relu", latent.gradient_dtype is torch.bfloat16
    given = (layer.splitdims, codes, read, unit, exact, relu, small)
    return TreeLookedUp.apply(rows, *trained, *given)
