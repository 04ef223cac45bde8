"""Weights in full precision behind the indices of codebook layers: what gradients train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lutcc.codebook_weights import CodebookWeights
from lutcc.fit.codebook_regions import Regions
from lutcc.nn.codebook import CodebookLayer


class NearestCodeword(torch.autograd.Function):
    """The nearest entry of a row's table, with the gradient of the identity.

    ``apply(latent, tables)``: ``latent`` (R, K), ``tables`` (R, L), each row ascending; returns
    (R, K). The gradient passes to ``latent`` straight through, except where a weight is half a step
    beyond its table's ends and would be driven further out; to ``tables`` it goes by index.
    """

    @staticmethod
    def forward(ctx: Any, latent: Tensor, tables: Tensor) -> Tensor:
        """Look the nearest entries up."""
        indices = nearest_indices(latent, tables)
        ctx.save_for_backward(indices, latent, tables)
        return tables.gather(1, indices)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of ``latent`` and ``tables``."""
        (grad,) = grads
        indices, latent, tables = ctx.saved_tensors
        low, high = tables[:, :1], tables[:, -1:]
        half = (high - low) / (2 * (tables.shape[1] - 1))
        outward = ((latent < low - half) & (grad > 0)) | ((latent > high + half) & (grad < 0))
        entries = torch.zeros_like(tables).scatter_add_(1, indices, grad)
        return grad.masked_fill(outward, 0), entries


def nearest_indices(latent: Tensor, tables: Tensor) -> Tensor:
    """Return (R, K) int64: for each weight, the nearest entry of its row's ascending table.

    Examples
    --------
    >>> nearest_indices(torch.tensor([[-9.0, 0.4, 0.6]]), torch.tensor([[0.0, 1.0]])).tolist()
    [[0, 0, 1]]
    """
    middles = (tables[:, 1:] + tables[:, :-1]) / 2
    return torch.searchsorted(middles.contiguous(), latent.contiguous())


class LatentWeights(torch.nn.Module):
    """What a codebook layer multiplies with while its indices are trained.

    They start from the codewords themselves, not from the weights before compression: many of those
    lie where the next small step would take another codeword, and indices that make up for one
    another would be lost at once. Parameters are in units of their size in the layer, so that one
    learning rate serves those of all layers: ``latent``, ``codebooks``, and ``scales`` where there
    are several.

    Parameters
    ----------
    layer
        The layer; :meth:`finish` writes what was trained into it.
    """

    def __init__(self, layer: CodebookLayer) -> None:
        super().__init__()
        self.layer = (layer,)  # in a tuple: no child of this module
        self.weights = layer.to_weights()
        device = layer.codebooks.device
        self.regions = Regions.of(self.weights).to(device)
        order = self.weights.order
        self.order = None if order is None else torch.from_numpy(order.astype(np.int64)).to(device)
        outliers = self.weights.outliers
        columns = self.weights.columns
        beside = None if outliers is None else torch.from_numpy(outliers.dense(columns))
        self.beside = None if beside is None else beside.to(device)
        indices = torch.from_numpy(self.weights.unpacked().astype(np.int64)).to(device)
        books, scales = layer.codebooks.detach(), layer.scales.detach()
        stored = self.regions.dequantize(indices, books, scales)
        self.rms = float(stored.square().mean().sqrt()) or 1.0
        self.unit = float(scales.abs().mean()) or 1.0
        self.latent = torch.nn.Parameter(self._cut(stored / self.rms))
        self.codebooks = torch.nn.Parameter(books * (self.unit / self.rms))
        self.scales = torch.nn.Parameter(scales / self.unit, layer.scales.requires_grad)

    def _sorted_tables(self) -> tuple[Tensor, Tensor]:
        """Return (M * S, L) ascending tables, and the index of each entry."""
        found = self.regions.tables(self.codebooks, self.scales).flatten(0, 1).sort(dim=1)
        return found.values, found.indices

    def _cut(self, matrix: Tensor) -> Tensor:
        """Return (M, K) as (M * S, columns of a segment), padded with zeros."""
        size = self.regions.size
        missing = -matrix.shape[1] % size
        return F.pad(matrix, (0, missing)).reshape(-1, size)

    def _joined(self, cut: Tensor) -> Tensor:
        rows, columns = self.weights.shape
        return cut.reshape(rows, -1)[:, :columns]

    def weight(self) -> Tensor:
        """Return (M, K), row m for output m: what the layer will multiply with."""
        tables, _ = self._sorted_tables()
        stored = self._joined(NearestCodeword.apply(self.latent, tables)) * self.rms
        if self.order is not None:
            stored = torch.empty_like(stored).index_copy(0, self.order, stored)
        return stored if self.beside is None else stored + self.beside

    def finish(self) -> None:
        """Write the indices, codebooks and scales into the layer."""
        layer = self.layer[0]
        with torch.no_grad():
            tables, entries = self._sorted_tables()
            nearest = nearest_indices(self.latent, tables)
            indices = self._joined(entries.gather(1, nearest))
            books, scales = self.codebooks * (self.rms / self.unit), self.scales * self.unit
        layer.load_weights(
            CodebookWeights.of(
                indices.cpu().numpy(),
                books.cpu().numpy(),
                bits=self.weights.bits,
                scales=scales.cpu().numpy(),
                segment_size=self.weights.segment_size,
                order=self.weights.order,
                outliers=self.weights.outliers,
            )
        )


@contextmanager
def multiplied_with(layer: CodebookLayer, latent: LatentWeights) -> Iterator[None]:
    """Let a layer multiply with latent weights for a while, its other modules as they are."""

    def multiply(x: Tensor) -> Tensor:
        return F.linear(x, latent.weight(), layer.bias)

    mode = layer.training
    layer.training = True
    vars(layer).update(multiply=multiply, dequantize=latent.weight)
    try:
        yield
    finally:
        del vars(layer)["multiply"], vars(layer)["dequantize"]
        layer.training = mode
