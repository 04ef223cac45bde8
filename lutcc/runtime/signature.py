"""Names, shapes and dtypes of an artifact's inputs and outputs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lutcc.errors import InputError
from lutcc.runtime.schema import Node

#: A dimension: a fixed size, or (symbol, factor) for factor * symbol.
Dim = int | tuple[str, int]

DTYPES = ("float32", "bfloat16", "uint8", "int8", "int32", "int64", "bool")
MAX_DIM = 2**40
SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
NAME = re.compile(r"[^\x00-\x1f\x7f]{1,256}")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output: its name, shape (sizes, or (symbol, factor)) and dtype name."""

    name: str
    shape: tuple[Dim, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(dim_text, self.shape))}]"

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols of the shape, each once."""
        return tuple(dict.fromkeys(d[0] for d in self.shape if isinstance(d, tuple)))

    def numpy_dtype(self) -> np.dtype[Any]:
        """Return the dtype in native byte order."""
        return numpy_dtype(self.dtype)

    def resolve(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape with every symbol replaced by its size."""
        return tuple(d if isinstance(d, int) else d[1] * sizes[d[0]] for d in self.shape)

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's form."""
        shape = [d if isinstance(d, int) else list(d) for d in self.shape]
        return {"name": self.name, "shape": shape, "dtype": self.dtype}


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the dtype of a name; bfloat16, which NumPy lacks, from ml_dtypes."""
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes  # here, because it costs milliseconds that most processes need not pay

    return np.dtype(ml_dtypes.bfloat16)


def dim_text(dim: Dim) -> str:
    """Return a dimension as people write it: ``512``, ``n``, ``49*n``."""
    if isinstance(dim, int):
        return str(dim)
    return dim[0] if dim[1] == 1 else f"{dim[1]}*{dim[0]}"


def spec_from_node(node: Node) -> TensorSpec:
    """Read one tensor of a signature from the manifest."""
    fields = node.fields(("name", "shape", "dtype"), open_=True)
    shape: list[Dim] = []
    for dim in fields["shape"].as_list(at_most=8):
        if isinstance(dim.value, list):
            symbol, factor = dim.as_list(at_least=2, at_most=2)
            shape.append((symbol.as_str(SYMBOL, kind="a symbol"), factor.as_int(1, MAX_DIM)))
        else:
            shape.append(dim.as_int(0, MAX_DIM))
    return TensorSpec(
        fields["name"].as_str(NAME, kind="a name"), tuple(shape), fields["dtype"].as_choice(DTYPES)
    )


def spec_from_any(value: Any, where: str) -> TensorSpec:
    """Read one tensor of a signature from a TensorSpec, a mapping, or an object like them.

    Dimensions may be sizes, ``[symbol, factor]`` pairs, symbol names or ``lutcc.ir.Sym``.
    """
    if isinstance(value, TensorSpec):
        return value
    if not isinstance(value, Mapping):
        value = {key: getattr(value, key) for key in ("name", "shape", "dtype")}
    shape: list[Any] = []
    for dim in value["shape"]:
        if isinstance(dim, str):
            shape.append([dim, 1])
        elif hasattr(dim, "factor"):
            shape.append([dim.name, dim.factor])
        else:
            shape.append(list(dim) if isinstance(dim, Sequence) else int(dim))
    plain = {"name": value["name"], "shape": shape, "dtype": str(value["dtype"])}
    return spec_from_node(Node(plain, "$", where, "pass name, shape and dtype as documented"))


def bind(
    spec: TensorSpec, shape: Sequence[int], sizes: dict[str, int], *, owner: dict[str, str]
) -> None:
    """Check ``shape`` against ``spec`` and record the symbols' sizes in ``sizes``.

    ``owner`` remembers which argument fixed each symbol, for the message.

    Raises
    ------
    InputError
        With the argument's name, what was expected and what was given.
    """
    if len(shape) != len(spec.shape):
        raise InputError(
            f"expected {len(spec.shape)} dimensions ({_wanted(spec)}), got {len(shape)} "
            f"(shape {tuple(shape)})",
            where=f"argument {spec.name!r}",
            fix=_rank_fix(spec, shape),
        )
    for axis, (dim, size) in enumerate(zip(spec.shape, shape, strict=True)):
        if isinstance(dim, int):
            if size != dim:
                raise InputError(
                    f"expected shape ({_wanted(spec)}), got {tuple(shape)}: dimension {axis} "
                    f"must be {dim}, not {size}",
                    where=f"argument {spec.name!r}",
                    fix=f"pass a tensor whose dimension {axis} has {dim} elements",
                )
            continue
        symbol, factor = dim
        if size % factor:
            raise InputError(
                f"expected shape ({_wanted(spec)}), got {tuple(shape)}: dimension {axis} must be a "
                f"multiple of {factor}",
                where=f"argument {spec.name!r}",
                fix=f"pad or cut dimension {axis} to a multiple of {factor}",
            )
        count = size // factor
        if sizes.setdefault(symbol, count) != count:
            raise InputError(
                f"its {symbol} is {count} (shape {tuple(shape)}), but argument "
                f"{owner[symbol]!r} has {symbol} = {sizes[symbol]}",
                where=f"argument {spec.name!r}",
                fix=f"pass tensors that agree on {symbol}",
            )
        owner.setdefault(symbol, spec.name)


def _wanted(spec: TensorSpec) -> str:
    return ", ".join(map(dim_text, spec.shape))


def _rank_fix(spec: TensorSpec, shape: Sequence[int]) -> str:
    if len(shape) == len(spec.shape) - 1:
        return "a single row needs a leading dimension: x[None]"
    return f"reshape it to ({', '.join(map(dim_text, spec.shape))})"


#: Least and largest value (None: any) of a symbol.
Bounds = tuple[int, int | None]


def bounds_from(extra: Mapping[str, Any]) -> dict[str, Bounds]:
    """Return the bounds of symbols in a manifest's ``extra``, which may hold anything."""
    listed = extra.get("bounds")
    found: dict[str, Bounds] = {}
    for symbol, pair in listed.items() if isinstance(listed, dict) else ():
        least, most = pair if isinstance(pair, list) and len(pair) == 2 else (1, None)
        if type(least) is int and (most is None or type(most) is int):
            found[symbol] = (least, most)
    return found


def check_bounds(
    sizes: Mapping[str, int], bounds: Mapping[str, Bounds], owner: Sequence[TensorSpec]
) -> None:
    """Check the symbols' sizes of a call; ``owner`` are the inputs, for the message.

    Raises
    ------
    InputError
        With the symbol, its bounds and what was given.
    """
    for symbol, (least, most) in bounds.items():
        size = sizes.get(symbol)
        if size is None or (least <= size and (most is None or size <= most)):
            continue
        names = [spec.name for spec in owner if symbol in spec.symbols]
        raise InputError(
            f"{symbol} is {size}, and the model takes {range_text((least, most))}",
            where=f"argument {names[0]!r}" if names else None,
            fix="pass fewer, or cut them into several calls" if size > least else f"pad to {least}",
        )


def range_text(bounds: Bounds) -> str:
    """Return bounds as people write them: ``1 to 512``, ``at least 1``."""
    least, most = bounds
    return f"at least {least}" if most is None else f"{least} to {most}"


def open_sizes(inputs: Sequence[TensorSpec], bounds: Mapping[str, Bounds]) -> tuple[str, ...]:
    """Return each symbol of the inputs and its range: ``n (at least 1)``, ``length (1 to 512)``."""
    symbols = dict.fromkeys(symbol for spec in inputs for symbol in spec.symbols)
    return tuple(f"{s} ({range_text(bounds.get(s, (1, None)))})" for s in symbols)
