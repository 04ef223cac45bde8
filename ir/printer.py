"""The text form, writing. ``parse`` reads it back to an equal module."""

from __future__ import annotations

import base64
import json

import numpy as np

from lutcc.ir.module import Function, Module, Operation, constant_bytes, constant_digest
from lutcc.ir.types import Array, Attr, Layout, Sym, is_float, type_of_array

VERSION = 1
HEADER = f"lutcc.ir {VERSION}"
#: Constants of at most this many finite elements are written as numbers.
DENSE_LIMIT = 32


def to_text(module: Module, *, elide_constants: bool = False) -> str:
    """Write a module as text.

    Parameters
    ----------
    module
        A verified module.
    elide_constants
        Write the sha256 of each constant's little-endian row-major bytes in place of its elements.

    Returns
    -------
    str
        Text from which :func:`lutcc.ir.parse` makes an equal module (given the constants, if they
        are elided).

    Examples
    --------
    >>> from lutcc.ir import Builder, Sym, TensorType
    >>> b = Builder("main")
    >>> b.returns(b.op("relu", b.param("x", TensorType((Sym("n"), 64), "float32"))))
    >>> print(to_text(b.module()))
    lutcc.ir 1
    <BLANKLINE>
    func @main(%x: float32[n, 64]) {
      %y = relu(%x) : float32[n, 64]
      return %y
    }
    <BLANKLINE>
    """
    parts = [HEADER]
    if module.constants:
        parts.append(
            "\n".join(_constant(name, a, elide_constants) for name, a in module.constants.items())
        )
    parts.extend(_function(function) for function in module.functions)
    return "\n\n".join(parts) + "\n"


def _constant(name: str, array: Array, elide: bool) -> str:
    if elide:
        data = f'sha256 "{constant_digest(array)}"'
    elif array.size <= DENSE_LIMIT and (not is_float(array.dtype.name) or np.isfinite(array).all()):
        data = "dense [" + ", ".join(_element(x) for x in array.reshape(-1)) + "]"
    else:
        data = f'base64 "{base64.b64encode(constant_bytes(array)).decode("ascii")}"'
    return f"constant @{name} : {type_of_array(array)} = {data}"


def _element(x: np.generic) -> str:
    """Write one element so that its dtype's nearest value to the text is the element."""
    if x.dtype.kind == "b":
        return "true" if x else "false"
    if not is_float(x.dtype.name):
        return str(x)
    short = repr(float(str(x)))
    exact = x.dtype.type(float(short)).tobytes() == x.tobytes()
    return short if exact else repr(float(x))


def _function(function: Function) -> str:
    params = ", ".join(f"%{p.name}: {p.type}" for p in function.params)
    lines = [f"func @{function.name}({params}) {{"]
    lines.extend("  " + operation_text(op) for op in function.body)
    lines.append("  return " + ", ".join(f"%{v.name}" for v in function.returns))
    lines.append("}")
    return "\n".join(lines)


def operation_text(op: Operation) -> str:
    """Write one operation: ``%y = relu(%x) : float32[n, 64]``.

    Examples
    --------
    >>> from lutcc.ir import TensorType, Value
    >>> x = Value("x", TensorType((4,), "float32"))
    >>> operation_text(Operation("relu", (x,), (Value("y", x.type),)))
    '%y = relu(%x) : float32[4]'
    """
    results = ", ".join(f"%{v.name}" for v in op.results)
    operands = ", ".join(f"%{v.name}" for v in op.operands)
    attrs = ", ".join(f"{name} = {attr_text(value)}" for name, value in op.attrs)
    types = ", ".join(str(v.type) for v in op.results)
    return (
        f"{results} = {op.opcode}({operands})" + (f" {{{attrs}}}" if attrs else "") + f" : {types}"
    )


def attr_text(value: Attr) -> str:
    """Write an attribute: ``1``, ``true``, ``"text"``, ``(1, 49*n)``, ``layout row_major``."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, Layout):
        return f"layout {value}"
    inner = ", ".join(str(d) if isinstance(d, Sym) else str(int(d)) for d in value)
    return f"({inner},)" if len(value) == 1 else f"({inner})"
