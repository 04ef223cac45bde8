"""IR modules to machine code: lowering, building, linking."""

from __future__ import annotations

from lutcc.codegen.build import build, build_module
from lutcc.codegen.lower import Lowered, lower, prepare
from lutcc.codegen.program import Program, TensorSpec

__all__ = ["Lowered", "Program", "TensorSpec", "build", "build_module", "lower", "prepare"]
