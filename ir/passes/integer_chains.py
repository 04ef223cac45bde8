"""Look-ups after look-ups in integers: trees compare the sums themselves.

A tree behind a look-up layer asks whether ``y = activation(fma(float32(acc), scale, offset)) > t``.
Per column y is a function of one integer. Where it never falls, the answer is ``acc > T`` for an
integer T, found by evaluating y at every sum that the table can give: exactly, rounding included.
Where it never rises (a negative scale, of a batch norm say), the column's table is mirrored first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from lutcc.ir.builder import Builder
from lutcc.ir.interpreter import interpret
from lutcc.ir.module import Module, Operation
from lutcc.ir.ops.lut_accumulate import proven_bound
from lutcc.ir.passes.base import NewConstants, readers_of
from lutcc.ir.passes.dead_code import DeadCode
from lutcc.ir.types import Array, TensorType

#: What may stand between the sums and a tree.
_MAPS = ("lut_dequantize", "affine", "relu", "activation")
#: Sums that a column may take at most for it to be evaluated at all of them.
_MOST_SUMS = 1 << 20
#: Values that are evaluated at a time.
_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Chain:
    """Sums whose only readers, through functions of single elements, are trees.

    Attributes
    ----------
    sums
        The ``lut_accumulate``.
    maps
        What follows it, in order.
    trees
        The readers of what the last of these gives.
    mapped
        The trees' thresholds among the sums; None where there are none.
    """

    sums: Operation
    maps: tuple[Operation, ...]
    trees: tuple[Operation, ...]
    mapped: _Mapped | None = None


@dataclass(frozen=True)
class Cut:
    """Why sums in front of a tree become floats.

    Attributes
    ----------
    value
        The value that the tree reads.
    reason
        In a sentence.
    """

    value: str
    reason: str


@dataclass
class Found:
    """The chains of a function, and where one was cut."""

    chains: list[Chain] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)


class IntegerChains:
    """Let trees behind look-ups compare integer sums, where that gives the same codes."""

    def describe(self, module: Module) -> list[str]:
        """Return what a user is told of the chains of a module that the pass has not seen."""
        return describe(module)

    def __call__(self, module: Module) -> Module:
        """Return the module with thresholds in the sums' domain; only main is looked at."""
        made, arrays = NewConstants(module), _constants(module)
        body = list(module.main.body)
        for chain in find_chains(module).chains:
            lut = arrays[chain.sums.operands[1].name]
            body = [new for op in body for new in _rewritten(op, chain, lut, made)]
        main = replace(module.main, body=tuple(body))
        others = tuple(f for f in module.functions if f.name != "main")
        return DeadCode()(Module((main, *others), made.arrays))


def find_chains(module: Module) -> Found:
    """Return which look-ups of main feed trees in integers, and why others do not.

    Examples
    --------
    >>> from lutcc.ir import Builder, TensorType
    >>> b = Builder("main")
    >>> codes = b.param("codes", TensorType((8, 2), "uint8"))
    >>> acc = b.op("lut_accumulate", codes, b.constant("lut", np.ones((2, 4, 3), np.uint8)))
    >>> one = b.constant("one", np.ones(3, np.float32))
    >>> y = b.op("lut_dequantize", acc, one, one)
    >>> dims = b.constant("dims", np.int32([[2]]))
    >>> values = b.constant("values", np.float32([[0, 2]]))
    >>> b.returns(b.op("tree_encode", y, dims, values))
    >>> [chain.sums.results[0].name for chain in find_chains(b.module()).chains]
    ['acc']
    """
    main, found = module.main, Found()
    defined = {value.name: op for op in main.body for value in op.results}
    readers = readers_of(main)
    returned = {value.name for value in main.returns}
    arrays = _constants(module)
    seen: set[str] = set()
    for op in main.body:
        if op.opcode != "tree_encode" or op.operands[0].name in seen:
            continue
        source = op.operands[0]
        seen.add(source.name)
        maps: list[Operation] = []
        at = defined.get(source.name)
        while at is not None and at.opcode in _MAPS:
            maps.insert(0, at)
            at = defined.get(at.operands[0].name)
        if at is None or at.opcode != "lut_accumulate" or not maps:
            continue
        trees = tuple(readers[source.name])
        reason = _not_alone(at, maps, readers, returned) or _not_a_tree(trees)
        chain = Chain(at, tuple(maps), trees)
        reason = reason or _unsuited(chain, arrays)
        if not reason:
            chain = replace(chain, mapped=_Mapped.of(chain, arrays))
            reason = _unmapped(chain)
        if reason:
            found.cuts.append(Cut(source.name, reason))
        else:
            found.chains.append(chain)
    return found


def _constants(module: Module) -> Mapping[str, Array]:
    return {
        op.results[0].name: module.constants[str(op.attr("ref"))]
        for op in module.main.body
        if op.opcode == "constant"
    }


def _not_alone(
    sums: Operation,
    maps: list[Operation],
    readers: Mapping[str, list[Operation]],
    returned: set[str],
) -> str:
    """Return who else needs the floats, if anybody does."""
    for op in (sums, *maps):
        name = op.results[0].name
        if name in returned:
            return f"%{name} is returned too"
    for op in (sums, *maps[:-1]):
        if len(readers[op.results[0].name]) > 1:
            return f"%{op.results[0].name} has several readers"
    return ""


def _not_a_tree(readers: tuple[Operation, ...]) -> str:
    others = [op.opcode for op in readers if op.opcode != "tree_encode"]
    return f"{others[0]} reads the floats too" if others else ""


def _unsuited(chain: Chain, arrays: Mapping[str, Array]) -> str:
    """Return why thresholds cannot be mapped, if they cannot."""
    lut = arrays.get(chain.sums.operands[1].name)
    if lut is None or lut.dtype == np.float32:
        return "tables of floats have no integer sums" if lut is not None else "tables are computed"
    for op in (*chain.maps, *chain.trees):
        if any(v.name not in arrays for v in op.operands[1:]):
            return f"an operand of {op.opcode} is computed"
    if _sums_range(chain, lut)[1] > _MOST_SUMS:
        return "sums are too large to be evaluated one by one"
    return ""


def _unmapped(chain: Chain) -> str:
    """Return why the sums cannot be compared, if they cannot."""
    mapped = chain.mapped
    assert mapped is not None
    if mapped.bad:
        column, kind = mapped.bad
        return (
            f"column {column} neither rises nor falls all the way"
            + (f" behind {kind}" if kind else "")
            + ", and a threshold lies where it turns"
        )
    if mapped.mirrored.any() and chain.sums.attr("accumulate") == "mean":
        return "a column falls with the sum, and averages round up: mirrored, they would differ"
    return ""


def _sums_range(chain: Chain, lut: Array) -> tuple[int, int]:
    """Return the least sum of a column, and by how much the largest exceeds it, at most."""
    if chain.sums.attr("accumulate") == "mean":
        every = int(chain.sums.attr("upcast_every"))  # type: ignore[arg-type]
        return 0, proven_bound(lut, "mean", every)
    wide = lut.astype(np.int64)
    least = int(wide.min(axis=1).sum(axis=0).min())
    return least, int(wide.max(axis=1).sum(axis=0).max()) - least


@dataclass(frozen=True)
class _Mapped:
    """The thresholds of all trees of a chain among its sums.

    Attributes
    ----------
    thresholds
        (C, K) int32 of each tree; of mirrored columns, in terms of mirrored sums.
    mirrored
        (M,) which columns fall.
    bad
        A column that cannot be mapped and the activation that makes it so; None if all can.
    """

    thresholds: tuple[Array, ...]
    mirrored: Array
    bad: tuple[int, str] | None

    @classmethod
    def of(cls, chain: Chain, arrays: Mapping[str, Array]) -> _Mapped:
        lut = arrays[chain.sums.operands[1].name]
        columns = lut.shape[2]
        least, span = _sums_range(chain, lut)
        sums = np.arange(least, least + span + 1, dtype=np.int32)
        mirrored = np.zeros(columns, bool)
        used = [arrays[tree.operands[1].name] for tree in chain.trees]
        values = [arrays[tree.operands[2].name] for tree in chain.trees]
        found = [np.full(v.shape, np.iinfo(np.int32).max, np.int32) for v in values]
        read = np.unique(np.concatenate([dims.ravel() for dims in used]))
        for column, y in _evaluated(chain, arrays, sums, read):
            places = [
                _nodes_of(dims, v.shape[1], column) for dims, v in zip(used, values, strict=True)
            ]
            wanted = np.concatenate([v[place] for v, place in zip(values, places, strict=True)])
            got, falls = _among(sums, y, wanted)
            if got is None:
                kinds = [str(op.attr("kind")) for op in chain.maps if op.opcode == "activation"]
                kinds += [
                    str(op.attr("activation")) for op in chain.maps if op.has_attr("activation")
                ]
                return cls((), mirrored, (column, ", ".join(k for k in kinds if k != "none")))
            mirrored[column] = falls
            if falls:
                got = _mirror(got, lut)
            parts = np.split(got, np.cumsum([int(place.sum()) for place in places])[:-1])
            for target, place, part in zip(found, places, parts, strict=True):
                target[place] = part
        return cls(tuple(found), mirrored, None)


def _nodes_of(splitdims: Array, entries: int, column: int) -> Array:
    """Return (C, K) which thresholds are compared with a column."""
    levels = np.zeros(entries, np.intp)
    for level in range(splitdims.shape[1]):
        levels[2**level : 2 ** (level + 1)] = level
    place = splitdims[:, levels] == column
    place[:, 0] = False
    return place


def _evaluated(
    chain: Chain, arrays: Mapping[str, Array], sums: Array, columns: Array
) -> Iterator[tuple[int, Array]]:
    """Yield each column and what it becomes for every sum: (len(sums),) float32."""
    each = max(1, _AT_ONCE // len(sums))
    for start in range(0, len(columns), each):
        some = columns[start : start + each]
        b = Builder("main")
        value = b.param("acc", TensorType((len(sums), len(some)), "int32"))
        for number, op in enumerate(chain.maps):
            vectors = [
                b.constant(f"c{number}_{i}", np.ascontiguousarray(arrays[v.name][some]))
                for i, v in enumerate(op.operands[1:])
            ]
            value = b.op(op.opcode, value, *vectors, **dict(op.attrs))
        b.returns(value)
        grid = np.repeat(sums[:, None], len(some), 1)
        (found,) = interpret(b.module(), [grid])
        yield from zip(some.tolist(), np.ascontiguousarray(found.T), strict=True)


def _among(sums: Array, y: Array, thresholds: Array) -> tuple[Array | None, bool]:
    """Return for each threshold t the largest sum that is not above it, and whether y falls.

    ``y(sum) > t`` is ``sum > T`` where y rises, ``sum < T + 1``... where it falls: then T is the
    largest sum with ``y > t``, so that ``sum <= T`` is meant. None if neither holds for some t.
    """
    if np.isnan(y).any() or np.isnan(thresholds).any():
        above = y[None, :] > thresholds[:, None]
        if not (above == above[:, :1]).all():
            return None, False
        return np.where(above[:, 0], sums[0] - 1, sums[-1]).astype(np.int32), False
    steps = np.diff(y)
    if (steps >= 0).all():
        return (sums[0] - 1 + np.searchsorted(y, thresholds, "right")).astype(np.int32), False
    if (steps <= 0).all():
        above = len(y) - np.searchsorted(y[::-1], thresholds, "right")
        return (sums[0] - 1 + above).astype(np.int32), True
    above = y[None, :] > thresholds[:, None]
    changes = np.diff(above.astype(np.int8), axis=1)
    if (changes >= 0).all():
        return (sums[0] - 1 + (~above).sum(1)).astype(np.int32), False
    if (changes <= 0).all():
        return (sums[0] - 1 + above.sum(1)).astype(np.int32), True
    return None, False


def _mirror(thresholds: Array, lut: Array) -> Array:
    """Return the thresholds of mirrored sums: ``sum <= T`` is ``mirrored > mirror(T) - 1``."""
    return (_mirrored_zero(lut) - thresholds.astype(np.int64) - 1).astype(np.int32)


def _mirrored_zero(lut: Array) -> int:
    """Return what a sum of 0 becomes when each entry e is replaced by 255 - e, or -1 - e."""
    return (255 if lut.dtype == np.uint8 else -1) * lut.shape[0]


def _rewritten(op: Operation, chain: Chain, lut: Array, made: NewConstants) -> list[Operation]:
    """Return what becomes of an operation where the trees of a chain read its sums."""
    mapped = chain.mapped
    assert mapped is not None
    if op == chain.sums and mapped.mirrored.any():
        flipped = np.where(mapped.mirrored, ~lut, lut)  # 255 - e, or -1 - e
        table = made.make(f"{op.operands[1].name}_mirrored", flipped)
        attrs = {name: item for name, item in op.attrs if name != "bound"}
        attrs["bound"] = proven_bound(flipped, "exact", 16)
        operands = (op.operands[0], table.results[0])
        return [table, Operation(op.opcode, operands, op.results, tuple(attrs.items()))]
    if op in chain.trees:
        thresholds = mapped.thresholds[chain.trees.index(op)]
        values = made.make(f"{op.operands[2].name}_sums", thresholds)
        operands = (chain.sums.results[0], op.operands[1], values.results[0])
        return [values, replace(op, operands=operands)]
    return [op]


def describe(module: Module) -> list[str]:
    """Return what a user is told of the chains of a module, before the pass has run.

    As "kept in integers up to the trees that read them: %acc, %acc_1".
    """
    found = find_chains(module)
    lines = []
    if found.chains:
        names = ", ".join(f"%{chain.sums.results[0].name}" for chain in found.chains)
        lines.append(f"kept in integers up to the trees that read them: {names}")
    lines += [f"%{cut.value} is computed in float32: {cut.reason}" for cut in found.cuts]
    return lines
