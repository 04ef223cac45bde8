"""Loads and runs artifacts: no compiler, no torch, no pickle.

``load`` checks an artifact and opens the kernels that fit the processor; the result is called with
NumPy arrays or torch CPU tensors. Needs numpy, safetensors and tvm_ffi; kernels on several threads
and models with exact layers need TVM's small runtime library beside them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lutcc.runtime.artifact import Artifact, load
from lutcc.runtime.signature import TensorSpec
from lutcc.runtime.threads import get_num_threads, set_num_threads

if TYPE_CHECKING:
    from lutcc.runtime.explain import Explanation as Explanation

__all__ = [
    "Artifact",
    "Explanation",
    "TensorSpec",
    "get_num_threads",
    "load",
    "set_num_threads",
]


def __getattr__(name: str) -> Any:
    if name == "Explanation":  # what few processes ask for is not imported for all
        from lutcc.runtime.explain import Explanation

        return Explanation
    raise AttributeError(f"module 'lutcc.runtime' has no attribute {name!r}")
