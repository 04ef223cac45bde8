"""Convolutions by look-ups after each other in integers: trees compare the sums of the one before.

As :mod:`lutcc.ir.passes.integer_chains` does for rows, thresholds are mapped through what stands
between the sums and the trees. Two things are different for images:

* The largest of some pixels may be taken on the way. ``max(y) > t`` is ``y > t`` for some pixel, so
  it is ``sum > T`` for some pixel, whatever y is: the largest sum decides. Functions that follow
  the pooling must rise where those before it do, or fall where they do.
* Outside the image, a tree reads 0. The channel gets a sum that is above T exactly where 0 > t;
  there is none where no sum gives a y between two thresholds on either side of 0.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lutcc.ir.module import Module, Operation, Value
from lutcc.ir.passes.base import NewConstants, readers_of
from lutcc.ir.passes.chain_notes import LookupNote, note_of
from lutcc.ir.passes.chains import MAPS, constants_of
from lutcc.ir.passes.dead_code import DeadCode
from lutcc.ir.passes.image_links import ImageCut, Link, find_links
from lutcc.ir.passes.lookup_convolutions import window_of
from lutcc.ir.types import Array


class ImageChains:
    """Let trees of convolutions compare the integer sums of those before, with the same codes.

    Channels that no tree compares are not computed.
    """

    def __call__(self, module: Module) -> Module:
        """Return the module with thresholds in the sums' domain; only main is looked at."""
        return self.noting(module, [])

    def noting(self, module: Module, notes: list[LookupNote]) -> Module:
        """Return the same; ``notes`` takes what becomes of the sums of each convolution."""
        links, cuts = find_links(module)
        notes += _notes(module, links, cuts)
        for link in links:
            module = _rewritten(module, link)
        return DeadCode()(module)


def _notes(module: Module, links: list[Link], cuts: list[ImageCut]) -> list[LookupNote]:
    """Return a note for each convolution, in the order of the module."""
    notes: dict[str, LookupNote] = {}
    for link in links:
        mapped, path = link.mapped, [op for op in link.path if op.opcode != "reshape"]
        assert mapped is not None
        how = "the next convolution's trees compare them where they lie"
        if mapped.mirrored.any():
            how += f"; {int(mapped.mirrored.sum())} channels fall, and are mirrored"
        note = note_of(module, link.sums, path, integers=True, reason=how)
        notes[link.sums.results[0].name] = replace(note, computed=len(mapped.kept))
    for cut in cuts:
        path = [op for op in cut.path if op.opcode != "reshape"]
        notes[cut.sums.results[0].name] = note_of(
            module, cut.sums, path, integers=False, reason=cut.reason, cut=True
        )
    readers = readers_of(module.main)
    told: list[LookupNote] = []
    for op in module.main.body:
        if op.opcode == "lut_conv2d":
            name = op.results[0].name
            told.append(notes[name] if name in notes else _last(module, op, readers))
    return told


def _last(module: Module, sums: Operation, readers: dict[str, list[Operation]]) -> LookupNote:
    """Return the note of a convolution that no other reads."""
    path: list[Operation] = []
    at = sums
    while len(reading := readers.get(at.results[0].name, [])) == 1:
        at = reading[0]
        if at.opcode not in (*MAPS, "reshape", "max_pool2d"):
            break
        path.append(at)
    why = ", ".join(dict.fromkeys(op.opcode for op in reading)) + " read floats"
    path = [op for op in path if op.opcode != "reshape"]
    return note_of(module, sums, path, integers=False, reason=why if reading else "it is returned")


def _rewritten(module: Module, link: Link) -> Module:
    mapped = link.mapped
    assert mapped is not None
    made, arrays = NewConstants(module), constants_of(module)
    body: list[Operation] = []
    values: dict[str, Value] = {}
    readers = {op.results[0].name: i for i, op in enumerate(link.readers)}
    path = {op.results[0].name for op in link.path}

    def constant(wanted: str, array: Array) -> Value:
        body.append(made.make(wanted, np.ascontiguousarray(array)))
        return body[-1].results[0]

    for op in module.main.body:
        name = op.results[0].name
        if name == link.sums.results[0].name:
            lut = op.operands[3]
            table = np.where(mapped.mirrored, ~arrays[lut.name], arrays[lut.name])
            operands = list(op.operands)
            if mapped.mirrored.any() or len(mapped.kept) < link.channels:
                operands[3] = constant(f"{lut.name}_kept", table[:, :, mapped.kept])
            values[name] = _narrow(op.results[0], len(mapped.kept), 1)
            body.append(replace(op, operands=tuple(operands), results=(values[name],)))
        elif name in path:
            source = values[op.operands[0].name]
            if op.opcode in MAPS:
                values[name] = source
                continue
            axis = op.results[0].type.rank - 1
            values[name] = _narrow(op.results[0], len(mapped.kept), axis)
            remade = replace(op, operands=(source,), results=(values[name],))
            if op.opcode == "reshape":
                remade = remade.with_attrs(shape=values[name].type.shape)
            body.append(remade)
        elif name in readers:
            number, (_, dims, thresholds, lut, _) = readers[name], op.operands
            kh, kw = window_of(op)["kernel"]
            channel, tap = np.divmod(arrays[dims.name], kh * kw)
            places = np.searchsorted(mapped.kept, channel) * (kh * kw) + tap
            operands = (
                values[op.operands[0].name],
                constant(f"{dims.name}_kept", places.astype(np.int32)),
                constant(f"{thresholds.name}_sums", mapped.thresholds[number]),
                lut,
                constant(f"{name}.outside_sums", mapped.outside[number][mapped.kept]),
            )
            body.append(replace(op, operands=operands))
        else:
            body.append(op)
    main = replace(module.main, body=tuple(body))
    others = tuple(f for f in module.functions if f.name != "main")
    return Module((main, *others), made.arrays)


def _narrow(value: Value, channels: int, axis: int) -> Value:
    """Return the value as int32 with so many channels."""
    shape = (*value.type.shape[:axis], channels, *value.type.shape[axis + 1 :])
    return Value(value.name, replace(value.type, shape=shape, dtype="int32"))
