"""bfloat16 arrays of ml_dtypes as tensors and back: DLPack knows the type, but NumPy does not.

NumPy is asked for a capsule of the same memory in uint16, and the capsule is told what its elements
are, or the other way round.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from lutcc.runtime import ffi

_UINT, _BFLOAT = 1, 4  # kDLUInt and kDLBfloat of DLPack
#: DLManagedTensorVersioned: a version, two pointers and the flags come before its DLTensor, whose
#: type comes after the data's address, the device and the rank.
_TYPE_CODE = 32 + 20
_NAME = b"dltensor_versioned"
_VERSION = (1, 0)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def to_tensor(array: np.ndarray) -> Any:
    """Return the memory of a bfloat16 array as a tensor of tvm_ffi."""
    capsule = array.view(np.uint16).__dlpack__(max_version=_VERSION)
    return ffi.tvm_ffi().from_dlpack(_retyped(capsule, _BFLOAT))


def to_array(tensor: Any) -> np.ndarray:
    """Return the memory of a bfloat16 tensor, of tvm_ffi or of torch on the CPU, as an array."""
    import ml_dtypes

    capsule = tensor.detach() if hasattr(tensor, "detach") else tensor
    given = _Given(_retyped(capsule.__dlpack__(max_version=_VERSION), _UINT))
    return np.from_dlpack(given).view(ml_dtypes.bfloat16)


def as_numpy(value: Any) -> np.ndarray:
    """Return what an artifact gave (a NumPy array or a torch CPU tensor) as a NumPy array."""
    if isinstance(value, np.ndarray):
        return value
    return to_array(value) if str(value.dtype) == "torch.bfloat16" else value.numpy()


class _Given:
    """What :func:`numpy.from_dlpack` takes: a capsule that is there already, on the CPU."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


def _retyped(capsule: Any, code: int) -> Any:
    """Write another type of 16 bits into a capsule that nobody has taken yet."""
    ctypes.c_uint8.from_address(_pointer(capsule, _NAME) + _TYPE_CODE).value = code
    return capsule
