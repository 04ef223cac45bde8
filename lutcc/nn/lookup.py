"""What the MADDNESS layers share: their buffers, and rows -> codes -> sums -> products."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import lutcc.ops  # noqa: F401  registers torch.ops.lutcc
from lutcc.errors import InputError
from lutcc.fit.options import check_maddness_options
from lutcc.fit.partition import contiguous_partition

if TYPE_CHECKING:
    from lutcc.fit import Maddness


class MaddnessLookup(torch.nn.Module):
    """Look-ups from rows (N, in_features) float32 to products (N, out_features) float32.

    A fresh layer holds zeros, ready for ``load_state_dict``; :meth:`load_estimator` fills it from a
    fitted estimator.

    Buffers: ``splitdims`` (C, L) int32 and ``splitvals`` (C, K) float32, or ``centroids`` (K, D)
    float32, ``half_norms`` (C, K) float32 and ``columns`` (D,) int32; ``lut`` (C, K, M) uint8 or
    float32; ``scale`` and ``offset`` (M,) float32 (8-bit tables only).
    """

    splitdims: torch.Tensor
    splitvals: torch.Tensor
    centroids: torch.Tensor
    half_norms: torch.Tensor
    columns: torch.Tensor
    lut: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        ncodebooks: int,
        nprototypes: int = 16,
        encoder: str = "tree",
        activation: str | None = None,
        lut_dtype: str = "uint8",
        accumulate: str = "exact",
        upcast_every: int = 16,
    ) -> None:
        super().__init__()
        check_maddness_options(
            ncodebooks=ncodebooks,
            nprototypes=nprototypes,
            encoder=encoder,
            activation=activation,
            lut_dtype=lut_dtype,
            accumulate=accumulate,
            upcast_every=upcast_every,
        )
        if ncodebooks > in_features:
            raise InputError(
                f"ncodebooks={ncodebooks} exceeds in_features={in_features}",
                where=type(self).__name__,
                fix=f"use ncodebooks <= {in_features}",
            )
        self.in_features, self.out_features = in_features, out_features
        self.ncodebooks, self.nprototypes = ncodebooks, nprototypes
        self.encoder, self.activation = encoder, activation
        self.lut_dtype, self.accumulate, self.upcast_every = lut_dtype, accumulate, upcast_every
        lengths = [len(part) for part in contiguous_partition(in_features, ncodebooks)]
        self.starts = (0, *(int(end) for end in np.cumsum(lengths)))
        if encoder == "tree":
            depth = nprototypes.bit_length() - 1
            self.register_buffer("splitdims", torch.zeros(ncodebooks, depth, dtype=torch.int32))
            self.register_buffer("splitvals", torch.zeros(ncodebooks, nprototypes))
        else:
            self.register_buffer("centroids", torch.zeros(nprototypes, in_features))
            self.register_buffer("half_norms", torch.zeros(ncodebooks, nprototypes))
            self.register_buffer("columns", torch.arange(in_features, dtype=torch.int32))
        self.register_buffer(
            "lut",
            torch.zeros(ncodebooks, nprototypes, out_features, dtype=getattr(torch, lut_dtype)),
        )
        if lut_dtype == "uint8":
            self.register_buffer("scale", torch.zeros(out_features))
            self.register_buffer("offset", torch.zeros(out_features))

    def load_estimator(self, estimator: Maddness) -> None:
        """Copy the fitted parameters of ``estimator`` into the buffers."""
        with torch.no_grad():
            for name, buffer in self.named_buffers(recurse=False):
                buffer.copy_(torch.from_numpy(np.ascontiguousarray(getattr(estimator, f"{name}_"))))

    def encode_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the codes (N, C) uint8 of ``rows`` (N, in_features) float32."""
        if self.encoder == "tree":
            return torch.ops.lutcc.tree_encode(rows, self.splitdims, self.splitvals)
        return torch.ops.lutcc.nearest_encode(
            rows, self.centroids, self.half_norms, self.columns, list(self.starts)
        )

    def look_up(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the products (N, out_features) float32 of ``rows`` (N, in_features) float32."""
        sums = torch.ops.lutcc.lut_accumulate(
            self.encode_rows(rows), self.lut, self.accumulate, self.upcast_every
        )
        if self.lut_dtype == "uint8":
            return torch.ops.lutcc.lut_dequantize(
                sums, self.scale, self.offset, self.activation or "none"
            )
        return torch.relu(sums) if self.activation == "relu" else sums

    def check_input(self, x: torch.Tensor, features: int, dim: int) -> None:
        """Raise :class:`InputError` unless ``x`` is float32 and ``features`` long along ``dim``."""
        if x.dtype != torch.float32:
            raise InputError(
                f"the input has dtype {x.dtype}, but look-ups compare float32",
                where=type(self).__name__,
                fix="call x.float()",
            )
        if x.shape[dim] != features:
            raise InputError(
                f"the input has shape {tuple(x.shape)}, but dimension {dim} must be {features}",
                where=type(self).__name__,
                fix=f"pass {features} features along dimension {dim}",
            )

    def table_bytes(self) -> int:
        """Return the size of the tables in bytes: C * K * M * itemsize."""
        return self.lut.numel() * self.lut.element_size()

    def describe_lookup(self) -> str:
        """Return the look-up's options for ``extra_repr``."""
        text = f"ncodebooks={self.ncodebooks}, nprototypes={self.nprototypes}"
        text += f", encoder={self.encoder!r}, lut_dtype={self.lut_dtype!r}"
        text += f", accumulate={self.accumulate!r}"
        if self.accumulate == "mean":
            text += f", upcast_every={self.upcast_every}"
        return text + (f", activation={self.activation!r}" if self.activation else "")


def lookup_options(estimator: Maddness) -> dict[str, Any]:
    """Return the arguments of :class:`MaddnessLookup` that describe a fitted ``estimator``."""
    estimator._check_fitted("from_estimator")
    names = (
        "ncodebooks",
        "nprototypes",
        "encoder",
        "activation",
        "lut_dtype",
        "accumulate",
        "upcast_every",
    )
    return {name: estimator.options_[name] for name in names}
