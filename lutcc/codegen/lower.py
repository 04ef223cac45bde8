"""IR module -> one TVM function per instruction-set level: entry point, stages, planned memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lutcc import ir
from lutcc.codegen.program import Program, TensorSpec
from lutcc.codegen.tvm_setup import import_tvm
from lutcc.errors import CompileError
from lutcc.ir.module import Function, Module, Operation, Value
from lutcc.ir.types import Sym
from lutcc.schedules.x86.config import KernelConfigs
from lutcc.schedules.x86.isa import Isa, isa_by_name

if TYPE_CHECKING:
    from lutcc.codegen.products import Products
    from lutcc.ir.passes import LookupNote

ENTRY = "lutcc_main"


@dataclass(frozen=True)
class Lowered:
    """A program and its functions, ready to build.

    Attributes
    ----------
    program
        What the manifest stores.
    functions
        TVM ``PrimFunc`` by symbol.
    module
        The module after the passes.
    """

    program: Program
    functions: Mapping[str, Any]
    module: Module


def prepare(module: Module, notes: list[LookupNote] | None = None) -> Module:
    """Run the passes unless the module already consists of stages; ``notes`` takes theirs."""
    if any(op.opcode == "call" for op in module.main.body):
        return module
    from lutcc.ir.passes import run_pipeline

    return run_pipeline(module, notes=notes)


def lower(
    module: Module,
    isa: str,
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    parallel: bool = True,
    own_workspace: bool = False,
    rows_per_thread: float = 1,
    entry: str = ENTRY,
) -> Lowered:
    """Lower a module for one instruction-set level.

    Parameters
    ----------
    module
        A verified module; passes run if it has not been through them.
    isa
        A level of :data:`lutcc.schedules.x86.isa.ISAS`, or the name of a level's emulation.
    configs
        For each stage, values that replace the defaults, nested as
        :meth:`lutcc.schedules.x86.config.KernelConfigs.to_json` nests them, and ``source``.
    parallel
        Also make the entry point that uses TVM's thread pool.
    own_workspace
        Allocate the workspace inside, for calls from Relax. Such an entry point takes no workspace,
        and its thread count, if it is parallel, as int64[1] in its place.
    rows_per_thread
        Rows of the batch, or units of the product of all open sizes, that a thread is worth waking
        for (with ``own_workspace``; other entry points are told how many threads to use).
    entry
        Symbol of the entry point.

    Raises
    ------
    CompileError
        If an operation has no schedule, or the module has more than one symbolic dimension.
    """
    import_tvm()
    from lutcc.codegen.entry import EntryEmitter
    from lutcc.codegen.products import Products

    level = isa_by_name(isa)
    prepared = prepare(module)
    ir.verify(prepared)
    batch = _batch_symbol(prepared.main)
    chosen = stage_configs(prepared, level, configs or {})
    products = Products(level, configs or {})
    serial = EntryEmitter(prepared, level, chosen, products, entry, batch)
    functions = {entry: serial.emit()}
    if own_workspace or parallel:
        symbol = entry if own_workspace else entry + "_mt"
        functions[symbol] = EntryEmitter(
            prepared,
            level,
            chosen,
            products,
            symbol,
            batch,
            parallel=parallel,
            own_workspace=own_workspace,
            per_thread=serial.per_thread,
            rows_per_thread=rows_per_thread,
        ).emit()
    main = prepared.main
    program = Program(
        isa=level.name,
        features=level.features,
        entry=entry,
        inputs=tuple(_spec(v) for v in main.params),
        outputs=tuple(_spec(v) for v in main.returns),
        blob=tuple(serial.blob_entries),
        blob_nbytes=serial.blob_nbytes,
        workspace={
            "fixed": serial.fixed,
            "per_row": serial.per_row,
            "per_thread": serial.per_thread,
        },
        kernels=tuple(_kernel_records(prepared, chosen, products)),
        batch=batch,
    )
    return Lowered(program, functions, prepared)


def stage_configs(
    module: Module, isa: Isa, configs: Mapping[str, Mapping[str, Any]]
) -> dict[str, KernelConfigs]:
    """Return the configs of every stage: defaults, with the given values put in."""
    from lutcc.schedules.x86.plan import default_stage_configs

    result = {}
    for function in stage_functions(module):
        config = default_stage_configs(isa, function)
        if function.name in configs:
            values = dict(configs[function.name])
            source = str(values.pop("source", "given"))
            config = config.updated(values, source)
        result[function.name] = config
    return result


def stage_functions(module: Module) -> list[Function]:
    """Return the functions that main calls, in order of their first call."""
    by_name = {f.name: f for f in module.functions}
    called = [str(op.attr("callee")) for op in module.main.body if op.opcode == "call"]
    return [by_name[name] for name in dict.fromkeys(called)]


def _batch_symbol(main: Function) -> str | None:
    from lutcc.codegen.products import TENSORS

    symbols = main.symbols
    if len(symbols) > 1 and any(op.opcode not in ("constant", *TENSORS) for op in main.body):
        raise CompileError(
            f"the module has {len(symbols)} symbolic dimensions ({', '.join(symbols)}), "
            f"which only {', '.join(TENSORS)} may have",
            where="@main",
            fix="make all but the batch dimension numbers",
        )
    leading = [d.name for v in main.params for d in v.type.shape if isinstance(d, Sym)]
    return leading[0] if leading else None


def _spec(value: Value) -> TensorSpec:
    shape = tuple((d.name, d.factor) if isinstance(d, Sym) else int(d) for d in value.type.shape)
    return TensorSpec(value.name, shape, value.type.dtype)


def _kernel_records(
    module: Module, chosen: Mapping[str, KernelConfigs], products: Products
) -> list[dict[str, Any]]:
    from lutcc.codegen.products import part_name, product_name, products_of

    records = []
    for function in stage_functions(module):
        config = chosen[function.name]
        records.append(
            {
                "stage": function.name,
                "ops": [_describe(op) for op in function.body if op.opcode != "constant"],
                "config": config.to_json(),
                "source": config.source,
            }
        )
    for op in products_of(module.main):
        config = {part_name(op): products.config(op).to_json()}
        name, source = product_name(op), products.source(op)
        records.append({"stage": name, "ops": [_describe(op)], "config": config, "source": source})
    return records


def _describe(op: Operation) -> str:
    def shape(value: Value) -> str:
        return "x".join(str(d) for d in value.type.shape)

    inputs = ", ".join(shape(v) for v in op.operands)
    return f"{op.opcode}({inputs}) -> {', '.join(shape(v) for v in op.results)}"
