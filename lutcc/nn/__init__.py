"""torch layers: by look-ups, written with codebooks, exact in few bits, or trained on samples."""

from __future__ import annotations

from lutcc.nn.codebook import CodebookLayer
from lutcc.nn.codebook_conv import CodebookConv2d
from lutcc.nn.codebook_embedding import CodebookEmbedding
from lutcc.nn.codebook_linear import CodebookLinear
from lutcc.nn.comparison_projections import DiagonalProjection, ShuffleProjection
from lutcc.nn.conv import MaddnessConv2d
from lutcc.nn.dense_conv import DenseConv2d
from lutcc.nn.dense_linear import DenseLinear
from lutcc.nn.hadamard import Hadamard
from lutcc.nn.linear import MaddnessLinear
from lutcc.nn.lookup_ffn import LookupFFN
from lutcc.nn.projections import BHProjection, DenseProjection, Projection, make_projection
from lutcc.nn.sampled import SampledLayer, SampledLinear
from lutcc.nn.sampled_conv import SampledConv2d
from lutcc.nn.sampled_models import exact_layers, sampled_layers

__all__ = [
    "BHProjection",
    "CodebookConv2d",
    "CodebookEmbedding",
    "CodebookLayer",
    "CodebookLinear",
    "DenseConv2d",
    "DenseLinear",
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
