"""Find look-ups whose sums trees can compare, and say of all others why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lutcc.ir.module import Module, Operation
from lutcc.ir.passes.base import readers_of
from lutcc.ir.passes.mapped_trees import MOST_SUMS, MappedTrees, sums_range
from lutcc.ir.types import Array

#: What may stand between the sums and a tree: functions of single elements.
MAPS = (
    "lut_dequantize",
    "affine",
    "relu",
    "leaky_relu",
    "clamp",
    "round",
    "activation",
    "quantize",
)


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
        The trees' thresholds among the sums.
    """

    sums: Operation
    maps: tuple[Operation, ...]
    trees: tuple[Operation, ...]
    mapped: MappedTrees


@dataclass(frozen=True)
class Cut:
    """Why sums become floats.

    Attributes
    ----------
    sums
        The ``lut_accumulate``.
    maps
        What follows it, in order.
    reason
        Who needs floats, or what no tree can ask of the sums.
    followed
        Whether other look-ups come later: then a chain ends that might have gone on.
    """

    sums: Operation
    maps: tuple[Operation, ...]
    reason: str
    followed: bool


@dataclass
class Found:
    """The chains of a function, and where there is none."""

    chains: list[Chain] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)


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
    readers = readers_of(main)
    returned = {value.name for value in main.returns}
    arrays = constants_of(module)
    for sums in main.body:
        if sums.opcode != "lut_accumulate":
            continue
        maps: list[Operation] = []
        value = sums.results[0]
        while True:
            reading = readers.get(value.name, [])
            if value.name in returned or len(reading) != 1:
                break
            (only,) = reading
            if only.opcode not in MAPS or only.operands[0] != value:
                break
            maps.append(only)
            value = only.results[0]
        if not reading and value.name not in returned:
            continue
        gives = {op.results[0].name for op in reading}
        if all(op.opcode == "reshape" for op in reading) and gives <= returned:
            reading, returned = [], returned | {value.name}
        trees = tuple(op for op in reading if op.opcode == "tree_encode")
        reason = _other_readers(value.name, reading, trees, value.name in returned)
        reason = reason or _unsuited(sums, (*maps, *trees), arrays)
        if not reason:
            mapped = MappedTrees.of(sums, maps, trees, arrays)
            reason = mapped.refusal
            if not reason:
                found.chains.append(Chain(sums, tuple(maps), trees, mapped))
                continue
        followed = _leads_to_look_ups(sums, readers)
        found.cuts.append(Cut(sums, tuple(maps), reason, followed))
    return found


def _leads_to_look_ups(op: Operation, readers: Mapping[str, list[Operation]]) -> bool:
    """Tell whether an encoder reads what anything makes of an operation's results."""
    waiting, seen = [op], set[str]()
    while waiting:
        for value in waiting.pop().results:
            for reader in readers.get(value.name, []):
                if reader.opcode in ("tree_encode", "nearest_encode"):
                    return True
                if reader.results[0].name not in seen:
                    seen.add(reader.results[0].name)
                    waiting.append(reader)
    return False


def constants_of(module: Module) -> Mapping[str, Array]:
    """Return the constants of main by the names of their values."""
    return {
        op.results[0].name: module.constants[str(op.attr("ref"))]
        for op in module.main.body
        if op.opcode == "constant"
    }


#: What operations other than trees want of the values that they read.
_WANTS = {
    "add": "add joins it with another value",
    "layer_norm": "layer_norm looks at whole rows",
    "softmax": "softmax looks at whole rows",
    "attention": "attention multiplies it",
    "linear": "linear multiplies it",
    "dense": "dense multiplies it",
    "conv2d": "conv2d multiplies it",
    "nearest_encode": "nearest_encode measures distances of it",
    "reshape": "reshape makes other rows of it",
    "im2col": "im2col takes windows of it",
    "rows_to_nchw": "rows_to_nchw moves it",
}


def _other_readers(
    name: str, reading: list[Operation], trees: tuple[Operation, ...], returned: bool
) -> str:
    """Return who but trees reads a value, if anybody does."""
    if returned:
        others = dict.fromkeys(op.opcode for op in reading)
        return "it is returned" + (f", and {', '.join(others)} reads it" if others else "")
    rest = list(dict.fromkeys(op.opcode for op in reading if op not in trees))
    if not rest:
        return ""
    if any(op in MAPS for op in rest):
        return f"several branches begin at %{name}: {', '.join(op.opcode for op in reading)}"
    wants = [_WANTS.get(opcode, f"{opcode} reads it") for opcode in rest]
    return ", ".join(wants) + (", besides trees" if trees else "")


def _unsuited(sums: Operation, behind: tuple[Operation, ...], arrays: Mapping[str, Array]) -> str:
    """Return why thresholds cannot be mapped, if they cannot."""
    lut = arrays.get(sums.operands[1].name)
    if lut is None:
        return "its tables are computed"
    if lut.dtype == np.float32:
        return "tables of floats have no integer sums"
    for op in behind:
        if any(v.name not in arrays for v in op.operands[1:]):
            return f"an operand of {op.opcode} is computed"
    if sums_range(sums, lut)[1] > MOST_SUMS:
        return "its sums are too large to be tried one by one"
    return ""
