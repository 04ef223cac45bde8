"""Loop nests of exact layers as things to tune, and all tasks of a model."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lutcc.codegen.tvm_setup import import_tvm
from lutcc.errors import CompileError
from lutcc.frontend.relax.canonical import describe, op_name, open_sizes
from lutcc.frontend.relax.kernels import compile_region
from lutcc.frontend.relax.measures import buffers, nest_cost, nest_dims
from lutcc.frontend.relax.nests import loop_nest
from lutcc.frontend.relax.pipeline import build_loops, fuse_module, unscheduled
from lutcc.frontend.relax.sizes import OTHER_SIZE, size_of
from lutcc.ir.module import Module
from lutcc.ir.types import Array
from lutcc.runtime.cpu import best_isa
from lutcc.schedules.space import Config
from lutcc.schedules.x86.pack import aligned_empty
from lutcc.tuning.products import product_tasks
from lutcc.tuning.stages import stage_tasks
from lutcc.tuning.task import Candidate, Task
from lutcc.tuning.workload import Workload

if TYPE_CHECKING:
    from lutcc.frontend.torch_import import Imported

#: Up to so much work (floating-point operations) the unscheduled loops themselves are the judge.
NAIVE_FLOPS = 2e8


def model_tasks(
    model: Any,
    example_inputs: Any = None,
    *,
    isa: str,
    rows: Sequence[int],
    length: int | None = None,
    mcpu: str | None = None,
    threads: int = 1,
    cache: str = "hot",
) -> list[Task]:
    """Return every distinct task of a model: lutcc's kernels, and loop nests of exact layers.

    Parameters
    ----------
    model
        A :class:`lutcc.ir.Module`, an imported model, or what
        :func:`lutcc.frontend.import_torch` imports.
    example_inputs
        For that import.
    isa, mcpu
        Target.
    rows
        Batch sizes, where the model's is open.
    length
        Every other open size (a sequence length), by default
        :data:`lutcc.frontend.relax.sizes.OTHER_SIZE`, which loop nests are measured at always.
    threads, cache
        How to measure, see :class:`Workload`.

    Raises
    ------
    FrontendError
        If the model cannot be imported.

    Examples
    --------
    >>> [task.workload.op for task in model_tasks(model, x, isa="avx2", rows=(1, 64))]
    ['linear+relu', 'softmax', ...]
    """
    how: dict[str, Any] = {"rows": rows, "mcpu": mcpu, "threads": threads, "cache": cache}
    if isinstance(model, Module):
        return kernel_tasks(model, isa, **how)
    from lutcc.frontend import Imported, import_torch

    imported = model if isinstance(model, Imported) else import_torch(model, example_inputs)
    if imported.module is not None:
        return kernel_tasks(imported.module, isa, **how)
    tasks: list[Task] = []
    other = OTHER_SIZE if length is None else length
    for region in imported.regions:
        for task in kernel_tasks(region.module, isa, length=other, **how):
            tasks.append(replace(task, name=f"{region.name}.{task.name}"))
    return _distinct([*tasks, *relax_tasks(imported, isa, **how)])


def kernel_tasks(module: Module, isa: str, **how: Any) -> list[Task]:
    """Return the tasks of a module of lutcc's operations: its stages and its products."""
    return [*stage_tasks(module, isa, **how), *product_tasks(module, isa, **how)]


def relax_tasks(
    imported: Imported,
    isa: str,
    *,
    rows: Sequence[int],
    mcpu: str | None = None,
    threads: int = 1,
    cache: str = "hot",
) -> list[Task]:
    """Return a task for each distinct loop nest of a mixed model's exact layers.

    Parameters
    ----------
    imported
        Result of :func:`lutcc.frontend.import_torch` with ``kind == "mixed"``.
    isa, mcpu
        Target.
    rows
        Batch sizes; a loop nest that does not depend on the batch is one task. Other open sizes are
        :data:`lutcc.frontend.relax.sizes.OTHER_SIZE`.
    threads, cache
        How to measure, see :class:`Workload`.

    Raises
    ------
    FrontendError
        If an exact layer cannot be imported.
    """
    import_tvm()
    from lutcc.frontend.relax.program import refuse_unknown_ops, to_relax

    graph = imported.graph
    assert graph is not None, "a mixed model has one"
    refuse_unknown_ops(graph, imported.regions)
    regions = {r.name: compile_region(r.name, r.module, isa) for r in imported.regions}
    module = fuse_module(to_relax(graph, imported.regions, regions).module)
    symbol = None if graph.batch is None else str(graph.batch)
    calls = _calls(module)
    tasks = []
    for name, function in unscheduled(module).items():
        nest = loop_nest(function, isa)
        if nest is None or name not in calls:
            continue
        is_open = symbol in open_sizes(function)
        for batch in rows if is_open else (0,):
            part = nest.part(symbol, batch)
            workload = Workload(
                kind="relax",
                op=op_name(name),
                kernel=nest.kernel(part),
                rows=batch,
                threads=threads,
                cache=cache,
                dims=nest_dims(function, symbol, batch),
                cost=nest_cost(function, symbol, batch),
            )
            at = f", n = {batch}" if is_open else ""
            tasks.append(
                Task(
                    name=describe(name, function) + at,
                    workload=workload,
                    space=nest.spaces[part],
                    subject=RelaxSubject(_saved(function), calls[name].results, symbol, batch),
                    isa=isa,
                    mcpu=mcpu,
                    calls=calls[name].count,
                    batch=batch if is_open else (1 if symbol is None else rows[0]),
                )
            )
    return _distinct(tasks)


@dataclass(frozen=True)
class RelaxSubject:
    """Builds one loop nest under a config and judges it by the unscheduled loops.

    These are compiled as they stand. Where they would take seconds, the default schedule stands in
    for them, after it gave the same results at a smaller batch.

    Attributes
    ----------
    function
        The unscheduled PrimFunc as TVM's JSON.
    results
        How many of its buffers, the last ones, are results.
    symbol, rows
        Name of the batch symbol and its value.
    """

    function: str
    results: int
    symbol: str | None
    rows: int

    def inputs(self, seed: int) -> list[Array]:
        """Return random inputs: normal floats, small indices."""
        return self._inputs(seed, self.rows)

    def reference(self, inputs: Sequence[Array]) -> list[Array]:
        """Return what the unscheduled loops compute.

        Raises
        ------
        CompileError
            If the default schedule, which stands in for them, is wrong at a smaller batch.
        """
        function = self._loaded()
        flops = nest_cost(function, self.symbol, self.rows)["flops"]
        if flops <= NAIVE_FLOPS:
            return self._run(function, inputs, self.rows)
        isa = best_isa() or "avx2"
        nest = loop_nest(function, isa)
        fewer = max(1, int(self.rows * NAIVE_FLOPS / flops))
        same = nest is not None and nest.part(self.symbol, fewer) == nest.part(
            self.symbol, self.rows
        )
        if nest is None or not same or fewer >= self.rows:
            return self._run(function, inputs, self.rows)
        small = self._inputs(0, fewer)
        want = self._run(function, small, fewer)
        wrong = self.compare(self._run(nest.scheduled, small, fewer, isa), want)
        if wrong is not None:
            raise CompileError(
                f"the default schedule of a loop nest is wrong: {wrong}",
                where=f"{isa}, batch size {fewer}",
                fix="report the model's layers",
            )
        return self._run(nest.scheduled, inputs, self.rows, isa)

    def candidate(
        self, config: Config, isa: str, mcpu: str | None, inputs: Sequence[Array]
    ) -> Candidate:
        """Build the loop nest under a config.

        Raises
        ------
        CompileError
            If the config cannot be applied, or TVM cannot build the code.
        """
        nest = loop_nest(self._loaded(), isa)
        function = None if nest is None else nest.schedule(config)
        if function is None:
            raise CompileError(
                f"the loop nest has no schedule under {dict(config)}",
                where=isa,
                fix="use a config of the task's space",
            )
        arguments, outputs = self._arguments(function, inputs, self.rows)
        return Candidate(build_loops(function, isa, mcpu), "kernel", arguments, outputs)

    def compare(self, got: Sequence[Array], want: Sequence[Array]) -> str | None:
        """Return None if equal but for rounding, which grows with the length of the sums."""
        terms = nest_dims(self._loaded(), self.symbol, self.rows)["reduction"]
        relative = 2.0**-22 * (8 + 4 * math.sqrt(terms))
        for index, (have, wanted) in enumerate(zip(got, want, strict=True)):
            if have.dtype.kind == "f":
                finite = np.abs(wanted[np.isfinite(wanted)])
                close = relative * float(np.max(finite, initial=1e-30))
                with np.errstate(invalid="ignore"):
                    right = (have == wanted) | (np.abs(have - wanted) <= close)
                wrong = ~(right | (np.isnan(have) & np.isnan(wanted)))
            else:
                wrong = have != wanted
            if wrong.any():
                where = tuple(int(i) for i in np.argwhere(wrong)[0])
                return (
                    f"output {index}: {int(wrong.sum())} of {wrong.size} elements are wrong, first "
                    f"at {where}: {have[where]} instead of {wanted[where]}"
                )
        return None

    def _loaded(self) -> Any:
        return _loaded(self.function)

    def _inputs(self, seed: int, rows: int) -> list[Array]:
        rng = np.random.default_rng(seed)
        arrays = []
        for buffer in buffers(self._loaded())[: -self.results]:
            shape = [size_of(d, self.symbol, rows) for d in buffer.shape]
            dtype = np.dtype(str(buffer.dtype))
            array = _empty(shape, dtype)
            array[...] = rng.normal(size=shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
            arrays.append(array)
        return arrays

    def _arguments(
        self, function: Any, inputs: Sequence[Array], rows: int
    ) -> tuple[list[Any], tuple[int, ...]]:
        """Return the arguments in call order, and which of them are results."""
        own = buffers(function)
        outputs = [
            _empty([size_of(d, self.symbol, rows) for d in b.shape], np.dtype(str(b.dtype)))
            for b in own[len(own) - self.results :]
        ]
        arrays = iter([*inputs, *outputs])
        arguments = [
            next(arrays) if hasattr(p.ty, "shape") else size_of(p, self.symbol, rows)
            for p in function.params
        ]
        places = [i for i, argument in enumerate(arguments) if not isinstance(argument, int)]
        return arguments, tuple(places[len(inputs) :])

    def _run(
        self, function: Any, inputs: Sequence[Array], rows: int, isa: str = "avx2"
    ) -> list[Array]:
        import tvm_ffi

        arguments, outputs = self._arguments(function, inputs, rows)
        kernel = build_loops(function, isa)["kernel"]
        kernel(*(a if isinstance(a, int) else tvm_ffi.from_dlpack(a) for a in arguments))
        return [arguments[i] for i in outputs]


@functools.lru_cache(maxsize=8)
def _loaded(text: str) -> Any:
    tvm = import_tvm()
    return tvm.ir.load_json(text)


def _saved(function: Any) -> str:
    return str(import_tvm().ir.save_json(function))


def _empty(shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    return aligned_empty(math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)


@dataclass(frozen=True)
class _Calls:
    """How often ``main`` calls a PrimFunc, and how many results that has."""

    count: int
    results: int


def _calls(module: Any) -> dict[str, _Calls]:
    from tvm import relax

    found: dict[str, _Calls] = {}
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            call = binding.value
            name = getattr(getattr(call, "op", None), "name", None)
            if not isinstance(call, relax.Call) or name != "relax.call_tir":
                continue
            callee, ty = call.args[0].name_hint, call.ty_args[0]
            known = found.get(callee, _Calls(0, 0))
            found[callee] = _Calls(known.count + 1, len(getattr(ty, "fields", (ty,))))
    return found


def _distinct(tasks: Iterable[Task]) -> list[Task]:
    """Return the tasks with those of one workload added up."""
    found: dict[str, Task] = {}
    for task in tasks:
        known = found.get(task.workload.id)
        found[task.workload.id] = replace(known, calls=known.calls + task.calls) if known else task
    return list(found.values())
