"""The entry function: arguments, memory between stages, a loop over threads and blocks a stage."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import tvm.tirx as tir
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as builder

from lutcc.codegen.memory import memory_roots, read_as_whole, row_major, stored
from lutcc.codegen.products import (
    PACKED,
    SCHEDULES,
    STRIDED,
    TENSORS,
    Products,
    check_constants,
    packed_alone,
)
from lutcc.errors import CompileError
from lutcc.ir import OPS
from lutcc.ir.module import Function, Module, Operation, Value
from lutcc.ir.types import Sym
from lutcc.schedules.x86 import data_movement, elementwise, hash_rows, lut_images, plan
from lutcc.schedules.x86.blocks import BlockEmitter
from lutcc.schedules.x86.config import KernelConfigs
from lutcc.schedules.x86.context import (
    BlobLayout,
    Constant,
    External,
    Scratch,
    StageContext,
    Tensor,
    Workspace,
)
from lutcc.schedules.x86.emit import (
    ITEMSIZE,
    Expr,
    View,
    bind,
    both,
    branch,
    equal,
    fence,
    hold,
    i64,
    instructions_of,
    loop,
    masked_definitions,
    maximum,
    minimum,
    streaming_definitions,
    word_definitions,
)
from lutcc.schedules.x86.emit import parallel as parallel_loop
from lutcc.schedules.x86.isa import Isa
from lutcc.schedules.x86.rows import RowEmitter

_FLAT = 1 << 40  # extent of flat views: kernels index by byte offset, bounds are in the types
#: Outputs of at least this many bytes bypass the caches: they would not stay in L2 anyway.
STREAM_BYTES = 1 << 20
_DATA_MOVEMENT = ("im2col", "rows_to_nchw", "max_pool2d", "relu", "add")


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
        self.symbol, self.batch_name = symbol, batch
        self.parallel, self.own_workspace = parallel, own_workspace
        self.per_thread = per_thread
        self.rows_per_thread = rows_per_thread
        self.per_row = 0
        self.fixed = products.shared_bytes(module.main)
        self.blob_entries: list[dict[str, Any]] = []
        self.blob_nbytes = 0
        self.memory: dict[str, External | View] = {}
        self.constants: dict[str, Constant] = {}
        check_constants(module.main)
        self.packed_alone = packed_alone(module.main)
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

    # -- arguments and memory ------------------------------------------------------------

    def _body(self, stack: contextlib.ExitStack) -> None:
        main = self.module.main
        handles = [builder.arg(f"in_{i}", builder.handle()) for i in range(len(main.params))]
        blob_handle = builder.arg("blob", builder.handle())
        workspace_handle = None
        threads_handle = None
        if not self.own_workspace:
            workspace_handle = builder.arg("workspace", builder.handle())
        elif self.parallel:
            threads_handle = builder.arg("threads", builder.handle())
        outs = [builder.arg(f"out_{i}", builder.handle()) for i in range(len(main.returns))]
        if not self.own_workspace:
            self.threads = builder.arg("threads", tir.Var("threads", "int64"))
        self.batch: Expr = i64(1)
        self.sizes: dict[str, Expr] = {}
        matched_inputs = [
            self._match(v, h, strided=True) for v, h in zip(main.params, handles, strict=True)
        ]
        matched_outputs = [self._match(v, h) for v, h in zip(main.returns, outs, strict=True)]
        blob = builder.match_buffer(
            blob_handle, (tir.Var("blob_bytes", "int64"),), "uint8", align=64
        )
        self.blob = BlobLayout(blob, dict(self.module.constants))
        space: Any = None
        if workspace_handle is not None:
            space = builder.match_buffer(
                workspace_handle, (tir.Var("workspace_bytes", "int64"),), "uint8", align=1
            )
        given = None
        if threads_handle is not None:
            given = builder.match_buffer(threads_handle, (1,), "int64", align=8)
        stack.enter_context(streaming_definitions())
        stack.enter_context(instructions_of(self.isa))
        if given is not None:
            self.threads = self._useful_threads(tir.BufferLoad(given, [i64(0)]))
        if any(op.opcode == "sampled_conv2d" for op in main.body):
            stack.enter_context(masked_definitions())
        opcodes = {op.opcode for function in self.functions.values() for op in function.body}
        if opcodes & {"lut_conv2d", "tree_encode"}:
            stack.enter_context(word_definitions())
        for value, (buffer, strides) in zip(main.params, matched_inputs, strict=True):
            self.memory[value.name] = self._declare(value, buffer, strides)
        roots = memory_roots(main)
        constants = {v.name for op in main.body for v in op.results if op.opcode == "constant"}
        returned: dict[str, Any] = {}
        copies: list[tuple[Value, Any]] = []
        for value, (buffer, strides) in zip(main.returns, matched_outputs, strict=True):
            target = self._streamed(value, self._declare(value, buffer, strides))
            root = roots[value.name]
            if root in returned or root in self.memory or root in constants:
                copies.append((value, target))
            else:
                returned[root] = target
        self.memory.update(returned)
        between = [v for op in main.body for v in op.results if op.opcode != "constant"]
        planned = Workspace(None, self.batch, i64(0))
        for value in between:
            if roots[value.name] == value.name and value.name not in self.memory:
                view = planned.between_stages(self._bytes_per_row(value), stored(value))
                self.memory[value.name] = view
        self.compact = {
            value.name: planned.between_stages(self._bytes_per_row(value), stored(value))
            for value in main.params
            if value.name in read_as_whole(main, roots)
        }
        self.per_row = planned.per_row
        if self.own_workspace:
            scratch = (self.threads if self.parallel else 1) * i64(self.per_thread)
            nbytes = self.batch * self.per_row + scratch + i64(self.fixed + 64)
            space = builder.alloc_buffer((nbytes,), "uint8", scope="global")
        for views in (self.memory, self.compact):
            for name, view in views.items():
                if isinstance(view, View) and view.buffer is None:
                    views[name] = View(space, view.base, view.dtype)
        self.space = space
        self.shared_base = self.batch * self.per_row
        self.scratch_base = self.shared_base + self.fixed
        self.roots = roots
        for value in main.params:
            if value.name in self.compact:
                self._copy(value, self.compact[value.name])
        for op in main.body:
            self._operation(op)
        for value, target in copies:
            self._copy(value, target)
        self.blob_entries, self.blob_nbytes = self.blob.entries, self.blob.nbytes

    def _useful_threads(self, most: Expr) -> Expr:
        """Return how many threads the open sizes give enough to do, at most ``most``."""
        if not self.sizes:
            first = self.module.main.params[0].type.sizes()[:1]
            enough = i64(int(max(1, *first, 1) / self.rows_per_thread))
        else:
            rows = math.prod(self.sizes.values(), start=i64(1))
            if self.rows_per_thread >= 1:
                enough = tir.floordiv(rows, i64(math.ceil(self.rows_per_thread)))
            else:
                enough = rows * int(1 / self.rows_per_thread)
        return bind(maximum(minimum(most, enough), 1))

    def _match(self, value: Value, handle: Any, *, strided: bool = False) -> tuple[Any, list[Expr]]:
        """Declare an argument; returns its buffer and, for rank 2 if ``strided``, its strides."""
        shape = [self._dim(d) for d in value.type.shape]
        dtype = value.type.dtype
        strides = []
        if len(shape) == 2 and strided:
            strides = [tir.Var(f"{value.name}_stride{i}", "int64") for i in range(2)]
        buffer = builder.match_buffer(
            handle, shape, dtype, strides=strides or None, align=ITEMSIZE[dtype]
        )
        return buffer, strides

    def _declare(self, value: Value, buffer: Any, strides: list[Expr]) -> External | View:
        """Return the flat view of an argument (every match comes before every view)."""
        dtype = stored(value)
        flat = builder.decl_buffer((i64(_FLAT),), dtype, data=buffer.data, align=ITEMSIZE[dtype])
        view = View(flat, i64(0), dtype, is_bytes=False)
        if strides:
            return External(view, value.type.size(1), value.type.dtype, strides[0], strides[1])
        return row_major(view, value) if len(value.type.shape) == 2 else view

    def _streamed(self, value: Value, target: External | View) -> External | View:
        """Let a large output of whole cache lines be stored past the caches."""
        if not isinstance(target, External) or target.columns % 16 or target.dtype == "uint8":
            return target
        nbytes = self._dim(value.type.shape[0]) * (target.columns * ITEMSIZE[target.dtype])
        aligned = equal(target.view.misalignment(), i64(0))
        return replace(target, stream=bind(both(aligned, nbytes >= i64(STREAM_BYTES))))

    def _dim(self, dim: int | Sym) -> Expr:
        if not isinstance(dim, Sym):
            return i64(int(dim))
        if dim.name not in self.sizes:
            variable = tir.Var(dim.name, "int64")
            size = variable if dim.factor == 1 else tir.floordiv(variable, i64(dim.factor))
            self.sizes[dim.name] = size
            if dim.name == self.batch_name:
                self.batch = size
            return variable
        return self.sizes[dim.name] * dim.factor

    def _bytes_per_row(self, value: Value) -> int:
        factor = 1
        count = ITEMSIZE[value.type.dtype]
        for dim in value.type.shape:
            if isinstance(dim, Sym):
                factor *= dim.factor
            else:
                count *= int(dim)
        if self.batch_name is None:
            return count
        return count * factor

    # -- operations of main --------------------------------------------------------------

    def _operation(self, op: Operation) -> None:
        if op.opcode == "call":
            self._stage(op, self.functions[str(op.attr("callee"))])
        elif op.opcode in _DATA_MOVEMENT:
            self._movement(op)
        elif op.opcode in SCHEDULES:
            self._product(op)
        elif op.opcode == "constant":
            value, ref = op.results[0], str(op.attr("ref"))
            self.constants[value.name] = Constant(self.blob, ref)
            if value.name not in self.packed_alone:
                self.memory[value.name] = self.blob.add("raw", value.type.dtype, [ref])
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

    def _external(self, value: Value) -> External:
        have = self.memory[self.roots[value.name]]
        same_shape = isinstance(have, External) and have.columns == math.prod(value.type.sizes(1))
        if isinstance(have, External) and same_shape:
            return have
        return row_major(self._view(value), value)

    def _view(self, value: Value) -> View:
        """Return the row-major elements of a value."""
        root = self.roots[value.name]
        have = self.compact.get(root, self.memory[root])
        return have.view if isinstance(have, External) else have

    @contextlib.contextmanager
    def _thread_loop(self, most: Expr | None = None) -> Iterator[tuple[Expr, Expr]]:
        """Open the loop over threads, at most ``most``; yields (thread, number of threads)."""
        if not self.parallel:
            yield i64(0), i64(1)
            return
        threads = self.threads if most is None else bind(minimum(self.threads, most))
        with parallel_loop(threads) as thread:
            yield self._opaque(thread), threads

    def _opaque(self, value: Expr) -> Expr:
        """Give a value a name, which TVM's passes do not look through where it is of a thread.

        They would expand it in every address, which takes most of the time of a compilation.
        """
        return bind(hold(value)) if self.parallel else bind(value)

    def _context(
        self, function: Function, thread: Expr, first: Expr, groups: Expr, rows: Expr
    ) -> StageContext:
        """Return what the operations of a stage share, for one thread."""
        refs = {
            op.results[0].name: str(op.attr("ref"))
            for op in function.body
            if op.opcode == "constant"
        }
        base = self._opaque(self.scratch_base + thread * self.per_thread)
        return StageContext(
            self.isa,
            self.configs[function.name],
            self.blob,
            Scratch(self.space, base),
            plan.row_group(self.isa, function),
            first,
            groups,
            bind(rows - 1),
            refs=refs,
        )

    def _remember(self, ctx: StageContext) -> None:
        """Take down how much scratch a thread needs."""
        if not self.parallel:
            self.per_thread = max(self.per_thread, ctx.scratch.used)

    def _images(self, call: Operation, function: Function) -> None:
        """Emit a stage that goes image by image; threads share the images."""
        images = self._dim(function.params[0].type.shape[0])
        source, target = self._view(call.operands[0]), self._view(call.results[0])
        with self._thread_loop(images) as (thread, threads):
            share = tir.floordiv(images + threads - 1, threads)
            begin = self._opaque(minimum(thread * share, images))
            end = self._opaque(minimum(begin + share, images))
            ctx = self._context(function, thread, begin, i64(1), images)
            lut_images.emit(ctx, function, source, target, begin, end)
            self._remember(ctx)

    def _stage(self, call: Operation, function: Function) -> None:
        if plan.goes_by_images(function):
            self._images(call, function)
            return
        rows_dim = function.params[0].type.shape[0]
        rows = self._dim(rows_dim)
        configs = self.configs[function.name]
        group = plan.row_group(self.isa, function)
        outputs = {}
        inner_copies = []
        for inner, outer in zip(function.returns, call.results, strict=True):
            if inner.name in outputs:
                inner_copies.append((inner, outer))
            else:
                outputs[inner.name] = self._external(outer)
        inputs = {
            inner.name: self._external(outer)
            for inner, outer in zip(function.params, call.operands, strict=True)
        }

        def context(thread: Expr, first: Expr, groups: Expr) -> StageContext:
            return self._context(function, thread, first, groups, rows)

        remember = self._remember
        unit = plan.rows_of_a_thread(self.isa, function, configs)
        with self._thread_loop(tir.floordiv(rows + unit - 1, i64(unit))) as (thread, threads):
            share = tir.floordiv(rows + threads * unit - 1, threads * unit) * unit
            begin = self._opaque(thread * share)
            end = self._opaque(minimum(begin + share, rows))

            def by_rows() -> None:
                capacity = plan.rows_at_once(function, configs)
                count = bind(tir.Max(end - begin, i64(0)))
                with loop(tir.floordiv(count + (capacity - 1), i64(capacity))) as r:
                    ctx = context(thread, begin, i64(1))
                    first = bind(begin + r * capacity)
                    now = bind(minimum(i64(capacity), end - first))
                    RowEmitter(ctx, function, first, now, capacity).emit(inputs, outputs)
                    remember(ctx)

            def by_blocks() -> None:
                block = configs.stage.row_block
                with loop(tir.floordiv(tir.Max(end - begin, i64(0)) + block - 1, i64(block))) as b:
                    first = bind(begin + b * block)
                    count = minimum(i64(block), end - first)
                    supers = tir.floordiv(count + group - 1, i64(group))
                    ctx = context(thread, first, bind(supers * (group // 16)))
                    BlockEmitter(ctx, function).emit(inputs, outputs)
                    remember(ctx)

            def by_hashes() -> None:
                capacity = plan.rows_at_once(function, configs)
                ctx = hash_rows.emit_stage(
                    lambda: context(thread, begin, i64(1)),
                    function,
                    begin,
                    end,
                    capacity,
                    inputs,
                    outputs,
                )
                remember(ctx)

            if plan.hashes(function):
                by_hashes()
            elif plan.elementwise_only(function):
                ctx = context(thread, begin, i64(1))
                elementwise.emit(ctx, function, begin, end, inputs, outputs)
                remember(ctx)
            elif plan.rows_only(function) or configs.stage.row_threshold >= plan.ALWAYS:
                by_rows()
            elif configs.stage.row_threshold <= 0:
                by_blocks()
            else:
                threshold = i64(configs.stage.row_threshold)
                with branch(rows <= threshold) as (small, large):
                    with small:
                        by_rows()
                    with large:
                        by_blocks()
            if any(external.stream is not None for external in outputs.values()):
                fence()
        for inner, outer in inner_copies:
            first = call.results[[v.name for v in function.returns].index(inner.name)]
            self._copy(first, self.memory[self.roots[outer.name]])

    def _product(self, op: Operation) -> None:
        strided = STRIDED[op.opcode]
        operands: list[Any] = []
        for i, value in enumerate(op.operands):
            if i in PACKED.get(op.opcode, ()):
                operands.append(self._constant(value))
            elif op.opcode in TENSORS:
                sizes = tuple(self._dim(d) for d in value.type.shape)
                operands.append(Tensor(self._view(value), sizes))
            else:
                operands.append(self._external(value) if i in strided else self._view(value))
        result = op.results[0]
        target = self._external(result) if strided else self._view(result)

        def private(thread: Expr) -> _Private:
            return _Private(self, self.space, self.scratch_base + thread * self.per_thread)

        self.products.emit(
            op,
            operands,
            target,
            self._dim(op.operands[0].type.shape[0]),
            Scratch(self.space, self.shared_base),
            self._thread_loop,
            private,
        )

    def _constant(self, value: Value) -> Constant:
        return self.constants[self.roots[value.name]]

    def _movement(self, op: Operation) -> None:
        target = self._view(op.results[0])
        sources = [self._view(v) for v in op.operands]
        lead = op.operands[0] if op.opcode != "rows_to_nchw" else op.results[0]
        images = self._dim(lead.type.shape[0])
        with self._thread_loop() as (thread, threads):
            share = tir.floordiv(images + threads - 1, threads)
            begin = bind(thread * share)
            with loop(tir.Max(minimum(begin + share, images) - begin, i64(0))) as i:
                image = bind(begin + i)
                if op.opcode == "im2col":
                    data_movement.emit_im2col(op, sources[0], target, image)
                elif op.opcode == "rows_to_nchw":
                    data_movement.emit_rows_to_nchw(op, sources[0], target, image)
                elif op.opcode == "max_pool2d":
                    data_movement.emit_max_pool2d(op, sources[0], target, image)
                else:
                    count = math.prod(lead.type.sizes(1))
                    data_movement.emit_elementwise(op, sources, target, image * count, count)

    def _copy(self, value: Value, target: Any) -> None:
        """Copy a value that is returned more than once, or a parameter that is returned."""
        view = target.view if isinstance(target, External) else target
        rows = self._dim(value.type.shape[0]) if value.type.shape else i64(1)
        inner = math.prod(value.type.sizes(1))
        source = self.memory[self.roots[value.name]]
        with loop(rows) as r, loop(inner) as c:
            if isinstance(source, External):
                flat = r * inner + c
                row, column = tir.floordiv(flat, source.columns), tir.floormod(flat, source.columns)
                view.store(flat, source.view.load(source.index(row, column)))
            else:
                view.store(r * inner + c, source.load(r * inner + c))


class _Private(Scratch):
    """Scratch of one thread, whose size the serial function finds out."""

    def __init__(self, entry: EntryEmitter, buffer: Any, base: Expr) -> None:
        super().__init__(buffer, base)
        self.entry = entry

    def take(self, count: int, dtype: str) -> View:
        """Return ``count`` elements at a multiple of 64 bytes."""
        view = super().take(count, dtype)
        if not self.entry.parallel:
            self.entry.per_thread = max(self.entry.per_thread, self.used)
        return view
