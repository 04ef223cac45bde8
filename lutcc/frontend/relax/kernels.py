"""Kernels of lutcc as functions that Relax can call."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from lutcc.frontend.symbols import BATCH
from lutcc.ir.module import Function, Module, Operation, Value
from lutcc.ir.types import Array, Attr, Dim, Sym

if TYPE_CHECKING:
    from lutcc.frontend.relax.pipeline import Choice


@dataclass(frozen=True, slots=True)
class RegionKernel:
    """A region compiled for one ISA level: ``function(x..., blob[, threads], out...)``.

    Attributes
    ----------
    function
        TVM PrimFunc that allocates its own workspace.
    blob
        Packed constants, uint8.
    kernels
        One record per stage (name, ops, config, source), for ``artifact.explain()``.
    program
        Where each constant lies in ``blob``, for :func:`lutcc.schedules.x86.pack.pack_blob`; None
        where other code made the kernel, which is not kept in a cache then.
    takes_threads
        Whether it takes how many threads it may use, int64[1].
    """

    function: Any
    blob: Array
    kernels: tuple[Mapping[str, Any], ...]
    program: Mapping[str, Any] | None = None
    takes_threads: bool = False


RegionCompiler: TypeAlias = Callable[[str, Module, str, "Choice | None"], RegionKernel]
"""(region name, module that has been through the passes, isa, who chooses configs) -> kernel."""


def compile_region(
    name: str, module: Module, isa: str, choice: Choice | None = None
) -> RegionKernel:
    """Lower a region's module for one ISA level and pack its constants.

    Parameters
    ----------
    name
        Of the region; part of the kernel's symbol.
    module
        Of the region.
    isa
        Instruction-set level.
    choice
        Knows the tuned configs of the region's stages; without it they get defaults.

    Raises
    ------
    CompileError
        If an op has no schedule.

    Examples
    --------
    >>> kernel = compile_region("region0", module, "avx2")
    """
    from lutcc.codegen.lower import lower, prepare
    from lutcc.frontend.relax.pipeline import KERNEL
    from lutcc.runtime.bundle import work_per_row
    from lutcc.runtime.kernel import SECONDS_PER_THREAD, seconds_per_row
    from lutcc.schedules.x86.pack import pack_blob

    entry = f"lutcc_{name}"
    prepared = prepare(with_whole_rows(module))
    configs = None if choice is None else choice.stage_configs(prepared, isa)
    lowered = lower(
        prepared,
        isa,
        configs,
        own_workspace=True,
        rows_per_thread=SECONDS_PER_THREAD / seconds_per_row(work_per_row(prepared)),
        entry=entry,
    )
    program = lowered.program.to_json()
    blob = pack_blob(program, dict(lowered.module.constants))
    function = lowered.functions[entry].without_attr("global_symbol").with_attr(KERNEL, True)
    kernels = tuple(
        {**record, "stage": f"{name}.{record['stage']}"} for record in lowered.program.kernels
    )
    return RegionKernel(
        function, np.ascontiguousarray(blob), kernels, program=program, takes_threads=True
    )


def with_whole_rows(module: Module) -> Module:
    """Call the symbol of a module ``n``, and divide it by what all its multiples have in common.

    A region of a model over (n, 16, 64) sees (16*n, 64) only. As (n, 64), its kernels read the
    number of rows off the shape.

    Examples
    --------
    >>> with_whole_rows(region.module).main.params[0].type.shape
    (Sym(name='n', factor=1), 64)
    """
    factors = [dim.factor for dim in _dims(module) if isinstance(dim, Sym)]
    names = {dim.name for dim in _dims(module) if isinstance(dim, Sym)}
    common = math.gcd(*factors) if factors else 1
    if len(names) > 1 or (common == 1 and names <= {BATCH}):
        return module

    def dim(size: Dim) -> Dim:
        return Sym(BATCH, size.factor // common) if isinstance(size, Sym) else size

    def value(v: Value) -> Value:
        return Value(v.name, replace(v.type, shape=tuple(dim(d) for d in v.type.shape)))

    def attr(item: Attr) -> Attr:
        return tuple(dim(d) for d in item) if isinstance(item, tuple) else item

    def operation(op: Operation) -> Operation:
        attrs = tuple((name, attr(item)) for name, item in op.attrs)
        operands, results = (
            tuple(value(v) for v in values) for values in (op.operands, op.results)
        )
        return Operation(op.opcode, operands, results, attrs)

    def function(f: Function) -> Function:
        params, returns = (tuple(value(v) for v in values) for values in (f.params, f.returns))
        return Function(f.name, params, tuple(operation(op) for op in f.body), returns)

    return Module(tuple(function(f) for f in module.functions), module.constants)


def _dims(module: Module) -> list[Dim]:
    dims: list[Dim] = []
    for function in module.functions:
        for value in (*function.params, *(v for op in function.body for v in op.results)):
            dims.extend(value.type.shape)
        for op in function.body:
            for _, item in op.attrs:
                if isinstance(item, tuple):
                    dims.extend(item)
    return dims
