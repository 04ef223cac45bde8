"""The GPU that kernels are made for: what a program may use there, and how products round."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton

#: Bytes of shared memory (LDS) that one program can have. Compiling does not check it.
SHARED_MEMORY = {
    "sm_80": 166912,
    "sm_86": 101376,
    "sm_89": 101376,
    "sm_90": 232448,
    "sm_100": 232448,
    "sm_120": 101376,
    "gfx942": 65536,
    "gfx950": 163840,
}

_LEAST = 49152  # what every GPU has that Triton supports


@dataclass(frozen=True, slots=True)
class Target:
    """A GPU architecture.

    Attributes
    ----------
    name
        As in :data:`SHARED_MEMORY`, or "interpreter".
    backend
        "cuda", "hip" or "interpreter".
    """

    name: str
    backend: str

    @property
    def shared_memory(self) -> int:
        """Bytes of shared memory that one program can have."""
        return SHARED_MEMORY.get(self.name, _LEAST)


INTERPRETER = Target("interpreter", "interpreter")


def current_target() -> Target:
    """Return the GPU of the current device, or :data:`INTERPRETER` under ``TRITON_INTERPRET=1``."""
    if triton.knobs.runtime.interpret:
        return INTERPRETER
    found = triton.runtime.driver.active.get_current_target()
    return _target(found.backend, found.arch)


@functools.cache
def _target(backend: str, arch: int | str) -> Target:
    return Target(f"sm_{arch}" if backend == "cuda" else str(arch), backend)


def product_precision(dtype: torch.dtype, target: Target) -> str:
    """Return Triton's ``input_precision`` for products of ``dtype``.

    float32 follows torch's own setting (``torch.backends.cuda.matmul``): one tf32 product where it
    allows that, else three, which are as exact as float32 for sums of this length.

    Examples
    --------
    >>> product_precision(torch.float32, Target("sm_90", "cuda"))
    'tf32x3'
    """
    if dtype is torch.float32 and target.backend != "hip":
        allowed = torch.backends.cuda.matmul.fp32_precision == "tf32"
        return "tf32" if allowed else "tf32x3"
    return "ieee"
