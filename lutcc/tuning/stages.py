"""Stages of lutcc's own kernels as things to tune."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lutcc import ir
from lutcc.codegen.lower import lower, prepare, stage_functions
from lutcc.frontend.size_names import BATCH, PRODUCT
from lutcc.ir.module import Function, Module, Operation, Value
from lutcc.ir.types import ROW_MAJOR, Array, Dim, Sym
from lutcc.schedules.space import Config, nested
from lutcc.schedules.x86.isa import isa_by_name
from lutcc.schedules.x86.pack import aligned_empty, pack_blob
from lutcc.schedules.x86.plan import HASHES, goes_by_images, stage_space, without_repacks
from lutcc.tuning.task import Candidate, Task
from lutcc.tuning.workload import Workload

_VALUE_DEPENDENT = ("bound",)


def stage_tasks(
    module: Module,
    isa: str,
    *,
    rows: Sequence[int],
    length: int | None = None,
    mcpu: str | None = None,
    threads: int = 1,
    cache: str = "hot",
) -> list[Task]:
    """Return a task for each distinct stage of a module at each batch size.

    Parameters
    ----------
    module
        Verified; passes run if it has not been through them.
    isa, mcpu
        Target.
    rows
        Values of the module's symbol (batch sizes). A module without symbol has its own.
    length
        Value of every other open size, where the symbol is a product of several.
    threads, cache
        How to measure, see :class:`Workload`.
    """
    prepared = prepare(module)
    calls: dict[str, float] = {}
    for op in prepared.main.body:
        if op.opcode == "call":
            calls[str(op.attr("callee"))] = calls.get(str(op.attr("callee")), 0) + 1
    tasks: dict[str, Task] = {}
    for function in stage_functions(prepared):
        if goes_by_images(function):
            continue
        for batch in rows if prepared.main.symbols else (1,):
            lead = function.params[0].type.shape[0]
            count = value_of(lead, batch, length)
            task = _task(
                prepared, function, count, batch, isa, mcpu, threads, cache, calls[function.name]
            )
            known = tasks.get(task.workload.id)
            tasks[task.workload.id] = (
                replace(known, calls=known.calls + task.calls) if known else task
            )
    return list(tasks.values())


def value_of(dim: Dim, batch: int, length: int | None = None) -> int:
    """Return a size with numbers put in for its symbols, whose product it may be.

    Parameters
    ----------
    dim
        A number or a symbol.
    batch
        Value of ``n``.
    length
        Value of the others; None: they are batch sizes under other names.

    Examples
    --------
    >>> value_of(ir.Sym("length.n", 2), 8, 16), value_of(ir.Sym("rows"), 8), value_of(7, 8)
    (256, 8, 7)
    """
    if not isinstance(dim, Sym):
        return int(dim)
    other = batch if length is None else length
    return dim.factor * math.prod(
        batch if part == BATCH else other for part in dim.name.split(PRODUCT)
    )


def stage_kernel(module: Module, function: Function) -> str:
    """Return the canonical text of a stage: ops, attributes, shapes; no names, no values.

    Two stages with the same text run equally fast under the same config.
    """
    alone = canonical_stage(module, function)
    return ir.to_text(Module((alone.main,)))


def opened(function: Function) -> Function:
    """Return a stage of fixed rows as the same stage with an open batch."""
    fixed = {op.results[0].name for op in function.body if op.opcode == "constant"}

    def value(v: Value) -> Value:
        lead = v.type.shape[0] if v.type.shape else None
        if v.name in fixed or not isinstance(lead, int):
            return v
        shape = (Sym("n", lead), *v.type.shape[1:])
        return Value(v.name, replace(v.type, shape=shape))

    def values(group: tuple[Value, ...]) -> tuple[Value, ...]:
        return tuple(value(v) for v in group)

    body = tuple(
        replace(op, operands=values(op.operands), results=values(op.results))
        for op in function.body
    )
    return replace(
        function, params=values(function.params), body=body, returns=values(function.returns)
    )


def canonical_stage(module: Module, function: Function) -> Module:
    """Return a stage as a module of its own: canonical names, ``n`` rows, no layouts."""
    plain = without_repacks(function)
    factor = math.gcd(*_factors(plain)) if _factors(plain) else 1

    def value(v: Value) -> Value:
        shape = tuple(
            Sym("n", d.factor // factor) if isinstance(d, Sym) else d for d in v.type.shape
        )
        return Value(v.name, replace(v.type, shape=shape, layout=ROW_MAJOR))

    def operation(op: Operation) -> Operation:
        attrs = tuple((k, v) for k, v in op.attrs if k not in _VALUE_DEPENDENT)
        return Operation(
            op.opcode, tuple(map(value, op.operands)), tuple(map(value, op.results)), attrs
        )

    main = Function(
        "main",
        tuple(map(value, plain.params)),
        tuple(map(operation, plain.body)),
        tuple(map(value, plain.returns)),
    )
    refs = {str(op.attr("ref")) for op in plain.body if op.opcode == "constant"}
    constants = {name: array for name, array in module.constants.items() if name in refs}
    return Module((main,), constants).canonical()


def _factors(function: Function) -> list[int]:
    values = [*function.params, *(v for op in function.body for v in op.results)]
    return [d.factor for v in values for d in v.type.shape if isinstance(d, Sym)]


def _task(
    module: Module,
    function: Function,
    rows: int,
    batch: int,
    isa: str,
    mcpu: str | None,
    threads: int,
    cache: str,
    calls: float,
) -> Task:
    alone = canonical_stage(module, function)
    symbolic = bool(alone.main.symbols)
    lead_alone = alone.main.params[0].type.shape[0]
    size = rows // lead_alone.factor if isinstance(lead_alone, Sym) else rows
    space = stage_space(isa_by_name(isa), function, rows)
    cost = ir.cost(alone, size)
    table = {"lut_accumulate": 1, "weighted_gather": 2}
    luts = {op.operands[table[op.opcode]].name for op in alone.main.body if op.opcode in table}
    dense = sum(
        op.results[0].type.nbytes
        for op in alone.main.body
        if op.opcode == "constant" and op.results[0].name not in luts
    )
    ops = [op.opcode for op in alone.main.body if op.opcode != "constant"]
    workload = Workload(
        kind="stage",
        op="+".join(ops),
        kernel=stage_kernel(module, function),
        rows=rows if symbolic else 0,
        threads=threads,
        cache=cache,
        dims=stage_dims(alone, rows),
        cost={
            "lookups": cost.total.lookups,
            "flops": cost.total.flops,
            "bytes": cost.io_bytes + dense + min(cost.total.table_bytes, cost.constant_bytes),
        },
    )
    shapes = [v.type.shape for v in (*alone.main.params, *alone.main.returns)]
    text = " -> ".join("x".join(str(d) for d in (rows, *s[1:])) for s in (shapes[0], shapes[-1]))
    return Task(
        name=f"{function.name} {text}",
        workload=workload,
        space=space,
        subject=StageSubject(module_of_stage(alone), size, threads),
        isa=isa,
        mcpu=mcpu,
        calls=calls,
        batch=batch,
    )


def stage_dims(stage: Module, rows: int) -> dict[str, float]:
    """Return the numbers that decide how fast a stage is.

    ``rows``, ``columns_in``, ``columns_out``; for look-ups ``codebooks``, ``entries``, ``outputs``
    (of the largest scan), ``table_bytes``, ``mean``; for matrix products ``depth``, ``width``; for
    gathers ``codes``, ``entries``, ``outputs``, ``itemsize`` and ``table_bytes``.
    """
    main = stage.main
    dims: dict[str, float] = {
        "rows": rows,
        "columns_in": math.prod(main.params[0].type.sizes(1)),
        "columns_out": math.prod(main.returns[0].type.sizes(1)),
        "codebooks": 0, "entries": 0, "outputs": 0, "table_bytes": 0, "mean": 0, "depth": 0,
        "width": 0, "encoders": 0, "ops": 0,
    }  # fmt: skip
    for op in main.body:
        dims["ops"] += op.opcode != "constant"
        dims["encoders"] += op.opcode.endswith("_encode")
        if op.opcode == "lut_accumulate":
            codebooks, entries, outputs = op.operands[1].type.sizes()
            nbytes = op.operands[1].type.nbytes
            if nbytes >= dims["table_bytes"]:
                dims |= {
                    "codebooks": codebooks,
                    "entries": entries,
                    "outputs": outputs,
                    "table_bytes": nbytes,
                    "mean": float(op.attr("accumulate") == "mean"),
                }
        elif op.opcode == "weighted_gather":
            _, entries, outputs = op.operands[2].type.sizes()
            dims |= {
                "codes": op.operands[0].type.size(1),
                "entries": entries,
                "outputs": outputs,
                "itemsize": op.operands[2].type.itemsize,
                "table_bytes": dims["table_bytes"] + op.operands[2].type.nbytes,
            }
        elif op.opcode in ("linear", "block_diagonal_matmul"):
            width, depth = op.operands[1].type.sizes()[-2:]
            if op.opcode != "linear":  # each block is (depth, width)
                width, depth = depth, width
            if width * depth >= dims["depth"] * dims["width"]:
                dims |= {"depth": depth, "width": width}
    return dims


def module_of_stage(stage: Module) -> Module:
    """Return a module whose ``main`` calls the stage, ready to lower."""
    kernel = replace(stage.main, name="stage")
    call = Operation("call", kernel.params, kernel.returns, (("callee", kernel.name),))
    main = Function("main", kernel.params, (call,), kernel.returns)
    return Module((main, kernel), stage.constants)


@dataclass(frozen=True)
class StageSubject:
    """Builds one stage and judges it by the interpreter, bit by bit where the op is exact.

    Attributes
    ----------
    module
        ``main`` calls the one stage.
    size
        Value of the symbol.
    threads
        Threads that run it.
    """

    module: Module
    size: int
    threads: int = 1
    _blobs: dict[tuple[str, int], Array] = field(default_factory=dict, compare=False, repr=False)

    def config_name(self) -> str:
        """Return the name under which the config is given to :func:`lutcc.codegen.lower`."""
        (name,) = (f.name for f in stage_functions(self.module))
        return name

    def inputs(self, seed: int) -> list[Array]:
        """Return random inputs: floats around the thresholds, codes within the tables."""
        rng = np.random.default_rng(seed)
        arrays = []
        for param in self.module.main.params:
            shape = tuple(
                d.factor * self.size if isinstance(d, Sym) else d for d in param.type.shape
            )
            if param.type.dtype == "float32":
                arrays.append(rng.normal(size=shape).astype(np.float32))
            else:
                arrays.append(rng.integers(0, self._largest(param), shape).astype(param.type.dtype))
        return arrays

    def _largest(self, param: Value) -> int:
        """Return one more than the largest integer that makes sense for a parameter."""
        kernel = next(f for f in self.module.functions if f.name != "main")
        entries = [
            op.operands[-1].type.size(1)
            for op in kernel.body
            if op.opcode in ("lut_accumulate", "weighted_gather")
            and op.operands[0].name == param.name
        ]
        return min(entries, default=256)

    def reference(self, inputs: Sequence[Array]) -> list[Array]:
        """Return the interpreter's results."""
        return list(ir.interpret(self.module, list(inputs)))

    def candidate(
        self, config: Config, isa: str, mcpu: str | None, inputs: Sequence[Array]
    ) -> Candidate:
        """Build the kernel under a config."""
        from lutcc.codegen.build import build_module

        given = {self.config_name(): nested(config)}
        lowered = lower(self.module, isa, given, parallel=self.threads > 1)
        program = lowered.program
        symbol = program.entry + ("_mt" if self.threads > 1 else "")
        alone = replace(lowered, functions={symbol: lowered.functions[symbol]})
        blob = self._packed(json.dumps(program.to_json()["blob"]), program.blob_nbytes)
        space = program.workspace
        nbytes = space["fixed"] + space["per_row"] * self.size + space["per_thread"] * self.threads
        outputs = []
        for result in self.module.main.returns:
            shape, dtype = _shape(result, self.size), np.dtype(result.type.dtype)
            memory = aligned_empty(math.prod(shape) * dtype.itemsize)
            outputs.append(memory.view(dtype).reshape(shape))
        arguments: list[Any] = [*inputs, blob, aligned_empty(nbytes + 64), *outputs, self.threads]
        first = len(inputs) + 2
        return Candidate(
            build_module(alone, mcpu=mcpu),
            symbol,
            arguments,
            tuple(range(first, first + len(outputs))),
            scratch=(first - 1,),
        )

    def _packed(self, blob: str, nbytes: int) -> Array:
        """Pack the constants, once for each layout that the configs ask for."""
        key = (blob, nbytes)
        if key not in self._blobs:
            self._blobs.clear()  # configs of one kind come after each other; tables may be large
            program = {"blob": json.loads(blob), "blob_nbytes": nbytes}
            self._blobs[key] = pack_blob(program, dict(self.module.constants))
        return self._blobs[key]

    def compare(self, got: Sequence[Array], want: Sequence[Array]) -> str | None:
        """Return None if equal: bit by bit, or to rounding where an operation sums floats.

        Where a projection is hashed, its rounding may flip a sign next to zero: one row in fifty
        may differ by more.
        """
        body = [op for f in self.module.functions for op in f.body]
        opcodes = {op.opcode for op in body}
        loose = {op.opcode: tolerance for op in body if (tolerance := _tolerance(op))}
        flips = "sign_hash" in opcodes and bool(opcodes & {"hadamard", "block_diagonal_matmul"})
        quantised = any(v.type.dtype == "int8" for op in body for v in op.operands)
        tolerance = max(loose.values(), default=0.0)
        if opcodes & HASHES:
            tolerance = 2e-3 if quantised else 2e-5
        for index, (have, wanted) in enumerate(zip(got, want, strict=True)):
            if not tolerance or have.dtype.kind in "iu":
                wrong = ~((have == wanted) | ((have != have) & (wanted != wanted)))
            else:
                scale = float(np.max(np.abs(wanted), initial=1e-30))
                wrong = ~(np.abs(have - wanted) <= tolerance * scale)
            if flips and wrong.any(axis=1).sum() <= len(wrong) // 50:
                continue
            if wrong.any():
                where = tuple(int(i) for i in np.argwhere(wrong)[0])
                return (
                    f"output {index}: {int(wrong.sum())} of {wrong.size} elements are wrong, first "
                    f"at {where}: {have[where]} instead of {wanted[where]}"
                )
        return None


def _tolerance(op: Operation) -> float:
    """Return the error that an operation's definition allows, 0 if it is exact."""
    spec = ir.OPS.get(op.opcode)
    if spec is None or (spec.exact is not None and spec.exact([v.type for v in op.operands])):
        return 0.0
    return spec.tolerance


def _shape(value: Value, size: int) -> tuple[int, ...]:
    return tuple(d.factor * size if isinstance(d, Sym) else int(d) for d in value.type.shape)
