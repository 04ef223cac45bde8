"""Estimators that learn look-ups from data."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lutcc.fit.maddness import EstimatorNotFittedError, Maddness

__all__ = ["EstimatorNotFittedError", "Maddness"]


def __getattr__(name: str) -> Any:
    if (
        name in __all__
    ):  # scikit-learn takes a second to import: only when an estimator is asked for
        return getattr(importlib.import_module("lutcc.fit.maddness"), name)
    raise AttributeError(f"module 'lutcc.fit' has no attribute {name!r}")
