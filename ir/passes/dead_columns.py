"""Columns that no tree compares are not computed, and others lie as trees compare them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lutcc.ir.module import Module, Operation, Value
from lutcc.ir.passes.base import NewConstants, readers_of
from lutcc.ir.passes.chain_notes import LookupNote, with_dead_columns
from lutcc.ir.passes.chains import MAPS
from lutcc.ir.passes.choose_accumulate import bounded
from lutcc.ir.passes.dead_code import DeadCode
from lutcc.ir.types import Array

#: Producers of columns, and the operands and axes of theirs that outputs run along.
_PRODUCERS: Mapping[str, tuple[tuple[int, int], ...]] = {
    "lut_accumulate": ((1, 2),),
    "linear": ((1, 0), (2, 0)),
}
_TREES = ("tree_encode", "interval_encode")
#: Columns that kernels compute together.
_VECTOR = 16


@dataclass(frozen=True)
class Dead:
    """Columns of a producer that only trees read: not all of them, or not in the trees' order.

    Attributes
    ----------
    producer
        Makes the columns.
    maps
        What follows, in order.
    trees
        The readers.
    kept
        The columns that are compared, as the first tree does: the roots of its codebooks, then
        their next levels, so that a level's columns follow each other. A column that is compared
        twice is there twice, unless more vectors of columns would be computed for that.
    places
        For each reader, where among ``kept`` each node of a level finds its column.
    """

    producer: Operation
    maps: tuple[Operation, ...]
    trees: tuple[Operation, ...]
    kept: Array
    places: tuple[Array, ...]

    @property
    def computed(self) -> int:
        """How many different columns are compared."""
        return len(np.unique(self.kept))

    @property
    def columns(self) -> int:
        """How many columns there are without the pass."""
        return self.producer.results[0].type.size(1)


class DeadColumns:
    """Take columns out of tables and weights that no tree behind them compares; sort the others."""

    def __call__(self, module: Module) -> Module:
        """Return the module with narrower values; only main is looked at."""
        return self.noting(module, [])

    def noting(self, module: Module, notes: list[LookupNote]) -> Module:
        """Return the same; ``notes`` are told how many columns are computed."""
        notes[:] = with_dead_columns(module, notes, find_dead(module))
        for _ in range(len(module.main.body)):
            found = find_dead(module)
            if not found:
                break
            module = _narrowed(module, found[0])
        return DeadCode()(module)


def find_dead(module: Module) -> list[Dead]:
    """Return the producers in main with columns that nothing reads, or that lie in another order.

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
    >>> [(dead.columns, dead.kept.tolist()) for dead in find_dead(b.module())]
    [(3, [2])]
    """
    main = module.main
    readers = readers_of(main)
    returned = {value.name for value in main.returns}
    refs = _refs(module)
    found = []
    for op in main.body:
        axes = _PRODUCERS.get(op.opcode)
        if axes is None or not all(op.operands[i].name in refs for i, _ in axes):
            continue
        value, maps = op.results[0], []
        while value.name not in returned and len(readers.get(value.name, ())) == 1:
            (reader,) = readers[value.name]
            known = all(v.name in refs for v in reader.operands[1:])
            if reader.opcode not in MAPS or not known or reader.operands[0] != value:
                break
            maps.append(reader)
            value = reader.results[0]
        trees = tuple(readers.get(value.name, ()))
        if value.name in returned or not trees:
            continue
        if not all(t.opcode in _TREES and t.operands[1].name in refs for t in trees):
            continue
        dims = [module.constants[refs[tree.operands[1].name]] for tree in trees]
        kept, places = _ordered(dims)
        if not np.array_equal(kept, np.arange(op.results[0].type.size(1))):
            found.append(Dead(op, tuple(maps), trees, kept, places))
    return found


def _ordered(dims: Sequence[Array]) -> tuple[Array, tuple[Array, ...]]:
    """Return the columns that trees compare, level by level, and where each finds its own."""
    wanted = np.concatenate([d.T.ravel() for d in dims])
    different, first, number = np.unique(wanted, return_index=True, return_inverse=True)
    order = np.argsort(first)
    kept, places = different[order], np.argsort(order)[number]
    if -(-len(wanted) // _VECTOR) == -(-len(kept) // _VECTOR):
        kept, places = wanted, np.arange(len(wanted))
    ends = np.cumsum([d.size for d in dims])[:-1]
    parts = zip(np.split(places.astype(np.int32), ends), dims, strict=True)
    return kept, tuple(part.reshape(d.T.shape).T for part, d in parts)


def _refs(module: Module) -> dict[str, str]:
    return {
        op.results[0].name: str(op.attr("ref"))
        for op in module.main.body
        if op.opcode == "constant"
    }


def _narrowed(module: Module, dead: Dead) -> Module:
    refs = _refs(module)
    made = NewConstants(module)
    body: list[Operation] = []
    narrow: dict[str, Value] = {}

    def constant(value: Value, array: Array) -> Value:
        body.append(made.make(f"{value.name}_kept", np.ascontiguousarray(array)))
        return body[-1].results[0]

    def cut(op: Operation, axes: tuple[tuple[int, int], ...]) -> Operation:
        operands = [narrow.get(v.name, v) for v in op.operands]
        for index, axis in axes:
            array = module.constants[refs[op.operands[index].name]]
            operands[index] = constant(op.operands[index], np.take(array, dead.kept, axis))
        (result,) = op.results
        shape = (result.type.shape[0], len(dead.kept))
        narrow[result.name] = Value(result.name, replace(result.type, shape=shape))
        return replace(op, operands=tuple(operands), results=(narrow[result.name],))

    for op in module.main.body:
        if op == dead.producer:
            narrower = cut(op, _PRODUCERS[op.opcode])
            if op.opcode == "lut_accumulate":
                narrower = bounded(narrower, made.arrays[str(body[-1].attr("ref"))])
            body.append(narrower)
        elif op in dead.maps:
            body.append(cut(op, tuple((i, 0) for i in range(1, len(op.operands)))))
        elif op in dead.trees:
            places = dead.places[dead.trees.index(op)]
            operands = (narrow[op.operands[0].name], constant(op.operands[1], places))
            body.append(replace(op, operands=(*operands, *op.operands[2:])))
        else:
            body.append(op)
    main = replace(module.main, body=tuple(body))
    others = tuple(f for f in module.functions if f.name != "main")
    return Module((main, *others), made.arrays)
