"""Emits data movement that stands in main on its own: threads share the images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import tvm.tirx as tir

from lutcc.codegen.threads import Threads
from lutcc.codegen.values import Values
from lutcc.ir.module import Operation
from lutcc.schedules.x86 import data_movement
from lutcc.schedules.x86.emit import bind, i64, loop, minimum

_OF_IMAGES: Mapping[str, Callable[..., Any]] = {
    "im2col": data_movement.emit_im2col,
    "rows_to_nchw": data_movement.emit_rows_to_nchw,
    "max_pool2d": data_movement.emit_max_pool2d,
}
#: What this emits.
MOVEMENT = frozenset({*_OF_IMAGES, "relu", "add"})


def emit_movement(op: Operation, values: Values, threads: Threads) -> None:
    """Emit an operation of :data:`MOVEMENT`."""
    target = values.view(op.results[0])
    sources = [values.view(v) for v in op.operands]
    lead = op.operands[0] if op.opcode != "rows_to_nchw" else op.results[0]
    images = values.rows(lead)
    with threads.loop() as (thread, count):
        share = tir.floordiv(images + count - 1, count)
        begin = bind(thread * share)
        with loop(tir.Max(minimum(begin + share, images) - begin, i64(0))) as i:
            image = bind(begin + i)
            if op.opcode in _OF_IMAGES:
                _OF_IMAGES[op.opcode](op, sources[0], target, image)
            else:
                size = math.prod(lead.type.sizes(1))
                data_movement.emit_elementwise(op, sources, target, image * size, size)
