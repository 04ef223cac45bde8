"""Image fusion: convolutions by look-ups in a row become functions that go image by image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from lutcc.ir.module import Function, Module, Operation, Value
from lutcc.ir.passes.base import fresh_name, readers_of
from lutcc.ir.passes.chains import MAPS
from lutcc.ir.passes.dead_code import DeadCode
from lutcc.ir.passes.lookup_convolutions import PIXEL, result_size, window_of

#: Functions that may finish the last sums: what they give is float32.
_FINISHING = tuple(opcode for opcode in MAPS if opcode != "quantize")
#: FLOPs of an exact convolution that joins those behind it: it is not shared among threads then.
_SMALL_FLOPS = 16 << 20


@dataclass(frozen=True, slots=True)
class FuseImages:
    """Outline each ``lut_conv2d`` with those that read its sums, and what ends the last of them.

    Image i of what a function computes depends on image i of what it reads, so a backend runs a
    whole function for one image after the other, and nothing between two layers leaves its caches.
    Poolings of sums join, and so do a small exact convolution in front and what puts the channels
    of the first images last; functions of single elements join the last layer.

    Parameters
    ----------
    prefix
        Functions are named ``images0``, ``images1``, ... in the order they run.
    """

    prefix: str = "images"

    def __call__(self, module: Module) -> Module:
        """Return the outlined module; only main is looked at."""
        module = DeadCode()(module)
        taken = {f.name for f in module.functions}
        outlined: list[Function] = []
        while (group := _group(module.main)) is not None:
            name = fresh_name(f"{self.prefix}{len(outlined)}", taken)
            taken.add(name)
            function, main = _outlined(module.main, group, name)
            outlined.append(function)
            module = replace(module, functions=_with_main(module, main))
        main, *others = (module.main, *(f for f in module.functions if f.name != "main"))
        return Module((main, *outlined, *others), module.constants)


def _with_main(module: Module, main: Function) -> tuple[Function, ...]:
    return tuple(main if f.name == "main" else f for f in module.functions)


def _group(main: Function) -> list[Operation] | None:
    """Return the operations of the first chain of convolutions, in order."""
    first = next((op for op in main.body if op.opcode == "lut_conv2d"), None)
    if first is None:
        return None
    readers = readers_of(main)
    returned = {value.name for value in main.returns}
    constants = {v.name for op in main.body if op.opcode == "constant" for v in op.results}
    members, ahead = [*_leading(main, first, readers, returned), first], list[Operation]()
    at = first
    while at.results[0].name not in returned and len(readers.get(at.results[0].name, ())) == 1:
        (reader,) = readers[at.results[0].name]
        known = all(v.name in constants for v in reader.operands[1:])
        if not known or reader.operands[0] != at.results[0]:
            break
        if reader.opcode == "lut_conv2d" and reader.operands[0].type.dtype == "int32":
            members += [*ahead, reader]
            ahead = []
        elif reader.opcode in ("reshape", "max_pool2d") and at.results[0].type.dtype == "int32":
            ahead.append(reader)
        elif reader.opcode in _FINISHING and all(op.opcode == "max_pool2d" for op in ahead[1::2]):
            members += [*ahead, reader]
            ahead = []
        else:
            break
        at = reader
    return members


def _leading(
    main: Function, first: Operation, readers: Mapping[str, list[Operation]], returned: set[str]
) -> list[Operation]:
    """Return what leads to the first images and nothing else reads, in order.

    That is a small exact convolution, and what puts the channels of its images, or theirs, last.
    """
    definitions = main.definitions

    def before(op: Operation, *opcodes: str) -> list[Operation]:
        """Return the operations of these kinds that lead to an operation, the last one first."""
        found: list[Operation] = []
        for opcode in opcodes:
            name = op.operands[0].name
            maker = definitions.get(name)
            if maker is None or maker.opcode != opcode:
                return []
            if name in returned or len(readers[name]) != 1:
                return []
            found.append(maker)
            op = maker
        return found

    leading: list[Operation] = []
    exact = before(first, "reshape", "conv2d")
    if exact and _flops(exact[1]) <= _SMALL_FLOPS:
        known = [definitions.get(v.name) for v in exact[1].operands[1:]]
        if all(op is not None and op.opcode == "constant" for op in known):
            leading, first = exact[::-1], exact[1]
    moved = before(first, "reshape", "im2col")
    if moved and window_of(moved[1]) == PIXEL:
        leading = [*moved[::-1], *leading]
    return leading


def _flops(conv: Operation) -> int:
    """Return the work of a convolution of one image."""
    (height, width), weight = result_size(conv), conv.operands[1].type
    return 2 * height * width * math.prod(weight.sizes())


def _outlined(main: Function, members: list[Operation], name: str) -> tuple[Function, Function]:
    """Return the function of ``members``, and main with a call in their place."""
    inside = {op.results[0].name for op in members}
    definitions = main.definitions
    body: list[Operation] = []
    emitted: set[str] = set()
    for op in members:
        for value in op.operands[1:]:
            if value.name not in emitted:
                emitted.add(value.name)
                body.append(definitions[value.name])
        body.append(op)
    params: tuple[Value, ...] = (members[0].operands[0],)
    returns = members[-1].results
    call = Operation("call", params, returns, (("callee", name),))
    last = members[-1].results[0].name
    rest = [
        call if op.results[0].name == last else op
        for op in main.body
        if op.results[0].name == last or op.results[0].name not in inside
    ]
    used = {v.name for op in rest for v in op.operands} | {v.name for v in main.returns}
    kept = tuple(op for op in rest if op.opcode != "constant" or op.results[0].name in used)
    return Function(name, params, tuple(body), returns), replace(main, body=kept)
