"""How one kernel is timed beside what bounds it: what the benchmarks of all ops share."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from lutcc import ir
from lutcc.bench.limits import limit_loop, product_limit, read_loop
from lutcc.bench.options import BenchOptions
from lutcc.bench.rows import Row
from lutcc.bench.timing import burst, interleave
from lutcc.runtime import cpu


def levels(options: BenchOptions) -> list[str]:
    """Return the levels to measure."""
    return [options.isa] if options.isa else list(cpu.supported_isas())


def measured(
    options: BenchOptions,
    name: str,
    workload: str,
    isa: str,
    call: Callable[[], object],
    work: float,
    unit: str,
    limit: Callable[[], object] | None = None,
    limit_work: float = 0,
    limit_name: str = "",
) -> Row:
    """Time a call, interleaved with its limit, and return one row."""
    candidates: dict[str, Callable[[float], list[int]]] = {"kernel": lambda s: burst(call, s)}
    if limit is not None:
        candidates["limit"] = lambda s: burst(limit, s)
    times = interleave(candidates, seconds=options.seconds, rounds=options.rounds)
    kernel = times["kernel"]
    row: Row = {
        "kernel": name,
        "workload": workload,
        "isa": isa,
        "best": kernel.best,
        "median": kernel.median,
        "p20": kernel.p20,
        "p80": kernel.p80,
        "rate": work / kernel.best / 1e9,
        "unit": unit,
        "limit": None,
        "limit_name": limit_name or None,
        "share": None,
    }
    if limit is not None:
        row["limit"] = limit_work / times["limit"].best / 1e9
        row["share"] = row["rate"] / row["limit"]
    return row


def product_bound(
    isa: str, rows: int, weights: tuple[int, int], nbytes: int, what: str
) -> dict[str, Any]:
    """Return what :func:`measured` takes of a product: work, unit, and what bounds it.

    One row is bounded by reading the weights, of ``nbytes``, many by multiply-adds in registers.

    Parameters
    ----------
    isa
        Level of the bound.
    rows, weights
        Rows of x; outputs and columns.
    nbytes, what
        Bytes of the weights as they are stored, and what these are called.
    """
    if rows == 1:
        loop, read = read_loop(isa, nbytes)
        bound = {"limit": loop, "limit_work": read, "limit_name": "reads"}
        return {"work": float(nbytes), "unit": f"GB/s of {what}", **bound}
    name = product_limit(isa).name
    loop, flops = limit_loop(name)
    bound = {"limit": loop, "limit_work": flops, "limit_name": name}
    return {"work": 2.0 * rows * math.prod(weights), "unit": "GFLOP/s", **bound}


def compiled(module: ir.Module, isa: str) -> Any:
    """Return the module's artifact for one level."""
    from lutcc.codegen.targets import parse_targets
    from lutcc.compiler import compile_module

    return compile_module(module, parse_targets(isa))


def in_place(artifact: Any, *inputs: np.ndarray) -> Callable[[], object]:
    """Return a call that writes its results to the same memory each time.

    Fresh results cost page faults, more than some kernels do; the memcpy beside it has none.
    """
    from lutcc.runtime.arguments import admit
    from lutcc.runtime.kernel import allocate

    artifact(*inputs)
    kernel = artifact.kernel
    tensors, sizes, _ = admit(inputs, kernel.inputs)
    return partial(kernel.launch, len(inputs[0]), tensors, allocate(kernel.outputs, sizes, None))


def one_op(opcode: str, x: tuple[tuple[Any, ...], str], constants: list[Any], **attrs: Any) -> Any:
    """Return a module of one op whose first operand is the input."""
    b = ir.Builder("main")
    value = b.param("x", ir.TensorType(*x))
    operands = [b.constant(f"c{i}", array) for i, array in enumerate(constants)]
    b.returns(b.op(opcode, value, *operands, **attrs))
    return b.module()
