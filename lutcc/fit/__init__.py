"""Estimators that learn look-ups from data."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lutcc.fit.maddness import EstimatorNotFittedError, Maddness
    from lutcc.fit.weight_codebooks import WeightCodebooks

__all__ = ["EstimatorNotFittedError", "Maddness", "WeightCodebooks"]

_HOMES = {"WeightCodebooks": "lutcc.fit.weight_codebooks"}


def __getattr__(name: str) -> Any:
    if (
        name in __all__
    ):  # scikit-learn takes a second to import: only when an estimator is asked for
        home = _HOMES.get(name, "lutcc.fit.maddness")
        return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'lutcc.fit' has no attribute {name!r}")
