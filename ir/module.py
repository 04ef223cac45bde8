"""Nodes of the IR: values, operations, functions and modules. All are immutable."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from lutcc.errors import VerifyError, suggest
from lutcc.ir.types import Array, Attr, TensorType


@dataclass(frozen=True, slots=True)
class Value:
    """A named tensor: a parameter of a function or a result of an operation."""

    name: str
    type: TensorType

    def __str__(self) -> str:
        return f"%{self.name}: {self.type}"


@dataclass(frozen=True, slots=True)
class Operation:
    """One application of an op: operands and attributes in, results out.

    Attributes are kept sorted by name, so that two operations that mean the same are equal.

    Examples
    --------
    >>> x = Value("x", TensorType((4, 8), "float32"))
    >>> Operation("relu", (x,), (Value("y", x.type),)).results[0].name
    'y'
    """

    opcode: str
    operands: tuple[Value, ...]
    results: tuple[Value, ...]
    attrs: tuple[tuple[str, Attr], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "attrs", tuple(sorted(self.attrs, key=lambda pair: pair[0])))

    def attr(self, name: str) -> Attr:
        """Return an attribute.

        Raises
        ------
        VerifyError
            If the operation has no attribute of that name.
        """
        for key, value in self.attrs:
            if key == name:
                return value
        known = suggest(name, (key for key, _ in self.attrs))
        raise VerifyError(f"{self.opcode} has no attribute {name!r}; {known}")

    def has_attr(self, name: str) -> bool:
        """Tell whether the attribute is set."""
        return any(key == name for key, _ in self.attrs)

    def with_attrs(self, **attrs: Attr) -> Operation:
        """Return the operation with these attributes set."""
        return replace(self, attrs=tuple((dict(self.attrs) | attrs).items()))

    @property
    def result(self) -> Value:
        """The only result.

        Raises
        ------
        VerifyError
            If there is not exactly one.
        """
        if len(self.results) != 1:
            raise VerifyError(f"{self.opcode} has {len(self.results)} results, not one")
        return self.results[0]


@dataclass(frozen=True, slots=True)
class Function:
    """A straight line of operations from parameters to returned values, in order of execution."""

    name: str
    params: tuple[Value, ...]
    body: tuple[Operation, ...]
    returns: tuple[Value, ...]

    @property
    def definitions(self) -> dict[str, Operation]:
        """The operation that defines each value (parameters are not in it)."""
        return {value.name: op for op in self.body for value in op.results}

    @property
    def use_counts(self) -> Counter[str]:
        """How often each value is read, returned values included."""
        counts = Counter(value.name for op in self.body for value in op.operands)
        counts.update(value.name for value in self.returns)
        return counts

    @property
    def symbols(self) -> tuple[str, ...]:
        """Symbols of the parameters' shapes, sorted."""
        return tuple(sorted({name for value in self.params for name in value.type.symbols}))

    @property
    def value_names(self) -> frozenset[str]:
        """Names of all values."""
        names = {value.name for value in self.params}
        names.update(value.name for op in self.body for value in op.results)
        return frozenset(names)

    def constant_ref(self, value: Value) -> str | None:
        """Return the name of the module constant that ``value`` stands for, or None."""
        op = self.definitions.get(value.name)
        if op is None or op.opcode != "constant":
            return None
        ref = op.attr("ref")
        return ref if isinstance(ref, str) else None


def constant_digest(array: Array) -> str:
    """Return the sha256, in hexadecimal, of an array's little-endian row-major bytes."""
    return hashlib.sha256(constant_bytes(array)).hexdigest()


def constant_bytes(array: Array) -> bytes:
    """Return an array's elements as little-endian row-major bytes."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def _frozen(array: Array) -> Array:
    native = np.asarray(array)
    if not native.dtype.isnative:
        native = native.astype(native.dtype.newbyteorder("="))
    if native.flags.writeable or not native.flags.c_contiguous:
        native = np.array(native, order="C", copy=True)
    native.flags.writeable = False
    return native


class Constants(Mapping[str, Array]):
    """Named read-only arrays; equal if they agree bit by bit (so NaN equals the same NaN)."""

    __slots__ = ("_arrays",)

    def __init__(self, arrays: Mapping[str, Array] | None = None) -> None:
        self._arrays = {name: _frozen(array) for name, array in (arrays or {}).items()}

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Constants):
            return NotImplemented
        return self.keys() == other.keys() and all(
            a.shape == other[name].shape
            and a.dtype == other[name].dtype
            and (a is other[name] or a.tobytes() == other[name].tobytes())
            for name, a in self.items()
        )

    def __hash__(self) -> int:
        return hash(frozenset((name, a.shape, a.dtype.name) for name, a in self.items()))

    def __repr__(self) -> str:
        inner = ", ".join(f"{k}: {v.dtype.name}{list(v.shape)}" for k, v in self.items())
        return f"Constants({{{inner}}})"


@dataclass(frozen=True, slots=True)
class Module:
    """Functions and the constants they refer to. ``main`` is where execution starts.

    Two modules are equal if their functions are equal and their constants agree bit by bit.

    Examples
    --------
    >>> from lutcc.ir import Builder, Sym
    >>> b = Builder("main")
    >>> b.returns(b.op("relu", b.param("x", TensorType((Sym("n"), 8), "float32"))))
    >>> [op.opcode for op in b.module().main.body]
    ['relu']
    """

    functions: tuple[Function, ...]
    constants: Mapping[str, Array] = Constants()

    def __post_init__(self) -> None:
        if not isinstance(self.constants, Constants):
            object.__setattr__(self, "constants", Constants(self.constants))

    @property
    def main(self) -> Function:
        """The function named ``main``."""
        return self.function("main")

    def function(self, name: str) -> Function:
        """Return a function by name.

        Raises
        ------
        VerifyError
            If there is none; the message suggests the nearest names.
        """
        for function in self.functions:
            if function.name == name:
                return function
        known = suggest(name, (f.name for f in self.functions))
        raise VerifyError(f"the module has no function {name!r}; {known}")

    def constant(self, name: str) -> Array:
        """Return a constant by name (read-only).

        Raises
        ------
        VerifyError
            If there is none; the message suggests the nearest names.
        """
        if name not in self.constants:
            raise VerifyError(
                f"the module has no constant {name!r}; {suggest(name, self.constants)}"
            )
        return self.constants[name]

    def replace(self, function: Function) -> Module:
        """Return the module with the function of the same name replaced, or ``function`` added."""
        kept = tuple(function if f.name == function.name else f for f in self.functions)
        if all(f.name != function.name for f in self.functions):
            kept = (*kept, function)
        return Module(kept, self.constants)

    def with_constants(self, constants: Mapping[str, Array]) -> Module:
        """Return the module with these constants in place of its own."""
        return Module(self.functions, constants)

    def canonical(self) -> Module:
        """Return the module with its values, constants and functions renamed in order.

        ``main`` keeps its name; unused constants come after the used ones.
        ``a.canonical() == b.canonical()`` holds for modules that differ in names and in the order
        of their constants only.
        """
        refs: dict[str, str] = {}
        functions = {
            f.name: f.name if f.name == "main" else f"f{i}" for i, f in enumerate(self.functions)
        }
        for function in self.functions:
            for op in function.body:
                if op.opcode == "constant":
                    refs.setdefault(str(op.attr("ref")), f"c{len(refs)}")
        for name in self.constants:
            refs.setdefault(name, f"c{len(refs)}")
        renamed = {new: self.constants[old] for old, new in refs.items() if old in self.constants}
        return Module(
            tuple(_canonical_function(f, refs, functions) for f in self.functions), renamed
        )


def _canonical_function(
    function: Function, refs: Mapping[str, str], functions: Mapping[str, str]
) -> Function:
    names: dict[str, str] = {}

    def rename(values: Iterable[Value]) -> tuple[Value, ...]:
        return tuple(Value(names.setdefault(v.name, f"v{len(names)}"), v.type) for v in values)

    params = rename(function.params)
    body: list[Operation] = []
    for op in function.body:
        operands, results = rename(op.operands), rename(op.results)
        new = Operation(op.opcode, operands, results, op.attrs)
        if op.opcode == "constant":
            new = new.with_attrs(ref=refs[str(op.attr("ref"))])
        elif op.opcode == "call":
            callee = str(op.attr("callee"))
            new = new.with_attrs(callee=functions.get(callee, callee))
        body.append(new)
    return Function(functions[function.name], params, tuple(body), rename(function.returns))
