"""The NumPy interpreter, which defines what a module computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from lutcc.errors import InputError
from lutcc.ir.module import Function, Module
from lutcc.ir.ops import OPS
from lutcc.ir.registry import Registry
from lutcc.ir.spec import Attrs, ConcreteType
from lutcc.ir.types import Array, Dim, Sym, TensorType
from lutcc.ir.verifier import place


def bind_inputs(function: Function, arrays: Sequence[Array]) -> dict[str, int]:
    """Check inputs against a function's parameters and return the values of its symbols.

    Raises
    ------
    InputError
        If the number, an element type, a rank or a dimension does not fit, or a symbol gets two
        values.
    """
    where = f"function @{function.name}"
    if len(arrays) != len(function.params):
        names = ", ".join(str(p) for p in function.params)
        raise InputError(
            f"got {len(arrays)} inputs for {len(function.params)} parameters ({names})", where=where
        )
    symbols: dict[str, int] = {}
    for param, array in zip(function.params, arrays, strict=True):
        place_ = f"{where}, input {param}"
        if array.dtype.name != param.type.dtype:
            raise InputError(f"got element type {array.dtype.name}", where=place_)
        if array.ndim != param.type.rank:
            raise InputError(f"got shape {list(array.shape)} of rank {array.ndim}", where=place_)
        for axis, (dim, size) in enumerate(zip(param.type.shape, array.shape, strict=True)):
            if not isinstance(dim, Sym):
                if dim != size:
                    raise InputError(f"dimension {axis} must be {dim}, got {size}", where=place_)
                continue
            if size % dim.factor:
                raise InputError(
                    f"dimension {axis} is {dim}, but {size} is not a multiple of {dim.factor}",
                    where=place_,
                )
            known = symbols.setdefault(dim.name, size // dim.factor)
            if known * dim.factor != size:
                raise InputError(
                    f"dimension {axis} is {dim} with {dim.name} = {known} from another dimension, "
                    f"but got {size}",
                    where=place_,
                )
    return symbols


@dataclass(frozen=True, slots=True)
class _Run:
    """What a reference implementation may ask for; see spec.Run."""

    attrs: Attrs
    results: tuple[ConcreteType, ...]
    where: str
    module: Module
    registry: Registry

    def constant(self, name: str) -> Array:
        """Return a constant of the module."""
        return self.module.constant(name)

    def call(self, callee: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
        """Interpret another function of the module."""
        return _interpret(self.module, self.module.function(callee), arrays, self.registry)

    def fail(self, what: str) -> NoReturn:
        """Raise an InputError that names this place."""
        raise InputError(what, where=self.where)


def interpret(
    module: Module,
    inputs: Sequence[Array],
    *,
    function: str = "main",
    registry: Registry = OPS,
) -> list[Array]:
    """Run a module in NumPy: slow, and right by definition.

    Parameters
    ----------
    module
        A verified module.
    inputs
        One array per parameter, of its element type, any strides; a symbolic dimension takes any
        size >= 0.
    function
        Which function to run.
    registry
        The ops that the module uses.

    Returns
    -------
    list of arrays
        One per returned value.

    Raises
    ------
    InputError
        If an input does not fit its parameter, or holds what an op refuses (a code past its table).

    Examples
    --------
    >>> from lutcc.ir import Builder, Sym
    >>> b = Builder("main")
    >>> b.returns(b.op("relu", b.param("x", TensorType((Sym("n"), 2), "float32"))))
    >>> interpret(b.module(), [np.array([[-1, 2]], np.float32)])[0].tolist()
    [[0.0, 2.0]]
    """
    arrays = [np.asarray(a) for a in inputs]
    return list(_interpret(module, module.function(function), arrays, registry))


def _interpret(
    module: Module, function: Function, arrays: Sequence[Array], registry: Registry
) -> tuple[Array, ...]:
    symbols = bind_inputs(function, arrays)
    values: dict[str, Array] = {
        param.name: array for param, array in zip(function.params, arrays, strict=True)
    }
    last_use = {v.name: i for i, op in enumerate(function.body) for v in op.operands}
    kept = {v.name for v in function.returns}
    for index, op in enumerate(function.body):
        where = place(function.name, index, op.opcode)
        types = tuple(concrete_type(v.type, symbols) for v in op.results)
        run = _Run(Attrs(dict(op.attrs), where), types, where, module, registry)
        results = registry.lookup(op.opcode, where).reference(
            run, *(values[v.name] for v in op.operands)
        )
        for value, type_, array in zip(op.results, types, results, strict=True):
            if array.shape != type_.shape or array.dtype.name != type_.dtype:
                raise AssertionError(
                    f"{where}: the reference gave {array.dtype.name}{list(array.shape)}, but the "
                    f"type is {type_}"
                )
            values[value.name] = array
        for value in op.operands:  # memory of values that are read no more
            if last_use[value.name] == index and value.name not in kept:
                values.pop(value.name, None)
    return tuple(values[v.name] for v in function.returns)


def concrete_type(type_: TensorType, symbols: Mapping[str, int]) -> ConcreteType:
    """Return shape and element type with the symbols replaced by sizes >= 0."""

    def size(dim: Dim) -> int:
        return dim.factor * symbols[dim.name] if isinstance(dim, Sym) else dim

    return ConcreteType(tuple(size(d) for d in type_.shape), type_.dtype)
