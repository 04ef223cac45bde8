"""Mixed models: kernels of lutcc for its regions, TVM Relax for the exact layers around them."""

from __future__ import annotations

from lutcc.frontend.relax.build import TARGETS, MixedBuild, build_mixed
from lutcc.frontend.relax.kernels import RegionKernel, compile_region

__all__ = ["TARGETS", "MixedBuild", "RegionKernel", "build_mixed", "compile_region"]
