"""bfloat16 between NumPy, which has it from ml_dtypes, and torch, of which artifacts take it."""

from __future__ import annotations

from typing import Any

import numpy as np


def to_torch(array: np.ndarray) -> Any:
    """Return a bfloat16 NumPy array as a torch tensor (a copy)."""
    import torch

    return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)


def as_numpy(value: Any) -> np.ndarray:
    """Return what an artifact gave (a NumPy array or a torch CPU tensor) as a NumPy array."""
    if isinstance(value, np.ndarray):
        return value
    if str(value.dtype) != "torch.bfloat16":
        return value.numpy()
    import torch

    from lutcc.runtime.signature import numpy_dtype

    return value.contiguous().view(torch.int16).numpy().view(numpy_dtype("bfloat16"))
