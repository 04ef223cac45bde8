"""tvm_ffi without torch, and TVM's small runtime library without TVM's compiler.

``import tvm_ffi`` imports torch when torch is installed, which costs a second and hundreds of
megabytes that a process feeding NumPy arrays does not need. The import is therefore done with
``torch`` hidden from the importing thread, unless torch is already there. Torch tensors that come
later work all the same: torch >= 2.11 carries the DLPack exchange table on its Tensor class, and
tvm_ffi looks for it there.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import math
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lutcc.errors import ArtifactError, DependencyError

RUNTIME_LIBRARY_VARIABLE = "LUTCC_TVM_RUNTIME"

_lock = threading.RLock()
_runtime_library: ctypes.CDLL | None = None

#: Buffers handed to kernels start on a cache line.
ALIGNMENT = 64
HUGE_PAGE = 2 << 20


class _TorchHider:
    """An import finder that makes ``import torch`` fail in one thread."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "torch" and threading.get_ident() == self._thread:
            raise ModuleNotFoundError("torch is not imported on behalf of tvm_ffi", name="torch")


@contextlib.contextmanager
def torch_hidden() -> Iterator[None]:
    """Import packages that take torch along where they find it, without torch.

    Nothing is hidden if torch is there already.
    """
    if "torch" in sys.modules:
        yield
        return
    hider = _TorchHider()
    sys.meta_path.insert(0, hider)
    try:
        yield
    finally:
        sys.meta_path.remove(hider)


def tvm_ffi() -> ModuleType:
    """Return the module ``tvm_ffi``, imported without pulling in torch.

    Raises
    ------
    DependencyError
        When the package is missing or its library does not load.
    """
    loaded = sys.modules.get("tvm_ffi")
    if loaded is not None and hasattr(loaded, "load_module"):
        return loaded
    with _lock, torch_hidden():
        try:
            return importlib.import_module("tvm_ffi")
        except (ImportError, OSError) as error:
            raise DependencyError(
                f"the package tvm_ffi cannot be imported ({error})",
                fix="pip install apache-tvm-ffi==0.1.14.post1; `lutcc doctor` checks the rest",
            ) from error


def runtime_library_path() -> Path | None:
    """Return where ``libtvm_runtime.so`` lies (without importing tvm), or None.

    ``LUTCC_TVM_RUNTIME`` names the file where it is deployed without the rest of TVM.
    """
    named = os.environ.get(RUNTIME_LIBRARY_VARIABLE)
    if named:
        path = Path(named)
        if not path.is_file():
            raise DependencyError(
                f"there is no file {named}",
                where=f"environment variable {RUNTIME_LIBRARY_VARIABLE}",
                fix="let it name libtvm_runtime.so, or unset it",
            )
        return path
    try:
        spec = importlib.util.find_spec("tvm")
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin:
        return None
    for folder in ("lib", ".", "lib64"):
        path = Path(spec.origin).parent / folder / "libtvm_runtime.so"
        if path.is_file():
            return path
    return None


def load_runtime_library(purpose: str) -> None:
    """Load ``libtvm_runtime.so`` with global symbols; open kernels that need it afterwards.

    Raises
    ------
    DependencyError
        When the library is missing or does not load. ``purpose`` says what wanted it.
    """
    global _runtime_library
    if _runtime_library is not None:
        return
    with _lock:
        if _runtime_library is not None:
            return
        # TVM's pool reads these when it starts: leave the caller's CPU affinity alone, and let idle
        # workers fall asleep after some 10 ms rather than burn a core for a good part of a second.
        os.environ.setdefault("TVM_BIND_THREADS", "0")
        os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "20000")
        tvm_ffi()  # libtvm_runtime.so links against libtvm_ffi.so
        path = runtime_library_path()
        fix = (
            "pip install apache-tvm==0.27.0.post1, or set LUTCC_TVM_RUNTIME to a libtvm_runtime.so;"
            " look-up kernels run without it on one thread (lutcc.set_num_threads(1))"
        )
        if path is None:
            raise DependencyError(f"libtvm_runtime.so was not found; {purpose} needs it", fix=fix)
        try:
            _runtime_library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise DependencyError(
                f"libtvm_runtime.so does not load ({error}); {purpose} needs it", fix=fix
            ) from error


def runtime_library_loaded() -> bool:
    """Tell whether kernels opened from now on can use TVM's thread pool."""
    return _runtime_library is not None


def open_module(path: Path) -> Any:
    """Open a shared library of kernels and return tvm_ffi's module object.

    Raises
    ------
    ArtifactError
        When the dynamic linker refuses it.
    """
    try:
        return tvm_ffi().load_module(str(path))
    except DependencyError:
        raise
    except Exception as error:
        text = str(error).replace(str(path), path.name)
        fix = "build the artifact again on this system"
        if "not permitted" in text or "failed to map segment" in text:
            fix = "the temporary folder forbids execution; set TMPDIR to a folder that allows it"
        raise ArtifactError(
            f"the dynamic linker refuses it: {text.strip()}", where=path.name, fix=fix
        ) from error


def aligned_empty(nbytes: int) -> np.ndarray:
    """Return an uninitialised uint8 array of ``nbytes`` that starts on a cache line.

    A large one starts on a huge page, as ``lutcc.schedules.x86.pack.aligned_empty`` says.
    """
    alignment = HUGE_PAGE if nbytes >= 2 * HUGE_PAGE else ALIGNMENT
    raw = np.empty(nbytes + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + nbytes]


#: Results of at least this many bytes start on a cache line: kernels store such ones past the
#: caches, which needs whole lines.
LARGE = 1 << 20


def empty_array(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an uninitialised array, on a cache line if it is large."""
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < LARGE:
        return np.empty(shape, dtype)
    return aligned_empty(nbytes).view(dtype).reshape(shape)


def aligned_copy(array: np.ndarray) -> np.ndarray:
    """Return a contiguous copy of ``array`` that starts on a cache line."""
    out = aligned_empty(array.nbytes).view(array.dtype.newbyteorder("=")).reshape(array.shape)
    out[...] = array
    return out
