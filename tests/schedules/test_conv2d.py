"""Convolutions: every level against the interpreter; windows in place, gathered, of one channel."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lutcc import ir
from lutcc.errors import CompileError
from lutcc.ir.arithmetic import quantize_rows
from lutcc.schedules.x86 import conv2d_cut
from lutcc.schedules.x86.pack_conv2d import pack_conv2d
from lutcc.schedules.x86.pack_dense import DenseLayout, pack_dense
from tests.schedules.harness import ALL_ISA_PARAMS, N, built

pytestmark = pytest.mark.one_in(4)

F32 = np.float32
COMPUTE = ["float32", "bfloat16", "int8"]


def conv2d_module(
    compute: str,
    shape: tuple[int, int, int],
    outputs: int,
    kernel: tuple[int, int],
    *,
    images: int | ir.Sym = N,
    activation: str = "relu",
    **geometry: Any,
) -> ir.Module:
    """Return x -> conv2d with random weights, the extremes of integers included."""
    rng = np.random.default_rng(outputs)
    each = shape[2] // geometry.get("groups", 1)
    weight = rng.normal(size=(outputs, each, *kernel)).astype(F32)
    units = rng.uniform(0.5, 2, outputs).astype(F32)
    if compute == "int8":
        integers, units = quantize_rows(weight.reshape(outputs, -1))
        weight = integers.astype(np.int8).reshape(weight.shape)
        weight[0] = 127
    elif compute == "bfloat16":
        weight = weight.astype(ml_dtypes.bfloat16)
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((images, *shape), "float32"))
    bias = rng.normal(size=outputs).astype(F32)
    constants = [b.constant(n, a) for n, a in (("w", weight), ("units", units), ("bias", bias))]
    b.returns(b.op("conv2d", x, *constants, compute=compute, activation=activation, **geometry))
    return b.module()


def images(count: int, shape: tuple[int, int, int]) -> np.ndarray:
    x = np.random.default_rng(count).normal(size=(count, *shape)).astype(F32)
    x[-1] = np.copysign(3.0, x[-1])  # the largest sums
    return x


def check(module: ir.Module, x: np.ndarray, got: np.ndarray) -> None:
    """Integers to the bit; floats within 1e-5 of the terms' magnitudes."""
    (want,) = ir.interpret(module, [x])
    (op,) = (op for op in module.main.body if op.opcode == "conv2d")
    if op.attr("compute") == "int8":
        np.testing.assert_array_equal(got, want)
        return
    weight = np.abs(module.constants["w"].astype(F32)).reshape(len(want[0]), -1)
    scale = 2 * weight.sum(axis=1) * np.abs(x).max() + 10
    np.testing.assert_array_less(np.abs(got - want), np.broadcast_to(1e-5 * scale, want.shape))


#: Sizes, outputs, kernel, geometry: windows in place, with two steps a tap and two groups; gathered
#: whole rows of them, and tap by tap, of groups; pixels alone; one channel each, few and many.
CASES: dict[str, Any] = {
    "in place": ((5, 6, 32), 37, (3, 3), {"padding": (1, 1)}),
    "groups in place": (
        (4, 5, 128), 6, (3, 2),
        {"groups": 2, "stride": (1, 2), "padding": (2, 0), "dilation": (2, 1)},
    ),
    "gathered": ((9, 8, 3), 9, (5, 7), {"stride": (2, 2), "padding": (2, 3)}),
    "groups gathered": (
        (6, 7, 15), 9, (2, 2), {"groups": 3, "dilation": (1, 2), "padding": (0, 1)},
    ),
    "pixels": ((7, 5, 64), 16, (1, 1), {}),
    "depthwise": ((6, 9, 19), 19, (3, 3), {"groups": 19, "padding": (1, 1), "stride": (1, 2)}),
    "few depthwise": ((3, 3, 5), 5, (2, 3), {"groups": 5, "dilation": (2, 1)}),
}  # fmt: skip


@pytest.mark.parametrize("isa", ALL_ISA_PARAMS)
@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize("case", CASES)
def test_any_geometry(isa: str, compute: str, case: str) -> None:
    if isa == "avx512_bf16" and compute != "bfloat16":
        pytest.skip("kernels are those of the level below")
    shape, outputs, kernel, geometry = CASES[case]
    module = conv2d_module(compute, shape, outputs, kernel, **geometry)
    _, call = built(module, isa)
    for count in (1, 3):
        x = images(count, shape)
        check(module, x, call(x)[0])


@pytest.mark.isa("avx2")
@pytest.mark.parametrize("case", ["in place", "gathered", "depthwise"])
def test_blocks_and_threads(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """Several blocks of windows, of columns and of images; panels or rows are shared out."""
    shape, outputs, kernel, geometry = CASES[case]
    monkeypatch.setattr(conv2d_cut, "IMAGES_BYTES", 2 * 4 * 9 * 8 * 32)
    module = conv2d_module("int8", shape, outputs, kernel, **geometry)
    configs = {"conv2d.y": {"dense": {"block_rows": 13, "panel_bytes": 2048, "together": 2}}}
    lowered, call = built(module, "avx2", configs, threads=3)
    assert [kernel["source"] for kernel in lowered.program.kernels] == ["given"]
    for count in (1, 7):
        x = images(count, shape)
        check(module, x, call(x)[0])


@pytest.mark.isa("avx2")
@pytest.mark.parametrize("compute", COMPUTE)
def test_known_images_and_activations(compute: str) -> None:
    shape = (2, 2, 32)
    module = conv2d_module(compute, shape, 3, (2, 2), images=2, activation="none")
    x = images(2, shape)
    check(module, x, built(module, "avx2")[1](x)[0])


@pytest.mark.isa("avx2")
@pytest.mark.parametrize("case", ["in place", "gathered", "depthwise"])
@pytest.mark.parametrize("compute", ["float32", "int8"])
def test_what_is_not_finite_stays_where_it_is_seen(case: str, compute: str) -> None:
    """Nothing reads beyond a window, not even to multiply it with zero; and relu keeps NaN."""
    shape, outputs, kernel, geometry = CASES[case]
    module = conv2d_module(compute, shape, outputs, kernel, **geometry)
    x = images(3, shape)
    x[1, 2, 2], x[2] = np.nan, 0
    (want,) = ir.interpret(module, [x])
    (got,) = built(module, "avx2")[1](x)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    assert np.isnan(want).any()
    assert np.isfinite(got[: len(got) // 3]).all()


def test_images_that_32_bits_do_not_count_are_refused() -> None:
    module = conv2d_module("float32", (2, 2, 4), 1, (1, 1), padding=(2**14, 2**14))
    with pytest.raises(CompileError, match="have more numbers than 32 bits count"):
        built(module, "avx2")


@pytest.mark.parametrize(("itemsize", "dtype"), [(1, np.int8), (2, ml_dtypes.bfloat16)])
def test_packed_by_definition(itemsize: int, dtype: Any) -> None:
    """Groups lie one after the other, taps of all channels side by side; halves interleaved."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (6, 5, 2, 3)).astype(dtype)
    layout = DenseLayout(itemsize, 3, 32, lanes=2, tile=4, offset=0)
    packed = pack_conv2d(weight, groups=2, interleaved=1, **layout.to_json())
    for group in range(2):
        matrix = np.zeros((3, 32), dtype)
        for o, c, i, j in np.ndindex(3, 5, 2, 3):
            matrix[o, (i * 3 + j) * 5 + c] = weight[group * 3 + o, c, i, j]
        np.testing.assert_array_equal(packed[group], pack_dense(matrix, **layout.to_json()))
    width = 16 // itemsize
    mixed = pack_conv2d(weight, groups=2, interleaved=width, **layout.to_json())
    found = mixed[..., ::2], mixed[..., 1::2]
    np.testing.assert_array_equal(np.concatenate(found, axis=-1), packed)
