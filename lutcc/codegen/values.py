"""Where the values of an entry function are: arguments, constants, memory between stages."""

from __future__ import annotations

import math
from typing import Any

import tvm.tirx as tir

from lutcc.codegen.arguments import Argument, Arguments
from lutcc.codegen.memory import memory_roots, read_as_whole, row_major, stored
from lutcc.codegen.products import packed_alone
from lutcc.codegen.sizes import Sizes, bytes_per_row
from lutcc.ir.module import Function, Operation, Value
from lutcc.schedules.x86.context import BlobLayout, Constant, External, Tensor, Workspace
from lutcc.schedules.x86.emit import Expr, View, i64, loop


class Values:
    """The values of main.

    Parameters
    ----------
    main, arguments, sizes
        Of the entry function.
    constants
        Arrays by name.

    Attributes
    ----------
    blob
        The constants that are read, as kernels read them.
    per_row
        Bytes of the workspace for each unit of the batch.
    """

    def __init__(
        self, main: Function, arguments: Arguments, sizes: Sizes, constants: dict[str, Any]
    ) -> None:
        self.sizes = sizes
        self.blob = BlobLayout(arguments.blob, constants)
        self._main = main
        self._roots = memory_roots(main)
        self._packed_alone = packed_alone(main)
        self._constants: dict[str, Constant] = {}
        self._memory = {each.value.name: each.view() for each in arguments.inputs}
        self._copies = self._place_results(arguments.outputs)
        planned = Workspace(None, sizes.batch, i64(0))
        for value in (v for op in main.body if op.opcode != "constant" for v in op.results):
            if self._roots[value.name] == value.name and value.name not in self._memory:
                self._memory[value.name] = _planned(planned, value)
        as_whole = read_as_whole(main, self._roots)
        self._compact = {v.name: _planned(planned, v) for v in main.params if v.name in as_whole}
        self.per_row = planned.per_row

    def _place_results(self, outputs: list[Argument]) -> list[tuple[Value, External | View]]:
        """Let results be computed where they are returned; return those that must be copied."""
        placed = {v.name for op in self._main.body if op.opcode == "constant" for v in op.results}
        placed |= set(self._memory)
        copies = []
        for output in outputs:
            root, target = self._roots[output.value.name], output.target(self.sizes)
            if root in placed:
                copies.append((output.value, target))
            else:
                placed.add(root)
                self._memory[root] = target
        return copies

    def put_into(self, space: Any) -> None:
        """Let the values between stages be in this workspace, whose size is known by then."""
        for views in (self._memory, self._compact):
            for name, view in views.items():
                if isinstance(view, View) and view.buffer is None:
                    views[name] = View(space, view.base, view.dtype)

    def add_constant(self, op: Operation) -> None:
        """Take in a ``constant``, which is in the blob unless others are made of it there."""
        value, ref = op.results[0], str(op.attr("ref"))
        self._constants[value.name] = Constant(self.blob, ref)
        if value.name not in self._packed_alone:
            self._memory[value.name] = self.blob.add("raw", value.type.dtype, [ref])

    # -- reading and writing -------------------------------------------------------------

    def constant(self, value: Value) -> Constant:
        """Return a constant that a kernel packs in an order of its own."""
        return self._constants[self._roots[value.name]]

    def external(self, value: Value) -> External:
        """Return a value as a matrix of rows, maybe with strides."""
        have = self._memory[self._roots[value.name]]
        if isinstance(have, External) and have.columns == math.prod(value.type.sizes(1)):
            return have
        return row_major(self.view(value), value)

    def view(self, value: Value) -> View:
        """Return the row-major elements of a value."""
        root = self._roots[value.name]
        have = self._compact.get(root, self._memory[root])
        return have.view if isinstance(have, External) else have

    def tensor(self, value: Value) -> Tensor:
        """Return the row-major elements of a value with its sizes."""
        return Tensor(self.view(value), self.sizes.shape(value))

    def rows(self, value: Value) -> Expr:
        """Return the first dimension of a value."""
        return self.sizes.of(value.type.shape[0]) if value.type.shape else i64(1)

    # -- copies --------------------------------------------------------------------------

    def copy_parameters(self) -> None:
        """Lay those parameters end to end that are read so."""
        for value in self._main.params:
            if value.name in self._compact:
                self._copy(value, self._compact[value.name])

    def copy_results(self) -> None:
        """Copy what is returned more than once, and parameters and constants that are returned."""
        for value, target in self._copies:
            self._copy(value, target)

    def copy(self, value: Value, to: Value) -> None:
        """Copy a value to where another one is."""
        self._copy(value, self._memory[self._roots[to.name]])

    def _copy(self, value: Value, target: External | View) -> None:
        view = target.view if isinstance(target, External) else target
        inner = math.prod(value.type.sizes(1))
        source = self._memory[self._roots[value.name]]
        with loop(self.rows(value)) as r, loop(inner) as c:
            if isinstance(source, External):
                flat = r * inner + c
                row, column = tir.floordiv(flat, source.columns), tir.floormod(flat, source.columns)
                view.store(flat, source.view.load(source.index(row, column)))
            else:
                view.store(r * inner + c, source.load(r * inner + c))


def _planned(workspace: Workspace, value: Value) -> View:
    return workspace.between_stages(bytes_per_row(value), stored(value))
