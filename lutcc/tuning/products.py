"""Products that stand in main on their own as things to tune."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lutcc import ir
from lutcc.codegen.lower import prepare
from lutcc.codegen.products import (
    SCHEDULES,
    TENSORS,
    default_config,
    part_name,
    product_name,
    products_of,
)
from lutcc.ir.module import Function, Module, Operation, Value
from lutcc.ir.types import Array, Sym, numpy_dtype
from lutcc.schedules.space import Space
from lutcc.schedules.x86.config import MOST_FEW
from lutcc.schedules.x86.isa import Isa, isa_by_name
from lutcc.tuning.stages import StageSubject, canonical_stage, opened, value_of
from lutcc.tuning.task import Task
from lutcc.tuning.workload import Workload

#: By how much attention that rounds to bfloat16 may be off, relative to the largest result.
_PAIRS = 2.0**-5
#: What matters besides N, K and M to how fast a product is, as numbers.
_KINDS = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0}


def product_tasks(
    module: Module,
    isa: str,
    *,
    rows: Sequence[int],
    length: int | None = None,
    mcpu: str | None = None,
    threads: int = 1,
    cache: str = "hot",
) -> list[Task]:
    """Return a task for each distinct product of a module that has a choice, at each size.

    Parameters
    ----------
    module
        Verified; passes run if it has not been through them.
    isa, mcpu
        Target.
    rows, length
        Values of open sizes, see :func:`lutcc.tuning.stages.stage_tasks`.
    threads, cache
        How to measure, see :class:`Workload`.
    """
    prepared = prepare(module)
    level = isa_by_name(isa)
    tasks: dict[str, Task] = {}
    for op in products_of(prepared.main):
        if not tunable(op):
            continue
        own, lead = alone(prepared, op), op.operands[0].type.shape[0]
        for batch in rows if prepared.main.symbols else (1,):
            name, count = op.results[0].name, value_of(lead, batch, length)
            task = _task(own, name, count, batch, level, mcpu, threads, cache)
            known = tasks.get(task.workload.id)
            tasks[task.workload.id] = replace(known, calls=known.calls + 1) if known else task
    return list(tasks.values())


def tunable(op: Operation) -> bool:
    """Tell whether a product has a choice, and takes and gives what NumPy has a type for."""
    kinds = {v.type.dtype for v in (op.operands[0], *op.results)}
    symbols = {d.name for v in op.operands for d in v.type.shape if isinstance(d, Sym)}
    known = len(symbols) < 2 and "bfloat16" not in kinds
    return known and hasattr(SCHEDULES[op.opcode], "space")


def product_space(op: Operation, isa: Isa, rows: int) -> Space:
    """Return the configs worth trying for a product with ``rows`` rows (images)."""
    return SCHEDULES[op.opcode].space(at_rows(op, rows), isa)


@dataclass(frozen=True, slots=True)
class Way:
    """How few rows are done another way than many.

    Attributes
    ----------
    knob
        Says up to how many rows; 0 where the way of many is tuned.
    always
        What it is where the other way is.
    default
        What it is where nothing tells; None if there is no choice.
    """

    knob: str
    always: int
    default: int | None


def few_rows(op: Operation, isa: Isa) -> Way | None:
    """Return how few rows of a product are done another way; None if they are not."""
    knob = f"{part_name(op)}.few"
    if knob not in {k.name for k in product_space(op, isa, 1).knobs}:
        return None
    return Way(knob, MOST_FEW, int(default_config(op, isa).to_json()["few"]))


def product_kernels(module: Module, op: Operation) -> tuple[str, str]:
    """Return a product's canonical text (no names, no values), as it is and with an open batch."""
    own = _own_module(module, op)
    as_is, at_any_rows = (canonical_stage(own, f) for f in (own.main, opened(own.main)))
    return ir.to_text(Module((as_is.main,))), ir.to_text(Module((at_any_rows.main,)))


def alone(module: Module, op: Operation) -> Module:
    """Return a product as a module of its own: canonical names, ``n`` rows."""
    own = _own_module(module, op)
    return canonical_stage(own, own.main)


def _own_module(module: Module, op: Operation) -> Module:
    """Return a module of one product and its constants; its parameters are what is no constant."""
    refs = _constant_refs(module.main)
    operands = list(dict.fromkeys(op.operands))
    found = [v for v in operands if v.name in refs]
    body = [Operation("constant", (), (v,), (("ref", v.name),)) for v in found]
    params = tuple(v for v in operands if v.name not in refs)
    arrays = {v.name: module.constants[refs[v.name]] for v in found}
    constants = {v.name: arrays[v.name].reshape(v.type.static_shape) for v in found}
    return Module((Function("main", params, (*body, op), op.results),), constants)


def _constant_refs(main: Function) -> dict[str, str]:
    """Map each value that is a constant, or one in another shape, to the constant's name."""
    refs: dict[str, str] = {}
    for op in main.body:
        if op.opcode == "constant":
            refs[op.results[0].name] = str(op.attr("ref"))
        elif op.opcode in ("reshape", "repack") and op.operands[0].name in refs:
            refs[op.results[0].name] = refs[op.operands[0].name]
    return refs


def at_rows(op: Operation, rows: int) -> Operation:
    """Return an op with its open size put in: ``rows`` of what its first operand has."""
    lead = op.operands[0].type.shape[0]
    factor = lead.factor if isinstance(lead, Sym) else 1

    def value(v: Value) -> Value:
        shape = tuple(d.factor * rows // factor if isinstance(d, Sym) else d for d in v.type.shape)
        return Value(v.name, replace(v.type, shape=shape))

    operands, results = (tuple(map(value, vs)) for vs in (op.operands, op.results))
    return replace(op, operands=operands, results=results)


def _task(
    module: Module,
    name: str,
    rows: int,
    batch: int,
    isa: Isa,
    mcpu: str | None,
    threads: int,
    cache: str,
) -> Task:
    lead = module.main.params[0].type.shape[0]
    size = rows // lead.factor if isinstance(lead, Sym) else rows
    op = at_rows(products_of(module.main)[0], rows)
    cost = ir.cost(module, size)
    constants = [c for c in module.main.body if c.opcode == "constant"]
    workload = Workload(
        kind="product",
        op=op.opcode,
        kernel=ir.to_text(Module((module.main,))),
        rows=rows if isinstance(lead, Sym) else 0,
        threads=threads,
        cache=cache,
        dims=product_dims(op, rows),
        cost={
            "lookups": 0,
            "flops": cost.total.flops,
            "bytes": cost.io_bytes + sum(c.results[0].type.nbytes for c in constants),
        },
    )
    given, result = ("x".join(map(str, v.type.shape)) for v in (op.operands[0], op.results[0]))
    return Task(
        name=f"{name} {given} -> {result}",
        workload=workload,
        space=SCHEDULES[op.opcode].space(op, isa),
        subject=ProductSubject(module, size, threads),
        isa=isa.name,
        mcpu=mcpu,
        batch=batch,
    )


def product_dims(op: Operation, rows: int) -> dict[str, float]:
    """Return the numbers that decide how fast a product is.

    ``rows``, ``columns_in``, ``columns_out``; ``depth`` and ``width`` of the matrix of weights;
    ``multiplied``, the bytes of a number that is multiplied; for images ``pixels`` of a result.

    Parameters
    ----------
    op
        Of known sizes.
    rows
        Rows, or images.
    """
    result, first = op.results[0].type, op.operands[0].type
    weight = op.operands[1].type.static_shape
    compute = dict(op.attrs).get("compute", first.dtype)
    dims = {
        "rows": float(rows),
        "columns_in": float(math.prod(first.sizes(1))),
        "columns_out": float(math.prod(result.sizes(1))),
        "width": float(weight[0]),
        "depth": float(math.prod(weight[1:])),
        "multiplied": _KINDS.get(str(compute), 4.0),
    }
    if op.opcode == "sampled_matmul":
        dims |= {"depth": float(weight[0]), "width": float(weight[1])}
    if op.opcode == "codebook_matmul":
        dims |= {"width": dims["columns_out"], "depth": dims["columns_in"]}
        dims |= {"bits": float(dict(op.attrs)["bits"])}  # type: ignore[arg-type]
    if len(first.shape) == 4:
        dims |= {"pixels": math.prod(result.static_shape) / (rows * dims["width"])}
    return dims


class ProductSubject(StageSubject):
    """Builds one product and judges it by the interpreter: bit by bit, or by the op's tolerance."""

    def config_name(self) -> str:
        """Return the name under which the config is given."""
        return product_name(self._op())

    def inputs(self, seed: int) -> list[Array]:
        """Return random inputs; what is sampled, of indices that exist, once each."""
        rng = np.random.default_rng(seed)
        return [self._input(param, rng) for param in self.module.main.params]

    def compare(self, got: Sequence[Array], want: Sequence[Array]) -> str | None:
        """Return None if equal, but for the rounding that the op's definition leaves open."""
        op = self._op()
        spec = ir.OPS[op.opcode]
        types = [value.type for value in op.operands]
        exact = spec.exact is not None and spec.exact(types)
        tolerance = spec.tolerance
        if op.opcode in TENSORS and op.attr("compute") == "bfloat16":
            tolerance = _PAIRS
        rounding = 0.0 if spec.rounding is None else spec.rounding(types, dict(op.attrs))
        for index, (have, wanted) in enumerate(zip(got, want, strict=True)):
            h, w = have.astype(np.float64), wanted.astype(np.float64)
            same = (h == w) | (np.isnan(h) & np.isnan(w))
            if not exact:
                scale = float(np.max(np.abs(w[np.isfinite(w)]), initial=1e-30))
                same |= np.abs(h - w) <= tolerance * scale + rounding * np.abs(w)
            if not same.all():
                where = tuple(int(i) for i in np.argwhere(~same)[0])
                return (
                    f"output {index}: {int((~same).sum())} of {same.size} elements are wrong, "
                    f"first at {where}: {have[where]} instead of {wanted[where]}"
                )
        return None

    def _op(self) -> Operation:
        return products_of(self.module.main)[0]

    def _input(self, param: Value, rng: np.random.Generator) -> Array:
        shape = tuple(d.factor * self.size if isinstance(d, Sym) else d for d in param.type.shape)
        dtype = numpy_dtype(param.type.dtype)
        op = self._op()
        if np.dtype(dtype).kind == "i" and op.opcode.startswith("sampled"):
            return np.fromiter(self._choices(op, math.prod(shape)), dtype).reshape(shape)
        return rng.normal(size=shape).astype(dtype)

    def _choices(self, op: Operation, count: int) -> Iterator[int]:
        """Yield what is sampled, evenly spread; of a convolution, group by group."""
        size = op.operands[0].type.size(1)
        group = int(dict(op.attrs).get("group_size", 1))  # type: ignore[arg-type]
        yield from (i * (-(-size // group)) // count for i in range(count))
