"""Sampled convolutions: every level against the interpreter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from lutcc import ir
from tests.schedules.harness import ISA_PARAMS, N, built
from tests.schedules.test_hash_kernels import per_level
from tests.schedules.test_sampled_kernels import sample

pytestmark = pytest.mark.one_in(4)

F32 = np.float32


@dataclass(frozen=True)
class Conv:
    """Sizes of a convolution."""

    channels: int
    size: tuple[int, int]
    outputs: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    batch: Any = N

    @property
    def per_group(self) -> int:
        """Channels of a group."""
        return self.channels // self.groups

    def module(self, places: int | None = None) -> ir.Module:
        """Return a module of one op, whose operands all are inputs."""
        b = ir.Builder("main")
        total = self.channels if places is None else places * self.groups
        operands = (
            b.param("x", ir.TensorType((self.batch, self.channels, *self.size), "float32")),
            b.param("w", ir.TensorType((self.outputs, self.per_group, *self.kernel), "float32")),
            b.param("indices", ir.TensorType((total,), "int32")),
            b.param("scales", ir.TensorType((total,), "float32")),
            b.param("bias", ir.TensorType((self.outputs,), "float32")),
        )
        attrs = {n: getattr(self, n) for n in ("stride", "padding", "dilation", "groups")}
        b.returns(b.op("sampled_conv2d", *operands, **attrs))
        return b.module()

    def __str__(self) -> str:
        return f"{self.channels}c{self.size[0]}x{self.size[1]}o{self.outputs}"


def images(
    rng: np.random.Generator, case: Conv, count: int, taken: int, places: int | None = None
) -> list[np.ndarray]:
    """Return random operands; channels that are not taken are NaN."""
    places = case.per_group if places is None else places
    samples = [sample(rng, case.per_group, taken, places) for _ in range(case.groups)]
    indices = np.concatenate(
        [np.where(s > 0, i + g * case.per_group, 0) for g, (i, s) in enumerate(samples)]
    ).astype(np.int32)
    scales = np.concatenate([s for _, s in samples])
    x = rng.normal(size=(count, case.channels, *case.size)).astype(F32)
    w = rng.normal(size=(case.outputs, case.per_group, *case.kernel)).astype(F32)
    skipped = ~np.isin(np.arange(case.channels), indices[scales > 0])
    x[:, skipped] = np.nan
    for g in range(case.groups):
        first, each = g * case.per_group, case.outputs // case.groups
        own = skipped[first : first + case.per_group]
        w[g * each : (g + 1) * each, own] = np.nan
    return [x, w, indices, scales, rng.normal(size=case.outputs).astype(F32)]


def assert_conv(
    call: Callable[..., list[np.ndarray]], module: ir.Module, given: list[np.ndarray]
) -> None:
    """Compare a call with the interpreter."""
    (got,), (want,) = call(*given), ir.interpret(module, given)
    x, w, indices, scales, bias = given
    magnitudes = [np.abs(x), np.abs(w), indices, scales, np.abs(bias)]
    (magnitude,) = ir.interpret(module, magnitudes)
    bound = ir.OPS["sampled_conv2d"].tolerance * magnitude.astype(np.float64) + 1e-30
    assert got.shape == want.shape
    assert (np.abs(got.astype(np.float64) - want) <= bound).all()


#: 1x1 kernels, strides, padding past the image, dilation, groups, one output, tails everywhere.
CONVS = [
    Conv(1, (1, 1), 1, (1, 1), padding=(0, 0)),
    Conv(5, (7, 9), 11),
    Conv(6, (8, 8), 16, (1, 1), padding=(0, 0)),
    Conv(4, (9, 6), 37, stride=(2, 1)),
    Conv(3, (5, 5), 7, (2, 3), stride=(1, 2), padding=(3, 0)),
    Conv(6, (9, 11), 9, dilation=(2, 3), padding=(2, 3)),
    Conv(6, (6, 5), 10, groups=2),
    Conv(4, (5, 4), 4, groups=4),
    Conv(3, (1, 13), 5, (1, 5), padding=(0, 2)),
]


@pytest.mark.parametrize(("isa", "case"), per_level(CONVS, [1, 5, 6], ISA_PARAMS))
def test_conv2d(isa: str, case: Conv) -> None:
    module, rng = case.module(), np.random.default_rng(case.channels)
    _, call = built(module, isa)
    for count in (1, 2, 5):
        for taken in sorted({0, 1, case.per_group // 2, case.per_group}):
            assert_conv(call, module, images(rng, case, count, taken))


@pytest.mark.isa("avx2")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_conv2d_on_threads_and_in_many_blocks(threads: int) -> None:
    case = Conv(70, (13, 11), 35)
    module, rng = case.module(), np.random.default_rng(0)
    _, call = built(module, "avx2", threads=threads)
    for count in (1, 4):
        for taken in (0, 31, 70):
            assert_conv(call, module, images(rng, case, count, taken))


@pytest.mark.isa("avx2")
@pytest.mark.parametrize("groups", [1, 2])
def test_conv2d_takes_fewer_places_than_channels(groups: int) -> None:
    case = Conv(12, (5, 6), 14, groups=groups)
    module, rng = case.module(places=4), np.random.default_rng(0)
    _, call = built(module, "avx2")
    for taken in (0, 2, 4):
        assert_conv(call, module, images(rng, case, 2, taken, places=4))


@pytest.mark.isa("avx2")
def test_conv2d_of_a_fixed_number_of_images() -> None:
    case = Conv(3, (6, 6), 5, batch=2)
    module, rng = case.module(), np.random.default_rng(0)
    _, call = built(module, "avx2")
    assert_conv(call, module, images(rng, case, 2, 2))
