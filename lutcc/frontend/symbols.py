"""Open sizes of an exported program: their names, their bounds, and products of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram
from torch.fx import Node

from lutcc.frontend.size_names import BATCH as BATCH
from lutcc.frontend.size_names import PRODUCT as PRODUCT
from lutcc.ir.types import Dim, Sym

_LOWEST = 2
"""torch specialises on 0 and 1, so that a lower bound up to this says nothing of the model."""


def named_symbols(inputs: Sequence[Node]) -> dict[sympy.Symbol, str]:
    """Return the name of each open size of the inputs, in order of appearance.

    The first that is a dimension 0 is called ``n``, unless another one has that name; the rest are
    called as in ``torch.export.Dim``, or as the exporter does where a loaded program has lost that.
    """
    given: dict[sympy.Symbol, str | None] = {}
    leading: sympy.Symbol | None = None
    for node in inputs:
        for axis, size in enumerate(node.meta["val"].shape):
            for symbol in sorted(expression(size).free_symbols, key=str):
                given[symbol] = given.get(symbol) or _given_name(node, axis, size)
                if axis == 0 and leading is None:
                    leading = symbol
    leading = leading or next(iter(given), None)
    names: dict[sympy.Symbol, str] = {}
    batch_is_named = BATCH in given.values()
    for symbol, name in given.items():
        if symbol is leading and not batch_is_named:
            name = BATCH
        if name is None or name in names.values():
            name = str(symbol)
        names[symbol] = name
    return names


def _given_name(node: Node, axis: int, size: torch.SymInt) -> str | None:
    """Return the name of the ``torch.export.Dim`` of an input's dimension, if it is known."""
    if not expression(size).is_Symbol:
        return None
    names = getattr(size.node.shape_env, "source_name_to_debug_name", None) or {}
    name = names.get(f"L['{node.name}'].size()[{axis}]")
    return name if name is not None and re.fullmatch(r"[A-Za-z_]\w{0,63}", name) else None


def bounds(
    program: ExportedProgram, symbols: Mapping[sympy.Symbol, str]
) -> dict[str, tuple[int, int | None]]:
    """Return the least and the largest value (None: any) of each open size."""
    found: dict[str, tuple[int, int | None]] = {}
    for symbol, name in symbols.items():
        known = program.range_constraints.get(symbol)
        least = 1 if known is None or known.lower <= _LOWEST else int(known.lower)
        most = None if known is None or known.upper > 2**31 else int(known.upper)
        found[name] = (least, most)
    return found


def expression(size: int | torch.SymInt) -> Any:
    """Return a size as an expression of sympy."""
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(int(size))


def as_dim(size: int | torch.SymInt, symbols: Mapping[sympy.Symbol, str]) -> Dim | None:
    """Return a number, or a multiple of open sizes; None for any other expression.

    Examples
    --------
    >>> as_dim(x.shape[0] * x.shape[1] * 4, symbols)
    Sym(name='length.n', factor=4)
    """
    expr = expression(size)
    if expr.is_Integer:
        return int(expr)
    factor, rest = expr.as_coeff_Mul()
    parts = rest.args if rest.is_Mul else (rest,)
    if not factor.is_Integer or factor < 1 or not all(part in symbols for part in parts):
        return None
    return Sym(product_name(symbols[part] for part in parts), int(factor))


def product_name(names: Any) -> str:
    """Return the name of a product of open sizes.

    Examples
    --------
    >>> product_name(["n", "length"])
    'length.n'
    """
    return PRODUCT.join(sorted(part for name in names for part in name.split(PRODUCT)))
