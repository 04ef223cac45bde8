"""lutcc turns the multiplications of neural networks into look-ups and compiles them.

Imports are lazy: ``import lutcc`` loads neither torch nor TVM.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# TVM's thread pool otherwise rewrites the CPU affinity of the main thread.
os.environ.setdefault("TVM_BIND_THREADS", "0")

__version__ = "0.1.0"

_SUBMODULES = (
    "bench",
    "codegen",
    "compress",
    "data",
    "errors",
    "fit",
    "frontend",
    "ir",
    "nn",
    "ops",
    "planning",
    "recipes",
    "report",
    "runtime",
    "schedules",
    "train",
    "tuning",
)
_ATTRIBUTES = {
    "Artifact": ("lutcc.runtime", "Artifact"),
    "LutccError": ("lutcc.errors", "LutccError"),
    "compile": ("lutcc.compiler", "compile"),
    "convert": ("lutcc.convert_model", "convert"),
    "convert_layerwise": ("lutcc.train.layerwise", "convert_layerwise"),
    "finetune": ("lutcc.train.finetune", "finetune"),
    "get_num_threads": ("lutcc.runtime", "get_num_threads"),
    "load": ("lutcc.runtime", "load"),
    "plan": ("lutcc.planning.api", "plan"),
    "set_num_threads": ("lutcc.runtime", "set_num_threads"),
    "tune": ("lutcc.tuning.api", "tune"),
}

if TYPE_CHECKING:
    from lutcc import bench as bench
    from lutcc import codegen as codegen
    from lutcc import compress as compress
    from lutcc import data as data
    from lutcc import errors as errors
    from lutcc import fit as fit
    from lutcc import frontend as frontend
    from lutcc import ir as ir
    from lutcc import nn as nn
    from lutcc import ops as ops
    from lutcc import planning as planning
    from lutcc import recipes as recipes
    from lutcc import report as report
    from lutcc import runtime as runtime
    from lutcc import schedules as schedules
    from lutcc import train as train
    from lutcc import tuning as tuning
    from lutcc.compiler import compile as compile
    from lutcc.convert_model import convert as convert
    from lutcc.errors import LutccError as LutccError
    from lutcc.planning.api import plan as plan
    from lutcc.runtime import Artifact as Artifact
    from lutcc.runtime import get_num_threads as get_num_threads
    from lutcc.runtime import load as load
    from lutcc.runtime import set_num_threads as set_num_threads
    from lutcc.train.finetune import finetune as finetune
    from lutcc.train.layerwise import convert_layerwise as convert_layerwise
    from lutcc.tuning.api import tune as tune


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"lutcc.{name}")
    if name in _ATTRIBUTES:
        module, attribute = _ATTRIBUTES[name]
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module 'lutcc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ATTRIBUTES, *_SUBMODULES})
