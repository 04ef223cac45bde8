"""The tensor IR of lutcc: types, ops, a text form, and an interpreter that defines the ops.

It knows nothing of TVM, Triton or torch. A module is built with :class:`Builder`, checked by
:func:`verify`, written and read by :func:`to_text` and :func:`parse`, run by :func:`interpret`,
counted by :func:`cost`, and rewritten by the passes in :mod:`lutcc.ir.passes`.
"""

from __future__ import annotations

if __name__ != "lutcc.ir":
    raise ImportError(f"this package is lutcc.ir and must not be imported as {__name__!r}")

from lutcc.errors import ParseError, VerifyError
from lutcc.ir.builder import Builder
from lutcc.ir.costs import Cost, OpRow, cost
from lutcc.ir.interpreter import interpret
from lutcc.ir.layouts import from_storage, to_storage
from lutcc.ir.module import Constants, Function, Module, Operation, Value, constant_digest
from lutcc.ir.ops import OPS
from lutcc.ir.parser import parse
from lutcc.ir.printer import operation_text, to_text
from lutcc.ir.registry import Registry
from lutcc.ir.spec import AttrSpec, OpCost, OpDef, Operand
from lutcc.ir.types import ROW_MAJOR, Attr, Dim, Layout, Sym, TensorType
from lutcc.ir.verifier import verify

__all__ = [
    "OPS",
    "ROW_MAJOR",
    "Attr",
    "AttrSpec",
    "Builder",
    "Constants",
    "Cost",
    "Dim",
    "Function",
    "Layout",
    "Module",
    "OpCost",
    "OpDef",
    "OpRow",
    "Operand",
    "Operation",
    "ParseError",
    "Registry",
    "Sym",
    "TensorType",
    "Value",
    "VerifyError",
    "constant_digest",
    "cost",
    "from_storage",
    "interpret",
    "operation_text",
    "parse",
    "to_storage",
    "to_text",
    "verify",
]
