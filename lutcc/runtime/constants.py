"""Constants of an artifact: a safetensors file, which holds numbers and nothing that can run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lutcc.errors import ArtifactError
from lutcc.runtime.manifest import CONSTANTS
from lutcc.runtime.signature import numpy_dtype

#: Name of an element type in the file, by name in the IR. (The reader of safetensors' own NumPy
#: interface does not know BF16, so this module makes the arrays itself.)
_CODES = {
    "bool": "BOOL",
    "int8": "I8",
    "uint8": "U8",
    "int16": "I16",
    "uint16": "U16",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "uint32": "U32",
    "float32": "F32",
    "int64": "I64",
    "uint64": "U64",
    "float64": "F64",
}
_NAMES = {code: name for name, code in _CODES.items()}


def dump(constants: Mapping[str, np.ndarray]) -> bytes:
    """Return the bytes of the file; equal constants give equal bytes.

    Raises
    ------
    ArtifactError
        When an array has a dtype that the format does not know.
    """
    from safetensors.numpy import save

    plain = {}
    for name in sorted(constants):
        array = np.asarray(constants[name])
        native = array.dtype.newbyteorder("=")
        if native.name not in _CODES:
            raise ArtifactError(
                f"constant {name!r} has dtype {array.dtype}, which cannot be stored",
                fix=f"use one of {', '.join(sorted(_CODES))}",
            )
        plain[name] = np.array(array, native, order="C")
    return save(plain)


def load(data: bytes) -> dict[str, np.ndarray]:
    """Return the arrays by name, read-only.

    Raises
    ------
    ArtifactError
        When ``data`` is no such file.
    """
    from safetensors import SafetensorError, deserialize

    try:
        parts = dict(deserialize(data))
        for name, part in parts.items():
            if part["dtype"] not in _NAMES:
                raise ArtifactError(
                    f"constant {name!r} has the element type {part['dtype']}, which lutcc does not "
                    "read",
                    where=CONSTANTS,
                    fix="use the version of lutcc that wrote it, or compile the model again",
                )
        arrays = {
            name: np.frombuffer(part["data"], numpy_dtype(_NAMES[part["dtype"]])).reshape(
                part["shape"]
            )
            for name, part in parts.items()
        }
    except (SafetensorError, ValueError, KeyError, TypeError, MemoryError) as error:
        raise ArtifactError(
            f"is no safetensors file: {error}", where=CONSTANTS, fix="compile the model again"
        ) from error
    for array in arrays.values():
        array.flags.writeable = False
    return arrays
