"""Mixed models: kernels of lutcc for its regions, TVM Relax for the exact layers around them.

Imports are lazy: loop nests can be scheduled and built without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "Choice": "pipeline",
    "MixedBuild": "build",
    "RegionKernel": "kernels",
    "build_mixed": "build",
    "compile_region": "kernels",
}

if TYPE_CHECKING:
    from lutcc.frontend.relax.build import MixedBuild, build_mixed
    from lutcc.frontend.relax.kernels import RegionKernel, compile_region
    from lutcc.frontend.relax.pipeline import Choice

__all__ = ["Choice", "MixedBuild", "RegionKernel", "build_mixed", "compile_region"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lutcc.frontend.relax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lutcc.frontend.relax.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
