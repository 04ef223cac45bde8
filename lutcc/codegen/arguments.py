"""The arguments of an entry function, and how kernels see them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import tvm.tirx as tir
from tvm.script.ir_builder import tirx as builder

from lutcc.codegen.memory import row_major, stored
from lutcc.codegen.sizes import Sizes
from lutcc.ir.module import Function, Value
from lutcc.schedules.x86.context import External
from lutcc.schedules.x86.emit import ITEMSIZE, Expr, View, bind, both, equal, i64

_FLAT = 1 << 40  # extent of flat views: kernels index by byte offset, bounds are in the types
#: Outputs of at least this many bytes bypass the caches: they would not stay in L2 anyway.
STREAM_BYTES = 1 << 20


@dataclass(frozen=True)
class Argument:
    """An input or an output.

    Attributes
    ----------
    value
        Its name and type.
    buffer
        TVM's, with its shape.
    strides
        Of a matrix that may have any.
    """

    value: Value
    buffer: Any
    strides: tuple[Expr, ...]

    @classmethod
    def match(cls, value: Value, handle: Any, sizes: Sizes, *, strided: bool = False) -> Argument:
        """Declare an argument; a matrix may have any strides if ``strided``."""
        shape, dtype = sizes.shape(value), value.type.dtype
        strides = ()
        if len(shape) == 2 and strided:
            strides = tuple(tir.Var(f"{value.name}_stride{i}", "int64") for i in range(2))
        buffer = builder.match_buffer(
            handle, shape, dtype, strides=list(strides) or None, align=ITEMSIZE[dtype]
        )
        return cls(value, buffer, strides)

    def view(self) -> External | View:
        """Declare and return the flat view (every match comes before every view)."""
        value, dtype = self.value, stored(self.value)
        data = self.buffer.data
        flat = builder.decl_buffer((i64(_FLAT),), dtype, data=data, align=ITEMSIZE[dtype])
        view = View(flat, i64(0), dtype, is_bytes=False)
        if self.strides:
            return External(view, value.type.size(1), value.type.dtype, *self.strides)
        return row_major(view, value) if len(value.type.shape) == 2 else view

    def target(self, sizes: Sizes) -> External | View:
        """Declare the view of an output: large ones of whole cache lines go past the caches."""
        view = self.view()
        if not isinstance(view, External) or view.columns % 16 or view.dtype == "uint8":
            return view
        nbytes = sizes.of(self.value.type.shape[0]) * (view.columns * ITEMSIZE[view.dtype])
        aligned = equal(view.view.misalignment(), i64(0))
        return replace(view, stream=bind(both(aligned, nbytes >= i64(STREAM_BYTES))))


class Arguments:
    """All arguments: inputs, constants, workspace, outputs, number of threads.

    An entry function that allocates its own workspace takes none, and the number of threads, if it
    is parallel, as int64[1] in its place.

    Attributes
    ----------
    inputs, outputs
        The parameters and results of main.
    blob, workspace
        TVM's byte buffers; no workspace where it is the function's own.
    threads
        How many the caller offers.
    """

    def __init__(
        self, main: Function, sizes: Sizes, *, parallel: bool, own_workspace: bool
    ) -> None:
        inputs = [builder.arg(f"in_{i}", builder.handle()) for i in range(len(main.params))]
        blob = builder.arg("blob", builder.handle())
        space = given = None
        if not own_workspace:
            space = builder.arg("workspace", builder.handle())
        elif parallel:
            given = builder.arg("threads", builder.handle())
        outputs = [builder.arg(f"out_{i}", builder.handle()) for i in range(len(main.returns))]
        self.threads: Expr = i64(1)
        if not own_workspace:
            self.threads = builder.arg("threads", tir.Var("threads", "int64"))
        self.inputs = [
            Argument.match(value, handle, sizes, strided=True)
            for value, handle in zip(main.params, inputs, strict=True)
        ]
        self.outputs = [
            Argument.match(value, handle, sizes)
            for value, handle in zip(main.returns, outputs, strict=True)
        ]
        self.blob = _bytes(blob, "blob_bytes", align=64)
        self.workspace = None if space is None else _bytes(space, "workspace_bytes", align=1)
        if given is not None:
            count = builder.match_buffer(given, (1,), "int64", align=8)
            self.threads = tir.BufferLoad(count, [i64(0)])


def _bytes(handle: Any, size: str, *, align: int) -> Any:
    return builder.match_buffer(handle, (tir.Var(size, "int64"),), "uint8", align=align)
