"""What shape rules, references and checks are given: an op matched with its operands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from lutcc.errors import VerifyError
from lutcc.ir.module import Function
from lutcc.ir.types import ROW_MAJOR, Array, Attr, Dim, Layout, Sym, TensorType, substitute_dim


class Attrs:
    """Attributes by name, with one getter per kind."""

    __slots__ = ("_items", "_where")

    def __init__(self, items: Mapping[str, Attr], where: str) -> None:
        self._items = dict(items)
        self._where = where

    def __contains__(self, name: str) -> bool:
        return name in self._items

    def _wrong(self, name: str, kind: str) -> NoReturn:
        shown = self._items.get(name)
        raise VerifyError(f"attribute {name!r} is {shown!r}, not {kind}", where=self._where)

    def int(self, name: str) -> int:
        """Return an integer attribute."""
        value = self._items.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        self._wrong(name, "an integer")

    def float(self, name: str) -> float:
        """Return a float attribute."""
        value = self._items.get(name)
        return value if isinstance(value, float) else self._wrong(name, "a float")

    def bool(self, name: str) -> bool:
        """Return a boolean attribute."""
        value = self._items.get(name)
        return value if isinstance(value, bool) else self._wrong(name, "a boolean")

    def str(self, name: str) -> str:
        """Return a string attribute."""
        value = self._items.get(name)
        return value if isinstance(value, str) else self._wrong(name, "a string")

    def layout(self, name: str) -> Layout:
        """Return a layout attribute."""
        value = self._items.get(name)
        return value if isinstance(value, Layout) else self._wrong(name, "a layout")

    def shape(self, name: str) -> tuple[Dim, ...]:
        """Return a shape attribute, whose entries may be symbolic."""
        value = self._items.get(name)
        return value if isinstance(value, tuple) else self._wrong(name, "a shape")

    def ints(self, name: str) -> tuple[int, ...]:
        """Return an attribute that is a tuple of integers."""
        value = self.shape(name)
        static = tuple(d for d in value if not isinstance(d, Sym))
        return static if len(static) == len(value) else self._wrong(name, "a tuple of integers")

    def pair(self, name: str) -> tuple[int, int]:
        """Return an attribute that is a pair of integers."""
        value = self.ints(name)
        return (value[0], value[1]) if len(value) == 2 else self._wrong(name, "a pair of integers")


@dataclass(frozen=True, slots=True)
class Scope:
    """What an op may refer to by name: the module's constants and functions."""

    constants: Mapping[str, Array] = field(default_factory=dict[str, Array])
    functions: Mapping[str, Function] = field(default_factory=dict[str, Function])


@dataclass(frozen=True, slots=True)
class Bindings:
    """An op matched with the types of its operands: what its shape rule and its cost read.

    ``b["N"]`` is a dimension by name, ``b.size("K")`` one that must be a number, ``b.type("x")`` an
    operand's type.
    """

    names: tuple[str, ...]
    types: tuple[TensorType, ...]
    attrs: Attrs
    dims: Mapping[str, Dim]
    where: str
    scope: Scope

    def __getitem__(self, name: str) -> Dim:
        return self.dims[name]

    def size(self, name: str) -> int:
        """Return a dimension that must be known at compile time."""
        dim = self.dims[name]
        if isinstance(dim, Sym):
            self.fail(
                f"dimension {name} is {dim}, but it must be a number: only rows may be symbolic"
            )
        return dim

    def type(self, name: str) -> TensorType:
        """Return the type of an operand by name."""
        return self.types[self.names.index(name)]

    def require_row_major(self, name: str) -> None:
        """Refuse any other layout of an operand."""
        layout = self.type(name).layout
        if layout != ROW_MAJOR:
            index = self.names.index(name)
            self.fail(
                f"operand {index} {name!r} is stored {layout}, but it must be row_major",
                fix="put a repack before it",
            )

    def fail(self, what: str, fix: str | None = None) -> NoReturn:
        """Raise a VerifyError that names this place."""
        raise VerifyError(what, where=self.where, fix=fix)


class Known(Protocol):
    """What is known of the values of an op's operands before it runs."""

    def array(self, name: str) -> Array | None:
        """Return the elements of an operand that is a constant."""
        ...

    def limit(self, name: str) -> int | None:
        """Return a bound that every element of an integer operand is proven to be below."""
        ...


@dataclass(frozen=True, slots=True)
class ConcreteType:
    """Shape and element type of an array at run time, where a batch may be empty."""

    shape: tuple[int, ...]
    dtype: str


class Run(Protocol):
    """What a reference implementation may ask for beside its operands."""

    @property
    def attrs(self) -> Attrs:
        """The operation's attributes."""
        ...

    @property
    def results(self) -> tuple[ConcreteType, ...]:
        """The types of the results, with the symbols replaced by sizes."""
        ...

    def constant(self, name: str) -> Array:
        """Return a constant of the module."""
        ...

    def call(self, callee: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
        """Interpret another function of the module."""
        ...

    def fail(self, what: str) -> NoReturn:
        """Raise an InputError that names this place."""
        ...


def substitute_bindings(b: Bindings, symbols: Mapping[str, Dim]) -> Bindings:
    """Return the bindings with symbols replaced, in operand types and in dimensions."""
    types = tuple(t.substitute(symbols) for t in b.types)
    dims = {name: substitute_dim(d, symbols) for name, d in b.dims.items()}
    return Bindings(b.names, types, b.attrs, dims, b.where, b.scope)
