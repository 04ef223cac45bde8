"""Poolings of floats behind look-ups become poolings of sums: fewer numbers become floats."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lutcc.ir.module import Module, Operation, Value
from lutcc.ir.passes.base import fresh_name, readers_of
from lutcc.ir.passes.chains import MAPS, constants_of
from lutcc.ir.passes.dead_code import DeadCode
from lutcc.ir.passes.image_links import Link, shared, sums_of, unsuited
from lutcc.ir.passes.mapped_trees import evaluated


class PoolSums:
    """Take the largest sums, in place of the largest of what rises with them.

    Examples
    --------
    >>> from lutcc.ir import Builder, TensorType
    >>> b = Builder("main")
    >>> x = b.param("x", TensorType((1, 4, 4, 1), "float32"))
    >>> dims, values = b.constant("d", np.int32([[0]])), b.constant("v", np.float32([[0, 1]]))
    >>> table, zero = b.constant("t", np.ones((1, 2, 1), np.uint8)), np.zeros(1, np.float32)
    >>> acc = b.op("lut_conv2d", x, dims, values, table, b.constant("o", zero), kernel=(1, 1))
    >>> y = b.op("lut_dequantize", acc, b.constant("s", zero + 1), b.constant("z", zero))
    >>> b.returns(b.op("max_pool2d", b.op("reshape", y, shape=(1, 4, 4, 1)), kernel=(2, 2)))
    >>> [op.opcode for op in PoolSums()(b.module()).main.body if op.operands]
    ['lut_conv2d', 'reshape', 'max_pool2d', 'lut_dequantize']
    """

    def __call__(self, module: Module) -> Module:
        """Return the module with integer poolings; only main is looked at."""
        for op in module.main.body:
            if op.opcode == "max_pool2d" and op.operands[0].type.dtype == "float32":
                module = _pooled_first(module, op)
        return DeadCode()(module)


def _pooled_first(module: Module, pool: Operation) -> Module:
    """Return the module with a pooling of what rises with sums in front of that.

    The largest of some y is the y of the largest sum: the functions go over fewer pixels.
    """
    definitions, readers = module.main.definitions, readers_of(module.main)
    images = definitions.get(pool.operands[0].name)
    if images is None or images.opcode != "reshape":
        return module
    maps: list[Operation] = []
    at = definitions.get(images.operands[0].name)
    while at is not None and at.opcode in MAPS:
        maps.insert(0, at)
        at = definitions.get(at.operands[0].name)
    if at is None or at.opcode != "lut_conv2d" or not maps:
        return module
    link = Link(at, (*maps, images), (pool,))
    returned = {value.name for value in module.main.returns}
    arrays = constants_of(module)
    if shared(link, readers, returned) or unsuited(link, arrays):
        return module
    least, span = sums_of(arrays[at.operands[3].name])
    sums = np.arange(least, least + span + 1, dtype=np.int32)
    for _, y in evaluated(maps, arrays, sums, np.arange(link.channels)):
        if y.dtype != np.float32 or not (np.diff(y) >= 0).all():
            return module
    shape = images.results[0].type
    integers = Value(images.results[0].name, replace(shape, dtype="int32"))
    pooled_type = replace(pool.results[0].type, dtype="int32")
    name = fresh_name(f"{at.results[0].name}.pooled", module.main.value_names)
    value = Value(name, pooled_type)
    moved = [
        replace(images, operands=(at.results[0],), results=(integers,)),
        replace(pool, operands=(integers,), results=(value,)),
    ]
    for op in maps:
        last = op is maps[-1]
        result = pool.results[0] if last else replace(op.results[0], type=pool.results[0].type)
        moved.append(replace(op, operands=(value, *op.operands[1:]), results=(result,)))
        value = result
    old = {op.results[0].name for op in (*maps, images)}
    body = [
        new
        for op in module.main.body
        if op.results[0].name not in old
        for new in (moved if op is pool else [op])
    ]
    main = replace(module.main, body=tuple(body))
    return replace(
        module, functions=tuple(main if f.name == "main" else f for f in module.functions)
    )
