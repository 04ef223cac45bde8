"""Compressed models on disk: checkpoints are written with codebooks, tensor by tensor."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lutcc.compress.checkpoint import Checkpoint
    from lutcc.compress.compress import compress_checkpoint
    from lutcc.compress.model import compress_model
    from lutcc.compress.modules import load_into
    from lutcc.compress.stored import TensorRecord, load_compressed, read_records

_PLACES = {
    "Checkpoint": "checkpoint",
    "TensorRecord": "stored",
    "compress_checkpoint": "compress",
    "compress_model": "model",
    "load_compressed": "stored",
    "load_into": "modules",
    "read_records": "stored",
}
__all__ = [
    "Checkpoint",
    "TensorRecord",
    "compress_checkpoint",
    "compress_model",
    "load_compressed",
    "load_into",
    "read_records",
]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f"lutcc.compress.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'lutcc.compress' has no attribute {name!r}")
