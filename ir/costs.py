"""Costs of a module: look-ups, FLOPs and bytes, per operation and in total."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lutcc.errors import InputError
from lutcc.ir.bindings import Scope, substitute_bindings
from lutcc.ir.module import Function, Module
from lutcc.ir.ops import OPS
from lutcc.ir.registry import Registry
from lutcc.ir.spec import OpCost
from lutcc.ir.types import Dim, Sym, TensorType, substitute_dim
from lutcc.ir.verifier import place


@dataclass(frozen=True, slots=True)
class OpRow:
    """The cost of one operation.

    Attributes
    ----------
    function, index, opcode
        The place.
    result
        Type of its first result, with symbols replaced.
    cost
        What it does.
    """

    function: str
    index: int
    opcode: str
    result: str
    cost: OpCost


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a module at given sizes.

    Attributes
    ----------
    symbols
        The sizes it was computed for.
    rows
        One per operation, callees in the order they run.
    total
        Their sum: traffic if nothing stays in a cache between operations.
    constant_bytes
        Bytes of the constants that the module refers to.
    io_bytes
        Bytes of main's parameters and results: the least that any implementation moves beside the
        constants it touches.
    """

    symbols: Mapping[str, int]
    rows: tuple[OpRow, ...]
    total: OpCost
    constant_bytes: int
    io_bytes: int


def cost(
    module: Module,
    n: int = 1024,
    *,
    sizes: Mapping[str, int] | None = None,
    registry: Registry = OPS,
) -> Cost:
    """Count what a module does.

    Parameters
    ----------
    module
        A verified module.
    n
        Size of every symbol that ``sizes`` does not name; at least 1.
    sizes
        Sizes by symbol.
    registry
        The ops that the module uses.

    Raises
    ------
    InputError
        If a size is below 1.

    Examples
    --------
    >>> from lutcc.ir import Builder
    >>> b = Builder("main")
    >>> b.returns(b.op("relu", b.param("x", TensorType((Sym("n"), 64), "float32"))))
    >>> cost(b.module(), n=2).total.flops
    128
    """
    symbols = {name: (sizes or {}).get(name, n) for name in module.main.symbols}
    for name, size in symbols.items():
        if size < 1:
            raise InputError(f"size {size} of symbol {name!r} is below 1", where="cost")
    rows: list[OpRow] = []
    _collect(module, module.main, symbols, registry, rows)
    total = sum((row.cost for row in rows), OpCost())
    refs = {
        str(op.attr("ref")) for f in module.functions for op in f.body if op.opcode == "constant"
    }
    io = (*module.main.params, *module.main.returns)
    return Cost(
        symbols=symbols,
        rows=tuple(rows),
        total=total,
        constant_bytes=sum(module.constants[ref].nbytes for ref in refs),
        io_bytes=sum(_static(v.type, symbols).nbytes for v in io),
    )


def _static(type_: TensorType, symbols: Mapping[str, int]) -> TensorType:
    return type_.substitute(symbols)


def _collect(
    module: Module,
    function: Function,
    symbols: Mapping[str, int],
    registry: Registry,
    rows: list[OpRow],
) -> None:
    scope = Scope(module.constants, {f.name: f for f in module.functions})
    for index, op in enumerate(function.body):
        where = place(function.name, index, op.opcode)
        opdef = registry.lookup(op.opcode, where)
        results = tuple(_static(v.type, symbols) for v in op.results)
        bound = opdef.bind([v.type for v in op.operands], dict(op.attrs), where, scope)
        value = opdef.cost(substitute_bindings(bound, symbols), results)
        rows.append(OpRow(function.name, index, op.opcode, str(results[0]), value))
        if op.opcode == "call":
            callee = module.function(str(op.attr("callee")))
            inner = _callee_symbols(callee, [v.type for v in op.operands], symbols)
            _collect(module, callee, inner, registry, rows)


def _callee_symbols(
    callee: Function, operands: list[TensorType], symbols: Mapping[str, int]
) -> dict[str, int]:
    inner: dict[str, int] = {}
    for param, given in zip(callee.params, operands, strict=True):
        for wanted, dim in zip(param.type.shape, given.shape, strict=True):
            if isinstance(wanted, Sym):
                inner[wanted.name] = _size(dim, symbols) // wanted.factor
    return inner


def _size(dim: Dim, symbols: Mapping[str, int]) -> int:
    size = substitute_dim(dim, symbols)
    return size if isinstance(size, int) else math.prod((size.factor, symbols[size.name]))
