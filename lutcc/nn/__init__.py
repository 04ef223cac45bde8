"""torch layers that compute by look-ups, and layers whose training is sampled."""

from __future__ import annotations

from lutcc.nn.comparison_projections import DiagonalProjection, ShuffleProjection
from lutcc.nn.conv import MaddnessConv2d
from lutcc.nn.hadamard import Hadamard
from lutcc.nn.linear import MaddnessLinear
from lutcc.nn.lookup_ffn import LookupFFN
from lutcc.nn.projections import BHProjection, DenseProjection, Projection, make_projection
from lutcc.nn.sampled import SampledLayer, SampledLinear
from lutcc.nn.sampled_conv import SampledConv2d
from lutcc.nn.sampled_models import exact_layers, sampled_layers

__all__ = [
    "BHProjection",
    "DenseProjection",
    "DiagonalProjection",
    "Hadamard",
    "LookupFFN",
    "MaddnessConv2d",
    "MaddnessLinear",
    "Projection",
    "SampledConv2d",
    "SampledLayer",
    "SampledLinear",
    "ShuffleProjection",
    "exact_layers",
    "make_projection",
    "sampled_layers",
]
