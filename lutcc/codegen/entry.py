"""The entry function: arguments, memory between stages, and one operation of main after another."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as builder

from lutcc.codegen.arguments import Arguments
from lutcc.codegen.movement import MOVEMENT, emit_movement
from lutcc.codegen.products import SCHEDULES, Products, check_constants
from lutcc.codegen.sizes import Sizes
from lutcc.codegen.stages import StageEmitter
from lutcc.codegen.threads import Threads, useful_threads
from lutcc.codegen.values import Values
from lutcc.errors import CompileError
from lutcc.ir import OPS
from lutcc.ir.module import Module, Operation
from lutcc.schedules.x86 import plan
from lutcc.schedules.x86.config import KernelConfigs
from lutcc.schedules.x86.context import Scratch
from lutcc.schedules.x86.emit import (
    Expr,
    i64,
    instructions_of,
    masked_definitions,
    streaming_definitions,
    word_definitions,
)
from lutcc.schedules.x86.isa import Isa


class EntryEmitter:
    """Emits one entry function of a module made of stages and data movement.

    Emitting the serial function finds out how much block scratch a thread needs (``per_thread``);
    the parallel one, and the one that allocates its own workspace, must be told. One that is both
    reads the caller's number of threads from memory, and uses fewer where the batch (the product of
    all open sizes) is less than ``rows_per_thread`` for each.
    """

    def __init__(
        self,
        module: Module,
        isa: Isa,
        configs: Mapping[str, KernelConfigs],
        products: Products,
        symbol: str,
        batch: str | None,
        *,
        parallel: bool = False,
        own_workspace: bool = False,
        per_thread: int = 0,
        rows_per_thread: float = 1,
    ) -> None:
        self.module, self.isa, self.configs = module, isa, configs
        self.products = products
        self.symbol, self.batch = symbol, batch
        self.parallel, self.own_workspace = parallel, own_workspace
        self.per_thread = per_thread
        self.rows_per_thread = rows_per_thread
        self.per_row = 0
        self.fixed = products.shared_bytes(module.main)
        self.blob_entries: list[dict[str, Any]] = []
        self.blob_nbytes = 0
        check_constants(module.main)
        self.functions = {f.name: plan.without_repacks(f) for f in module.functions}

    def emit(self) -> Any:
        """Return the function."""
        with IRBuilder() as ib:
            with builder.prim_func(s_tir=True):
                builder.func_name(self.symbol)
                builder.func_attr({"global_symbol": self.symbol, "tirx.noalias": True})
                with contextlib.ExitStack() as stack:
                    self._body(stack)
            return ib.get()

    def _body(self, stack: contextlib.ExitStack) -> None:
        main = self.module.main
        sizes = Sizes(self.batch)
        arguments = Arguments(main, sizes, parallel=self.parallel, own_workspace=self.own_workspace)
        stack.enter_context(streaming_definitions())
        stack.enter_context(instructions_of(self.isa))
        if any(op.opcode == "sampled_conv2d" for op in main.body):
            stack.enter_context(masked_definitions())
        opcodes = {op.opcode for function in self.functions.values() for op in function.body}
        if opcodes & {"lut_conv2d", "tree_encode"}:
            stack.enter_context(word_definitions())
        count = arguments.threads
        if self.parallel and self.own_workspace:
            count = useful_threads(count, main, sizes, self.rows_per_thread)
        values = Values(main, arguments, sizes, dict(self.module.constants))
        self.per_row = values.per_row
        shared = sizes.batch * self.per_row
        space = arguments.workspace
        if space is None:
            scratch = (count if self.parallel else 1) * i64(self.per_thread)
            nbytes = shared + scratch + i64(self.fixed + 64)
            space = builder.alloc_buffer((nbytes,), "uint8", scope="global")
        values.put_into(space)
        threads = Threads(
            count if self.parallel else None, space, shared + self.fixed, self.per_thread
        )
        values.copy_parameters()
        for op in main.body:
            self._operation(op, values, threads, shared)
        values.copy_results()
        self.per_thread = threads.per_thread
        self.blob_entries, self.blob_nbytes = values.blob.entries, values.blob.nbytes

    def _operation(self, op: Operation, values: Values, threads: Threads, shared: Expr) -> None:
        """Emit an operation of main; ``shared`` is where threads have memory in common."""
        if op.opcode == "call":
            function = self.functions[str(op.attr("callee"))]
            configs = self.configs[function.name]
            StageEmitter(self.isa, configs, values, threads, function).emit(op)
        elif op.opcode in MOVEMENT:
            emit_movement(op, values, threads)
        elif op.opcode in SCHEDULES:
            self.products.emit(op, values, threads, Scratch(threads.space, shared))
        elif op.opcode == "constant":
            values.add_constant(op)
        elif op.opcode in OPS and OPS[op.opcode].lowering == "training":
            raise CompileError(
                f"{op.opcode} belongs to training and has no kernel in artifacts",
                where="@main",
                fix="run the model in torch, whose operator torch.ops.lutcc."
                f"{op.opcode} does it, or export it in eval mode, where sampled layers are exact",
            )
        elif op.opcode not in ("reshape", "repack"):
            raise CompileError(
                f"{op.opcode} stands outside a fused group and has no schedule there",
                where="@main",
                fix="run lutcc.ir.passes.run_pipeline on the module first",
            )
