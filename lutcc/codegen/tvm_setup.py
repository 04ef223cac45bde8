"""Import TVM in the way that works: no affinity changes, no minute-long intrinsic registration."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import types
from typing import Any

from lutcc.errors import DependencyError

_UNUSED_INTRINSICS = ("cuda", "arm_cpu", "rocm", "hexagon", "riscv_cpu", "metal")


@functools.cache
def import_tvm() -> Any:
    """Import TVM and return it.

    TVM's package of tensor intrinsics registers some 500 CUDA and ARM intrinsics on import,
    20 to 50 s of work that no CPU target needs; empty modules stand in for them. Its thread pool
    must not bind the main thread to one core.

    Raises
    ------
    DependencyError
        If TVM is not installed or does not load.
    """
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    try:
        tvm = importlib.import_module("tvm")
    except (ImportError, OSError) as error:
        raise DependencyError(
            f"TVM cannot be imported ({error})",
            where="lutcc.codegen",
            fix="pip install -c constraints.txt apache-tvm apache-tvm-ffi; see 'lutcc doctor'",
        ) from error
    for name in _UNUSED_INTRINSICS:
        full = f"tvm.s_tir.tensor_intrin.{name}"
        sys.modules.setdefault(full, types.ModuleType(full))
    return tvm
