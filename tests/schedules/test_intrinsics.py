"""Each machine instruction does what its NumPy meaning says."""

from __future__ import annotations

import numpy as np
import pytest
import tvm_ffi

from lutcc.codegen.build import kernel_pipeline
from lutcc.codegen.tvm_setup import import_tvm
from lutcc.schedules.intrinsics.x86 import INTRINSICS
from lutcc.schedules.x86.isa import isa_by_name


def _parts(dtype: str) -> tuple[str, int]:
    name, lanes = dtype.rsplit("x", 1)
    return name, int(lanes)


def _random(dtype: str, rng: np.random.Generator) -> np.ndarray:
    name, lanes = _parts(dtype)
    if name == "float32":
        return rng.normal(size=lanes).astype(np.float32)
    info = np.iinfo(name)
    return rng.integers(info.min, int(info.max) + 1, lanes).astype(name)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.isa(i.isa)) for n, i in sorted(INTRINSICS.items())],
)
def test_meaning(name: str) -> None:
    tvm = import_tvm()
    import tvm.tirx as tir
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as builder

    intrinsic = INTRINSICS[name]
    types = [_parts(d) for d in (*intrinsic.operands, intrinsic.dtype)]
    with IRBuilder() as ib:
        with builder.prim_func(s_tir=True):
            builder.func_name("f")
            builder.func_attr({"global_symbol": "f", "tirx.noalias": True})
            handles = [builder.arg(f"a{i}", builder.handle()) for i in range(len(types))]
            buffers = [
                builder.match_buffer(h, (lanes,), dtype, align=np.dtype(dtype).itemsize)
                for h, (dtype, lanes) in zip(handles, types, strict=True)
            ]
            values = [
                tir.BufferLoad(buffer, [tir.Ramp(0, 1, lanes)])
                for buffer, (_, lanes) in zip(buffers[:-1], types[:-1], strict=True)
            ]
            lanes = types[-1][1]
            builder.buffer_store(buffers[-1], intrinsic(*values), [tir.Ramp(0, 1, lanes)])
        function = ib.get()
    target = tvm.target.Target(isa_by_name(intrinsic.isa).llvm_target())
    module = tvm.tirx.build(
        tvm.IRModule({"f": function}), target=target, pipeline=kernel_pipeline()
    )
    rng = np.random.default_rng(1)
    for _ in range(20):
        arrays = [_random(d, rng) for d in intrinsic.operands]
        result = np.empty(lanes, types[-1][0])
        module["f"](*[tvm_ffi.from_dlpack(a) for a in (*arrays, result)])
        np.testing.assert_array_equal(result, intrinsic.meaning(*arrays))
