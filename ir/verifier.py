"""The verifier: every rule of the IR, checked with messages that name both sides and the place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lutcc.errors import VerifyError, suggest
from lutcc.ir.module import Function, Module, Operation, Value
from lutcc.ir.ops import OPS
from lutcc.ir.registry import Registry
from lutcc.ir.spec import Bindings, OpDef, Scope
from lutcc.ir.types import Array, Attr, TensorType, check_name, shape_text, type_of_array

MAX_CALL_DEPTH = 32
MAX_OPERATIONS = 10**6


def place(function: str, index: int, opcode: str) -> str:
    """Return how messages name an operation: ``function @main, op 3 (tree_encode)``."""
    return f"function @{function}, op {index} ({opcode})"


def infer_types(
    opdef: OpDef,
    types: Sequence[TensorType],
    attrs: Mapping[str, Attr],
    where: str,
    scope: Scope,
) -> tuple[Bindings, tuple[TensorType, ...]]:
    """Match operands and attributes with an op and apply its shape rule.

    Raises
    ------
    VerifyError
        Always with a place.
    """
    try:
        bindings = opdef.bind(types, attrs, where, scope)
        return bindings, opdef.infer(bindings)
    except VerifyError as error:
        if error.where is not None:
            raise
        raise VerifyError(error.what, where=where, fix=error.fix) from None


def verify(module: Module, registry: Registry = OPS) -> None:
    """Check a module.

    Names are valid and unique; values are defined before they are used, with the type they are used
    at; every operation agrees with its declaration and shape rule; constants hold what their users
    need (columns that exist, bounds that are true); calls neither recurse nor nest deeper than 32,
    and run at most a million operations; shapes use only symbols of the parameters.

    Parameters
    ----------
    module
        The module.
    registry
        The ops it may use.

    Raises
    ------
    VerifyError
        At the first rule that is broken.

    Examples
    --------
    >>> verify(Module(()))
    Traceback (most recent call last):
    lutcc.errors.VerifyError: the module has no function named 'main'
    """
    functions: dict[str, Function] = {}
    for function in module.functions:
        check_name(function.name, "function")
        if function.name in functions:
            raise VerifyError(f"function @{function.name} is defined twice")
        functions[function.name] = function
    for name, array in module.constants.items():
        check_name(name, "constant")
        try:
            type_of_array(array)
        except VerifyError as error:
            raise VerifyError(error.what, where=f"constant @{name}", fix=error.fix) from None
    if "main" not in functions:
        raise VerifyError("the module has no function named 'main'")
    _check_calls(functions)
    scope = Scope(module.constants, functions)
    for function in module.functions:
        _FunctionVerifier(function, scope, registry).run()


def callees(function: Function) -> list[str]:
    """Return the names of the functions that a function calls, in order."""
    names: list[str] = []
    for op in function.body:
        if op.opcode == "call" and op.has_attr("callee"):
            name = op.attr("callee")
            if isinstance(name, str):
                names.append(name)
    return names


def _check_calls(functions: Mapping[str, Function]) -> None:
    """Refuse recursion and deep nesting; depth-first without Python recursion."""
    depth: dict[str, int] = {}
    expanded: dict[str, int] = {}
    for root in functions:
        stack: list[tuple[str, list[str]]] = [(root, callees(functions[root]))]
        while stack:
            name, waiting = stack[-1]
            if name in depth:
                stack.pop()
                continue
            if waiting:
                callee = waiting.pop()
                if callee in functions and callee not in depth:
                    if any(callee == active for active, _ in stack):
                        raise VerifyError(f"function @{callee} calls itself through @{name}")
                    stack.append((callee, callees(functions[callee])))
                continue
            known = [c for c in callees(functions[name]) if c in functions]
            depth[name] = 1 + max((depth[c] for c in known), default=0)
            expanded[name] = len(functions[name].body) + sum(expanded[c] for c in known)
            if expanded[name] > MAX_OPERATIONS:
                raise VerifyError(f"function @{name} runs more than {MAX_OPERATIONS} operations")
            if depth[name] > MAX_CALL_DEPTH:
                raise VerifyError(f"calls below function @{name} nest deeper than {MAX_CALL_DEPTH}")
            stack.pop()


@dataclass(frozen=True, slots=True)
class _KnownOperands:
    """Constant arrays and proven bounds of an operation's operands."""

    opdef: OpDef
    operands: tuple[Value, ...]
    arrays: Mapping[str, Array]
    limits: Mapping[str, int]

    def _value(self, name: str) -> str | None:
        for operand, value in zip(self.opdef.operands, self.operands, strict=False):
            if operand.name == name:
                return value.name
        return None

    def array(self, name: str) -> Array | None:
        """Return the elements of an operand that is a constant."""
        return self.arrays.get(self._value(name) or "")

    def limit(self, name: str) -> int | None:
        """Return the proven exclusive bound of an operand's elements."""
        return self.limits.get(self._value(name) or "")


class _FunctionVerifier:
    """Walks one function; keeps what is defined so far."""

    def __init__(self, function: Function, scope: Scope, registry: Registry) -> None:
        self.function = function
        self.scope = scope
        self.registry = registry
        self.defined: dict[str, TensorType] = {}
        self.arrays: dict[str, Array] = {}
        self.limits: dict[str, int] = {}

    def run(self) -> None:
        """Check parameters, operations and returned values."""
        where = f"function @{self.function.name}"
        for index, param in enumerate(self.function.params):
            self._define(param, f"{where}, parameter {index}")
        for index, op in enumerate(self.function.body):
            self._operation(op, place(self.function.name, index, op.opcode))
        if not self.function.returns:
            raise VerifyError("nothing is returned", where=where)
        for index, value in enumerate(self.function.returns):
            self._use(value, f"{where}, returned value {index}")

    def _define(self, value: Value, where: str) -> None:
        try:
            check_name(value.name, "value")
        except VerifyError as error:
            raise VerifyError(error.what, where=where, fix=error.fix) from None
        if value.name in self.defined:
            raise VerifyError(f"%{value.name} is defined twice", where=where)
        self.defined[value.name] = value.type

    def _use(self, value: Value, where: str) -> None:
        if value.name not in self.defined:
            later = value.name in self.function.value_names
            hint = "it is defined later" if later else suggest(value.name, self.defined)
            raise VerifyError(f"%{value.name} is used before it is defined; {hint}", where=where)
        if self.defined[value.name] != value.type:
            raise VerifyError(
                f"%{value.name} is used as {value.type}, but it was defined as "
                f"{self.defined[value.name]}",
                where=where,
            )

    def _operation(self, op: Operation, where: str) -> None:
        opdef = self.registry.lookup(op.opcode, where)
        for index, value in enumerate(op.operands):
            name = opdef.operands[index].name if index < len(opdef.operands) else ""
            self._use(value, f"{where}, operand {index}" + (f" {name!r}" if name else ""))
        names = [name for name, _ in op.attrs]
        for name in names:
            if names.count(name) > 1:
                raise VerifyError(f"attribute {name!r} is given twice", where=where)
        complete = opdef.complete_attrs(dict(op.attrs), where)
        for name, attr in op.attrs:
            if type(complete[name]) is not type(attr):
                raise VerifyError(
                    f"attribute {name!r} is {attr!r}, but it must be {complete[name]!r}",
                    where=where,
                )
        for name in complete:
            if name not in names:
                raise VerifyError(
                    f"attribute {name!r} is missing (its default is {complete[name]!r})",
                    where=where,
                    fix="build operations with Builder.op, which fills in defaults",
                )
        types = [value.type for value in op.operands]
        bindings, inferred = infer_types(opdef, types, complete, where, self.scope)
        self._results(op, opdef, inferred, where)
        known = _KnownOperands(opdef, op.operands, self.arrays, self.limits)
        if opdef.check is not None:
            opdef.check(bindings, known)
        if opdef.limit is not None:
            self.limits[op.results[0].name] = opdef.limit(bindings)
        if op.opcode == "constant":
            self.arrays[op.results[0].name] = self.scope.constants[bindings.attrs.str("ref")]

    def _results(
        self, op: Operation, opdef: OpDef, inferred: tuple[TensorType, ...], where: str
    ) -> None:
        if len(inferred) != len(op.results):
            raise VerifyError(
                f"{op.opcode} gives {len(inferred)} results, but {len(op.results)} are named",
                where=where,
            )
        symbols = set(self.function.symbols)
        for index, (value, wanted) in enumerate(zip(op.results, inferred, strict=True)):
            given = value.type
            if opdef.rowwise and wanted.rank == given.rank == 2:
                given = given.with_layout(
                    wanted.layout
                )  # a row-wise op may store its result in any layout
            if given != wanted:
                raise VerifyError(
                    f"result {index} %{value.name} is declared as {value.type}, but {op.opcode} "
                    f"gives {wanted}",
                    where=where,
                )
            if unknown := sorted(given.symbols - symbols):
                raise VerifyError(
                    f"result {index} %{value.name} has shape {shape_text(given.shape)}, but no "
                    "parameter "
                    f"defines the symbol {unknown[0]!r}",
                    where=where,
                )
            self._define(value, f"{where}, result {index}")
