"""The builder: operations are appended one by one, result types come from the shape rules."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lutcc.errors import VerifyError
from lutcc.ir.module import Constants, Function, Module, Operation, Value
from lutcc.ir.ops import OPS
from lutcc.ir.registry import Registry
from lutcc.ir.spec import Scope
from lutcc.ir.types import Array, Attr, TensorType, check_name, type_of_array
from lutcc.ir.verifier import infer_types, place, verify


class Builder:
    """Builds one function, and a module around it.

    Parameters
    ----------
    name
        Name of the function.
    registry
        The ops that may be used.

    Examples
    --------
    >>> from lutcc.ir import Sym
    >>> b = Builder("main")
    >>> y = b.op("relu", b.param("x", TensorType((Sym("n"), 64), "float32")))
    >>> b.returns(y)
    >>> b.module().main.returns[0].type.dtype
    'float32'
    """

    def __init__(self, name: str = "main", registry: Registry = OPS) -> None:
        self.name = check_name(name, "function")
        self._registry = registry
        self._params: list[Value] = []
        self._body: list[Operation] = []
        self._returns: tuple[Value, ...] = ()
        self._values: dict[str, Value] = {}
        self._constants: dict[str, Array] = {}
        self._functions: dict[str, Function] = {}

    def _fresh(self, wanted: str) -> str:
        name, count = wanted, 0
        while name in self._values:
            count += 1
            name = f"{wanted}_{count}"
        return check_name(name, "value")

    def _define(self, name: str, type_: TensorType) -> Value:
        value = Value(self._fresh(name), type_)
        self._values[value.name] = value
        return value

    def param(self, name: str, type: TensorType) -> Value:
        """Add a parameter.

        Raises
        ------
        VerifyError
            If a value of that name exists already.
        """
        if name in self._values:
            raise VerifyError(f"%{name} is defined twice", where=f"function @{self.name}")
        value = self._define(name, type)
        self._params.append(value)
        return value

    def constant(self, name: str, array: Array) -> Value:
        """Add a constant to the module and return its value in this function.

        The same array under the same name is added once and its value returned again.

        Raises
        ------
        VerifyError
            If another array has that name, or its dtype or shape does not exist in the IR.
        """
        check_name(name, "constant")
        frozen = Constants({name: np.asarray(array)})
        type_ = type_of_array(frozen[name])
        if name in self._constants:
            if Constants({name: self._constants[name]}) != frozen:
                raise VerifyError(
                    f"constant {name!r} is defined twice with different elements",
                    where=f"function @{self.name}",
                    fix="give each constant a name of its own",
                )
            for op in self._body:
                if op.opcode == "constant" and op.attr("ref") == name:
                    return op.results[0]
        self._constants[name] = frozen[name]
        value = self._define(name, type_)
        self._body.append(Operation("constant", (), (value,), (("ref", name),)))
        return value

    def op(self, opcode: str, *operands: Value, name: str | None = None, **attrs: Attr) -> Value:
        """Append an operation that has one result, and return it.

        Parameters
        ----------
        opcode
            Name of the op.
        operands
            Values of this function.
        name
            Name of the result; by default the op's own name for it. A number is appended if it is
            taken.
        attrs
            Attributes; those with a default may be left out.

        Raises
        ------
        VerifyError
            If the operation breaks a rule; the message names both sides.
        """
        results = self.ops(opcode, *operands, names=None if name is None else (name,), **attrs)
        if len(results) != 1:
            raise VerifyError(
                f"{opcode} has {len(results)} results",
                fix="use Builder.ops, which returns them all",
            )
        return results[0]

    def ops(
        self, opcode: str, *operands: Value, names: tuple[str, ...] | None = None, **attrs: Attr
    ) -> tuple[Value, ...]:
        """Append an operation and return all of its results."""
        where = place(self.name, len(self._body), opcode)
        opdef = self._registry.lookup(opcode, where)
        for index, value in enumerate(operands):
            if self._values.get(value.name) != value:
                raise VerifyError(
                    f"operand {index} %{value.name} is not a value of this function", where=where
                )
        scope = Scope(self._constants, self._functions)
        bindings, types = infer_types(opdef, [v.type for v in operands], attrs, where, scope)
        complete = opdef.complete_attrs(attrs, where)
        wanted = names or opdef.results
        results = tuple(
            self._define(wanted[min(i, len(wanted) - 1)], type_) for i, type_ in enumerate(types)
        )
        del bindings
        self._body.append(Operation(opcode, operands, results, tuple(complete.items())))
        return results

    def add_function(
        self, function: Function, constants: Mapping[str, Array] | None = None
    ) -> None:
        """Add another function to the module, with the constants that it refers to."""
        if function.name == self.name or function.name in self._functions:
            raise VerifyError(f"function @{function.name} is defined twice")
        self._functions[function.name] = function
        for name, array in (constants or {}).items():
            frozen = Constants({name: array})
            if name in self._constants and Constants({name: self._constants[name]}) != frozen:
                raise VerifyError(f"constant {name!r} is defined twice with different elements")
            self._constants[name] = frozen[name]

    def call(self, callee: str, *operands: Value) -> tuple[Value, ...]:
        """Append a call of a function added by :meth:`add_function`; return its results."""
        return self.ops("call", *operands, callee=callee)

    def returns(self, *values: Value) -> None:
        """Say what the function returns."""
        for index, value in enumerate(values):
            if self._values.get(value.name) != value:
                raise VerifyError(
                    f"returned value {index} %{value.name} is not a value of this function",
                    where=f"function @{self.name}",
                )
        self._returns = values

    def function(self) -> Function:
        """Return the function alone."""
        return Function(self.name, tuple(self._params), tuple(self._body), self._returns)

    @property
    def constants(self) -> Constants:
        """The constants so far."""
        return Constants(self._constants)

    def module(self) -> Module:
        """Return the verified module.

        Raises
        ------
        VerifyError
            If it breaks a rule, for example if nothing is returned.
        """
        functions = (self.function(), *self._functions.values())
        module = Module(functions, self._constants)
        verify(module, self._registry)
        return module
