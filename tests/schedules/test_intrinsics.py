"""Each machine instruction, and what stands in for it, does what its NumPy meaning says."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
import tvm_ffi

from lutcc.codegen.build import kernel_pipeline
from lutcc.codegen.tvm_setup import import_tvm
from lutcc.schedules.intrinsics import emulation
from lutcc.schedules.intrinsics.x86 import INTRINSICS, Intrinsic
from lutcc.schedules.x86.isa import AVX2, Isa, isa_by_name

_SPECIAL = (0.0, -0.0, 1.0, -1.0, 2.0**-120, 3.0e38, np.inf, -np.inf, np.nan)


def _parts(dtype: str) -> tuple[str, int]:
    name, lanes = dtype.rsplit("x", 1)
    return name, int(lanes)


def _random(dtype: str, rng: np.random.Generator) -> np.ndarray:
    name, lanes = _parts(dtype)
    if name == "float32":
        return _normal(lanes, rng)
    info = np.iinfo(name)
    return rng.integers(info.min, int(info.max) + 1, lanes).astype(name)


def _normal(count: int, rng: np.random.Generator) -> np.ndarray:
    return (rng.normal(size=count) * 2.0 ** rng.integers(-20, 20, count)).astype(np.float32)


def _operands(intrinsic: Intrinsic, rng: np.random.Generator) -> list[np.ndarray]:
    if intrinsic is not INTRINSICS["VDPBF16PS_512"]:
        return [_random(d, rng) for d in intrinsic.operands]
    pairs = [_normal(32, rng).astype(ml_dtypes.bfloat16).view(np.int32) for _ in range(2)]
    return [_normal(16, rng), *pairs]


def _magnitudes(intrinsic: Intrinsic, arrays: list[np.ndarray]) -> np.ndarray:
    """Return the meaning of the operands' magnitudes; words hold two bfloat16."""
    plain = [np.abs(a) if a.dtype == np.float32 else a & 0x7FFF7FFF for a in arrays]
    return intrinsic.meaning(*plain)


def _built(intrinsic: Intrinsic, isa: Isa) -> Callable[..., np.ndarray]:
    """Return the instruction as a function of arrays, built for a level."""
    tvm = import_tvm()
    import tvm.tirx as tir
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as builder

    from lutcc.schedules.x86.emit import instructions_of

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
            with instructions_of(isa):
                values = [
                    tir.BufferLoad(buffer, [tir.Ramp(0, 1, lanes)])
                    for buffer, (_, lanes) in zip(buffers[:-1], types[:-1], strict=True)
                ]
                whole = tir.Ramp(0, 1, types[-1][1])
                builder.buffer_store(buffers[-1], intrinsic(*values), [whole])
        function = ib.get()
    target = tvm.target.Target(isa.llvm_target())
    module = tvm.tirx.build(
        tvm.IRModule({"f": function}), target=target, pipeline=kernel_pipeline()
    )
    dtype, lanes = types[-1]

    def call(*arrays: np.ndarray) -> np.ndarray:
        result = np.empty(lanes, dtype)
        module["f"](*[tvm_ffi.from_dlpack(a) for a in (*arrays, result)])
        return result

    return call


def _agrees(intrinsic: Intrinsic, call: Callable[..., np.ndarray]) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        arrays = _operands(intrinsic, rng)
        got, want = call(*arrays), intrinsic.meaning(*arrays)
        assert got.dtype == want.dtype
        if intrinsic.tolerance:
            error = np.abs(got.astype(np.float64) - want)
            assert (error <= intrinsic.tolerance * _magnitudes(intrinsic, arrays)).all()
        else:
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.isa(i.isa)) for n, i in sorted(INTRINSICS.items())],
)
def test_meaning(name: str) -> None:
    intrinsic = INTRINSICS[name]
    _agrees(intrinsic, _built(intrinsic, isa_by_name(intrinsic.isa)))


@pytest.mark.isa("avx2")
@pytest.mark.parametrize("name", [n for n, i in sorted(INTRINSICS.items()) if i.isa != "avx2"])
def test_emulation(name: str) -> None:
    intrinsic = INTRINSICS[name]
    _agrees(intrinsic, _built(intrinsic, isa_by_name(intrinsic.isa).emulation()))


@pytest.mark.isa("avx2")
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # NaN to bfloat16
def test_special_values_round_to_bfloat16() -> None:
    intrinsic = INTRINSICS["VCVTNEPS2BF16_512"]
    call = _built(intrinsic, isa_by_name("avx512_bf16").emulation())
    bits = np.array([0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x7F800001], np.uint32)
    values = np.zeros(16, np.float32)
    values[: len(_SPECIAL)] = _SPECIAL
    values[len(_SPECIAL) : len(_SPECIAL) + len(bits)] = bits.view(np.float32)
    got, want = (
        bits.view(ml_dtypes.bfloat16) for bits in (call(values), intrinsic.meaning(values))
    )
    np.testing.assert_array_equal(got.astype(np.float32), want.astype(np.float32))


def test_every_instruction_beyond_avx2_can_be_done_without() -> None:
    generic = {n for n, i in INTRINSICS.items() if i.isa != "avx2" and i.emulated is None}
    assert all(not INTRINSICS[n].llvm.startswith("llvm.x86.") for n in generic)
    assert all(i.emulated is None for i in INTRINSICS.values() if i.isa == AVX2.name)


def test_emulation_is_off_unless_asked_for() -> None:
    assert not emulation.active()
    with emulation.emulating():
        assert emulation.active()
    assert not emulation.active()
