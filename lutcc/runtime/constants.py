"""Constants of an artifact: a safetensors file, which holds numbers and nothing that can run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lutcc.errors import ArtifactError
from lutcc.runtime.manifest import CONSTANTS

_DTYPES = {
    "bool",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "float16",
    "int32",
    "uint32",
    "float32",
    "int64",
    "uint64",
    "float64",
}


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
        if native.name not in _DTYPES:
            raise ArtifactError(
                f"constant {name!r} has dtype {array.dtype}, which cannot be stored",
                fix=f"use one of {', '.join(sorted(_DTYPES))}",
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
    from safetensors import SafetensorError
    from safetensors.numpy import load as parse

    try:
        arrays = parse(data)
    except (SafetensorError, ValueError, KeyError, TypeError, MemoryError) as error:
        raise ArtifactError(
            f"is no safetensors file: {error}", where=CONSTANTS, fix="compile the model again"
        ) from error
    for array in arrays.values():
        array.flags.writeable = False
    return arrays
