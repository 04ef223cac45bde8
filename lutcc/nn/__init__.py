"""torch layers that compute by look-ups."""

from __future__ import annotations

from lutcc.nn.conv import MaddnessConv2d
from lutcc.nn.linear import MaddnessLinear

__all__ = ["MaddnessConv2d", "MaddnessLinear"]
