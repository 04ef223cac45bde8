"""Matrices that were compressed, and where they are kept so that a conversion can go on."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Protocol

import torch

from lutcc.codebook_weights import CodebookWeights

_AT_ONCE = 1 << 24  # bytes


@dataclasses.dataclass(frozen=True, slots=True)
class FittedLayer:
    """A layer's compressed matrix.

    Parameters
    ----------
    weights
        The matrix.
    rows, error
        Rows of data that it was fitted on, and the relative error.
    note
        How the goal was met, if not in the expected way.
    """

    weights: CodebookWeights
    rows: int
    error: float
    note: str = ""


class FittedLayers(Protocol):
    """Where a conversion keeps each layer that it has fitted."""

    def load(self, name: str, source: str) -> FittedLayer | None:
        """Return a layer that was kept under this name, if it was fitted to the same weights.

        Parameters
        ----------
        name
            Of the layer.
        source
            The digest of its exact weights.
        """
        ...

    def save(self, name: str, source: str, fitted: FittedLayer) -> None:
        """Keep a layer."""
        ...


def digest(tensor: torch.Tensor) -> str:
    """Return the SHA-256 of a tensor's dtype, shape and bytes."""
    found = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    for start in range(0, len(flat), _AT_ONCE):
        found.update(flat[start : start + _AT_ONCE].data)
    return found.hexdigest()
