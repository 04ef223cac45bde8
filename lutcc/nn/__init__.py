"""torch layers that compute by look-ups."""

from __future__ import annotations

from lutcc.nn.comparison_projections import DiagonalProjection, ShuffleProjection
from lutcc.nn.conv import MaddnessConv2d
from lutcc.nn.hadamard import Hadamard
from lutcc.nn.linear import MaddnessLinear
from lutcc.nn.lookup_ffn import LookupFFN
from lutcc.nn.projections import BHProjection, DenseProjection, Projection, make_projection

__all__ = [
    "BHProjection",
    "DenseProjection",
    "DiagonalProjection",
    "Hadamard",
    "LookupFFN",
    "MaddnessConv2d",
    "MaddnessLinear",
    "Projection",
    "ShuffleProjection",
    "make_projection",
]
