"""What a soak calls an artifact with: given or random inputs, and the results they must give."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lutcc.errors import LutccError
from lutcc.runtime.bfloat16 import as_numpy
from lutcc.runtime.signature import Bounds, TensorSpec, bind, numpy_dtype

Call = Callable[..., Any]
Inputs = Sequence[Any]

#: Sizes of every symbol but the batch, taken in turns.
OTHER_SIZES = (16, 7, 33, 64)


@dataclass(frozen=True, slots=True)
class Draw:
    """Inputs, and the results of the first call with them."""

    inputs: tuple[Any, ...]
    expected: tuple[np.ndarray, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """Inputs of the same shapes: the sizes by which reports name them, and several draws."""

    name: str
    draws: tuple[Draw, ...]


def random_inputs(
    specs: Sequence[TensorSpec],
    rows: Sequence[int],
    seed: int = 0,
    bounds: Mapping[str, Bounds] | None = None,
) -> list[tuple[str, list[Inputs]]]:
    """Make random inputs for several batch sizes: two draws for each.

    Parameters
    ----------
    specs
        The artifact's inputs.
    rows
        Sizes of the batch: the symbol that dimension 0 of an input has. Other symbols take the
        sizes of :data:`OTHER_SIZES` in turns. If nothing is symbolic, there is one case.
    seed
        Of the generator. Floats are normal; integers and booleans are 0 or 1, which are within
        the range of any table and valid as flags.
    bounds
        Least and largest size of symbols; sizes beyond are brought within.

    Returns
    -------
    (name, draws) of each case, for :func:`make_cases`.

    Examples
    --------
    >>> cases = random_inputs([TensorSpec("x", (("n", 1), 3), "float32")], rows=(1, 4))
    >>> [(name, [x.shape for (x,) in draws]) for name, draws in cases]
    [('n=1', [(1, 3), (1, 3)]), ('n=4', [(4, 3), (4, 3)])]
    """
    random = np.random.default_rng(seed)
    symbols = list(dict.fromkeys(s for spec in specs for s in spec.symbols))
    batch = batch_symbol(specs)
    cases: list[tuple[str, list[Inputs]]] = []
    for index, count in enumerate(rows if symbols else (0,)):
        other = OTHER_SIZES[index % len(OTHER_SIZES)]
        sizes = {
            symbol: _within(count if symbol == batch else other, (bounds or {}).get(symbol))
            for symbol in symbols
        }
        if _name(sizes) in (name for name, _ in cases):
            continue
        cases.append(
            (_name(sizes), [[_random(spec, sizes, random) for spec in specs] for _ in range(2)])
        )
    return cases


def _within(size: int, bounds: Bounds | None) -> int:
    least, most = bounds or (1, None)
    return max(least, size if most is None else min(size, most))


def batch_symbol(specs: Sequence[TensorSpec]) -> str | None:
    """Return the symbol of the batch: the first one that stands in a dimension 0."""
    first = (spec.shape[0] for spec in specs if spec.shape)
    return next((dim[0] for dim in first if isinstance(dim, tuple)), None)


def _name(sizes: dict[str, int]) -> str:
    return ", ".join(f"{symbol}={size}" for symbol, size in sizes.items()) or "fixed shape"


def _random(spec: TensorSpec, sizes: dict[str, int], random: np.random.Generator) -> Any:
    shape = spec.resolve(sizes)
    if spec.dtype in ("float32", "bfloat16"):
        return random.standard_normal(shape, dtype=np.float32).astype(numpy_dtype(spec.dtype))
    return random.integers(0, 2, shape).astype(numpy_dtype(spec.dtype))


def given_inputs(specs: Sequence[TensorSpec], inputs: Inputs) -> list[tuple[str, list[Inputs]]]:
    """Derive cases from given inputs: as they are, and (open batch) rolled, first and last row.

    Different draws of the same shape show whether calls at the same time get into each other's
    way; with a fixed batch there is one draw only.

    Raises
    ------
    InputError
        When a shape is not the artifact's.
    """
    sizes: dict[str, int] = {}
    owner: dict[str, str] = {}
    for spec, value in zip(specs, inputs, strict=True):
        bind(spec, tuple(value.shape), sizes, owner=owner)
    batch = batch_symbol(specs)
    n = 0 if batch is None else sizes[batch]
    if batch is None or n < 2:
        return [(_name(sizes), [inputs])]

    def rows(start: int, stop: int) -> list[Any]:
        """Take rows ``start`` to ``stop``, counted around the end, of every batched input."""
        taken: list[Any] = []
        for spec, value in zip(specs, inputs, strict=True):
            dim = spec.shape[0] if spec.shape else 0
            if not isinstance(dim, tuple) or dim[0] != batch:
                taken.append(value)
                continue
            first, last = start * dim[1], stop * dim[1]
            taken.append(value[np.arange(first, last) % len(value)])
        return taken

    return [
        (_name(sizes), [inputs, rows(n // 2, n // 2 + n)]),
        (_name({**sizes, batch: 1}), [rows(0, 1), rows(n - 1, n)]),
    ]


def make_cases(
    call: Call, named: Sequence[tuple[str, Sequence[Inputs]]]
) -> tuple[list[Case], float]:
    """Call once with each draw and keep the results; also return the longest call, in seconds.

    Raises
    ------
    LutccError
        When a call fails: what was wrong, and with which inputs.
    """
    cases: list[Case] = []
    longest = 0.0
    for name, draws in named:
        made: list[Draw] = []
        for inputs in draws:
            start = time.perf_counter()
            try:
                results = call(*inputs)
            except LutccError as error:
                raise type(error)(
                    f"{error.what} (in the first call with {name})", where=error.where,
                    fix=error.fix or "give inputs that the model takes",
                ) from error  # fmt: skip
            longest = max(longest, time.perf_counter() - start)
            made.append(Draw(tuple(inputs), tuple(as_numpy(r).copy() for r in _tuple(results))))
        cases.append(Case(name, tuple(made)))
    return cases, longest


def difference(draw: Draw, results: Any) -> str | None:
    """Tell how results differ from those expected, bit by bit; None if they do not."""
    values = _tuple(results)
    if len(values) != len(draw.expected):
        return f"{len(values)} outputs, not {len(draw.expected)}"
    for index, (value, want) in enumerate(zip(values, draw.expected, strict=True)):
        got = as_numpy(value)
        if got.shape != want.shape or got.dtype != want.dtype:
            return f"output {index} is {got.dtype} {got.shape}, not {want.dtype} {want.shape}"
        differs = _bits(got) != _bits(want)
        if differs.any():
            first = int(differs.argmax())
            place = tuple(int(i) for i in np.unravel_index(first, want.shape))
            return (
                f"output {index}: {int(differs.sum())} of {want.size} elements differ, the first "
                f"at {place}: {got.reshape(-1)[first]!s}, not {want.reshape(-1)[first]!s}"
            )
    return None


def _tuple(results: Any) -> tuple[Any, ...]:
    return results if isinstance(results, tuple) else (results,)


def _bits(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.dtype(f"u{array.dtype.itemsize}"))
