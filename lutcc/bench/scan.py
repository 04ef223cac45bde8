"""A scan alone, from codes in the kernel's own layout to 16-row columns: limits bound this."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from lutcc import ir
from lutcc.codegen.tvm_setup import import_tvm
from lutcc.schedules.x86.config import KernelConfigs
from lutcc.schedules.x86.isa import isa_by_name
from lutcc.schedules.x86.pack import aligned_empty, pack_blob, round_up


def scan_module(
    codebooks: int,
    entries: int,
    columns: int,
    *,
    accumulate: str,
    seed: int,
    dequantize: bool = False,
) -> ir.Module:
    """Return a module of one scan with random tables: codes -> int32 sums.

    With ``dequantize``, the sums become float32 in registers, as inside a layer.
    """
    rng = np.random.default_rng(seed)
    b = ir.Builder("main")
    codes = b.param("codes", ir.TensorType((ir.Sym("n"), codebooks), "uint8"))
    lut = rng.integers(0, 256, (codebooks, entries, columns)).astype(np.uint8)
    acc = b.op(
        "lut_accumulate", codes, b.constant("lut", lut), accumulate=accumulate, upcast_every=16
    )
    if dequantize:
        scale = b.constant("scale", rng.random(columns, np.float32))
        offset = b.constant("offset", rng.random(columns, np.float32))
        acc = b.op("lut_dequantize", acc, scale, offset)
    b.returns(acc)
    return b.module()


def scan_kernel(
    module: ir.Module, isa: str, rows: int, configs: KernelConfigs | None = None, *, seed: int = 0
) -> Callable[[], Any]:
    """Build the scan of :func:`scan_module` between internal layouts and return a call of it.

    The codes lie as the encoder leaves them; each block of rows leaves its output where the next
    layer of a fused group reads it, in the scratch that all blocks share.
    """
    tvm = import_tvm()
    import tvm.tirx as tir
    import tvm_ffi
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as builder

    from lutcc.codegen.build import kernel_pipeline
    from lutcc.schedules.x86 import plan
    from lutcc.schedules.x86.blocks import BlockEmitter
    from lutcc.schedules.x86.context import BlobLayout, Columns, Scratch, StageContext
    from lutcc.schedules.x86.emit import View, bind, i64, loop, minimum
    from lutcc.schedules.x86.lut_accumulate import code_layout

    level = isa_by_name(isa)
    main = module.main
    scan = next(op for op in main.body if op.opcode == "lut_accumulate")
    columns = main.returns[0].type.size(1)
    group = plan.row_group(level, main)
    chosen = configs or plan.default_stage_configs(level, main)
    block = chosen.stage.row_block
    refs = {op.results[0].name: str(op.attr("ref")) for op in main.body if op.opcode == "constant"}
    codebooks = scan.operands[1].type.size(0)
    padded = round_up(rows, group)
    with IRBuilder() as ib:
        with builder.prim_func(s_tir=True):
            builder.func_name("scan")
            builder.func_attr({"global_symbol": "scan", "tirx.noalias": True})
            handles = [builder.arg(n, builder.handle()) for n in ("codes", "blob", "out")]
            buffers = [
                builder.match_buffer(h, (tir.Var(f"bytes{i}", "int64"),), "uint8", align=64)
                for i, h in enumerate(handles)
            ]
            blob = BlobLayout(buffers[1], dict(module.constants))
            with loop(-(-padded // block)) as b:
                first = bind(b * block)
                groups = bind(minimum(i64(block), i64(padded) - first) // i64(16))
                ctx = StageContext(
                    level,
                    chosen,
                    blob,
                    Scratch(buffers[0], i64(0)),
                    group,
                    first,
                    groups,
                    i64(padded - 1),
                    refs=refs,
                )
                layout = code_layout(ctx, scan, codebooks, View(buffers[0], i64(0), "uint8"))
                codes = replace(layout, view=layout.view.at(first * layout.codebooks))
                dtype = main.returns[0].type.dtype
                out = View(buffers[2], i64(0), dtype)
                emitter = BlockEmitter(ctx, main)
                key = (codes.dot, codes.entries if codes.dot else 0)
                emitter.codes[main.params[0].name] = {key: codes}
                emitter.emit_columns(emitter.steps[0], Columns(out, columns, dtype))
        function = ib.get()
    target = tvm.target.Target(level.llvm_target())
    built = tvm.tirx.build(
        tvm.IRModule({"scan": function}), target=target, pipeline=kernel_pipeline()
    )
    rng = np.random.default_rng(seed)
    entries = scan.operands[1].type.size(1)
    raw = aligned_empty(padded * codes.codebooks)
    raw[:] = rng.integers(0, entries, raw.size)
    if codes.dot:
        raw.reshape(-1, 4)[:] += np.arange(4, dtype=np.uint8) * codes.entries
    packed = pack_blob({"blob": blob.entries, "blob_nbytes": blob.nbytes}, module.constants)
    arguments = [
        tvm_ffi.from_dlpack(a)
        for a in (raw, packed, aligned_empty(Columns.size(block, columns) * 4))
    ]
    run = built["scan"]
    return lambda: run(*arguments)
