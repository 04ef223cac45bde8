"""Types of the tensor IR: symbolic dimensions, element types and storage layouts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

from lutcc.errors import VerifyError, suggest

Array: TypeAlias = npt.NDArray[Any]

#: Element types and their size in bytes. The names are NumPy's; bfloat16 is that of ml_dtypes.
DTYPES: Mapping[str, int] = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "uint32": 4,
    "float32": 4,
    "int64": 8,
    "float64": 8,
}

_ML_DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}

#: Largest static dimension, factor of a symbol, and number of elements per symbol value.
MAX_DIM = 2**48
MAX_ELEMENTS = 2**60
MAX_RANK = 8

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
MAX_NAME = 200


def check_name(name: object, what: str) -> str:
    """Return ``name`` if it can be printed and parsed back; ``what`` is used in the message.

    Raises
    ------
    VerifyError
        If it is not a letter or underscore followed by letters, digits, underscores and dots.
    """
    if not isinstance(name, str) or len(name) > MAX_NAME or not _NAME.fullmatch(name):
        shown = repr(name) if len(repr(name)) < 80 else repr(name)[:77] + "..."
        raise VerifyError(
            f"{shown} is not a valid name for a {what}",
            fix="use a letter or underscore, then letters, digits, underscores and dots "
            f"(at most {MAX_NAME} characters)",
        )
    return name


def is_int(value: object) -> bool:
    """Tell whether ``value`` is a Python integer and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy dtype of an element type.

    Examples
    --------
    >>> numpy_dtype("bfloat16").itemsize
    2
    """
    return _ML_DTYPES.get(name) or np.dtype(name)


def is_float(name: str) -> bool:
    """Tell whether an element type is a floating-point type (NumPy's kind does not: bfloat16)."""
    return "float" in name


@dataclass(frozen=True, slots=True)
class Sym:
    """A dimension known only at run time: ``factor`` times the symbol ``name``, as in ``49*n``.

    Raises
    ------
    VerifyError
        If the name is not an identifier or the factor is not in 1..2**48.

    Examples
    --------
    >>> str(Sym("n", 49))
    '49*n'
    >>> Sym("n") * 4
    Sym(name='n', factor=4)
    """

    name: str
    factor: int = 1

    def __post_init__(self) -> None:
        check_name(self.name, "symbolic dimension")
        if not is_int(self.factor) or not 1 <= self.factor <= MAX_DIM:
            raise VerifyError(
                f"factor {self.factor!r} of symbolic dimension {self.name} is not in 1..2**48"
            )

    def __mul__(self, other: int) -> Sym:
        return Sym(self.name, self.factor * other)

    __rmul__ = __mul__

    def __str__(self) -> str:
        return self.name if self.factor == 1 else f"{self.factor}*{self.name}"


Dim: TypeAlias = int | Sym


def scale_dim(dim: Dim, factor: int) -> Dim:
    """Return ``factor`` times ``dim``."""
    return Sym(dim.name, dim.factor * factor) if isinstance(dim, Sym) else dim * factor


def divide_dim(dim: Dim, divisor: int) -> Dim | None:
    """Return ``dim / divisor`` where it is whole for every value of the symbol, else None."""
    size = dim.factor if isinstance(dim, Sym) else dim
    if divisor < 1 or size % divisor:
        return None
    return Sym(dim.name, size // divisor) if isinstance(dim, Sym) else size // divisor


def substitute_dim(dim: Dim, symbols: Mapping[str, Dim]) -> Dim:
    """Replace the symbol of ``dim`` by its value in ``symbols`` (left alone if it has none)."""
    if not isinstance(dim, Sym) or dim.name not in symbols:
        return dim
    return scale_dim(symbols[dim.name], dim.factor)


def shape_text(shape: Iterable[Dim]) -> str:
    """Return a shape as it is printed: ``[n, 64]``."""
    return "[" + ", ".join(str(d) for d in shape) + "]"


def element_count(shape: Iterable[Dim]) -> tuple[int, tuple[str, ...]]:
    """Return the number of elements as (coefficient, sorted symbol names).

    Two shapes hold equally many elements for every value of their symbols exactly if these pairs
    are equal.

    Examples
    --------
    >>> element_count((Sym("n", 4), 16))
    (64, ('n',))
    """
    coefficient, names = 1, list[str]()
    for dim in shape:
        if isinstance(dim, Sym):
            coefficient *= dim.factor
            names.append(dim.name)
        else:
            coefficient *= dim
    return coefficient, tuple(sorted(names))


LayoutKind: TypeAlias = Literal["row_major", "column_major", "row_blocked"]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a tensor is stored. It says nothing about its values: interpretation ignores layouts.

    ``row_major`` and ``column_major`` (rank 2) are the usual ones. ``row_blocked`` stores an (N, F)
    tensor as ``[ceil(N/rows)][ceil(F/inner)][rows][inner]``, the tails filled with zeros: with
    ``inner=1`` every block of rows is column-major inside.

    Raises
    ------
    VerifyError
        If the kind is unknown, or ``rows`` and ``inner`` do not fit it.

    Examples
    --------
    >>> str(Layout("row_blocked", rows=64))
    'row_blocked<64, 1>'
    >>> Layout("row_blocked", rows=64).storage_shape((100, 3))
    (2, 3, 64, 1)
    """

    kind: LayoutKind
    rows: int = 0
    inner: int = 1

    def __post_init__(self) -> None:
        kinds = ("row_major", "column_major", "row_blocked")
        if self.kind not in kinds:
            raise VerifyError(f"unknown layout {self.kind!r}; {suggest(str(self.kind), kinds)}")
        if self.kind == "row_blocked":
            for name, size in (("rows", self.rows), ("inner", self.inner)):
                if not is_int(size) or not 1 <= size <= MAX_DIM:
                    raise VerifyError(
                        f"layout row_blocked has {name} = {size!r}, which is not in 1..2**48"
                    )
        elif self.rows != 0 or self.inner != 1:
            raise VerifyError(
                f"layout {self.kind} takes no rows and inner, but got {self.rows!r}, {self.inner!r}"
            )

    def storage_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the stored array of a tensor of static ``shape``."""
        if self.kind == "row_major":
            return shape
        n, f = shape
        if self.kind == "column_major":
            return (f, n)
        return (-(-n // self.rows), -(-f // self.inner), self.rows, self.inner)

    def __str__(self) -> str:
        if self.kind == "row_blocked":
            return f"row_blocked<{self.rows}, {self.inner}>"
        return self.kind


ROW_MAJOR = Layout("row_major")


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape, element type and storage layout of a tensor.

    Parameters
    ----------
    shape
        Dimensions >= 1, each a number or a :class:`Sym`; at most 8 of them.
    dtype
        One of :data:`DTYPES`.
    layout
        Storage; anything but row-major needs rank 2.

    Raises
    ------
    VerifyError
        If one of these does not hold, or there are more than 2**60 elements.

    Examples
    --------
    >>> str(TensorType((Sym("n"), 64), "float32"))
    'float32[n, 64]'
    """

    shape: tuple[Dim, ...]
    dtype: str
    layout: Layout = ROW_MAJOR

    def __post_init__(self) -> None:
        if not isinstance(self.dtype, str) or self.dtype not in DTYPES:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise VerifyError(
                f"unknown element type {self.dtype!r}; {suggest(str(self.dtype), DTYPES)}"
            )
        shape = tuple(
            int(d) if isinstance(d, np.integer) else d  # pyright: ignore[reportUnnecessaryIsInstance]
            for d in self.shape
        )
        object.__setattr__(self, "shape", shape)
        if len(shape) > MAX_RANK:
            raise VerifyError(f"a tensor of rank {len(shape)}; the largest rank is {MAX_RANK}")
        for axis, dim in enumerate(shape):
            if not isinstance(dim, Sym) and not (is_int(dim) and 1 <= dim <= MAX_DIM):
                raise VerifyError(f"dimension {axis} is {dim!r}, which is not in 1..2**48")
        if element_count(shape)[0] > MAX_ELEMENTS:
            raise VerifyError(f"shape {shape_text(shape)} has more than 2**60 elements")
        if self.layout.kind != "row_major" and len(shape) != 2:
            raise VerifyError(f"layout {self.layout} needs rank 2, but the rank is {len(shape)}")

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return DTYPES[self.dtype]

    def size(self, axis: int) -> int:
        """Return one dimension, which must be a number.

        Raises
        ------
        VerifyError
            If it is symbolic.
        """
        dim = self.shape[axis]
        if isinstance(dim, Sym):
            raise VerifyError(f"dimension {axis} of {self} is symbolic, a number is needed here")
        return dim

    def sizes(self, first: int = 0) -> tuple[int, ...]:
        """Return the dimensions from ``first`` on, which must be numbers.

        Raises
        ------
        VerifyError
            If one is symbolic.
        """
        return tuple(self.size(axis) for axis in range(first, self.rank))

    @property
    def static_shape(self) -> tuple[int, ...]:
        """The shape as numbers.

        Raises
        ------
        VerifyError
            If a dimension is symbolic.
        """
        static = tuple(d for d in self.shape if not isinstance(d, Sym))
        if len(static) != len(self.shape):
            raise VerifyError(f"shape {shape_text(self.shape)} is not static")
        return static

    @property
    def nbytes(self) -> int:
        """Bytes of the elements of a static type (padding of the layout not counted)."""
        return math.prod(self.static_shape) * self.itemsize

    @property
    def symbols(self) -> frozenset[str]:
        """Names of the symbols in the shape."""
        return frozenset(d.name for d in self.shape if isinstance(d, Sym))

    def with_layout(self, layout: Layout) -> TensorType:
        """Return the same type stored in another layout."""
        return TensorType(self.shape, self.dtype, layout)

    def substitute(self, symbols: Mapping[str, Dim]) -> TensorType:
        """Return the type with symbols replaced by numbers or other symbols."""
        shape = tuple(substitute_dim(d, symbols) for d in self.shape)
        return TensorType(shape, self.dtype, self.layout)

    def __str__(self) -> str:
        text = self.dtype + shape_text(self.shape)
        return text if self.layout == ROW_MAJOR else f"{text} {self.layout}"


Attr: TypeAlias = "bool | int | float | str | Layout | tuple[Dim, ...]"


def type_of_array(array: Array) -> TensorType:
    """Return the row-major type of a NumPy array.

    Raises
    ------
    VerifyError
        If its dtype or shape has no counterpart in the IR.
    """
    return TensorType(tuple(array.shape), array.dtype.name)
