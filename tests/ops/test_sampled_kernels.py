"""sampled_matmul and sampled_conv2d on compiled kernels, whose operands all are inputs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from lutcc import ops
from lutcc.ir import sampling
from lutcc.sampling_options import SamplingOptions

pytestmark = pytest.mark.isa("avx2")
_op = torch.ops.lutcc
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7}


@pytest.fixture(autouse=True)
def _always() -> Iterator[None]:
    before = ops.get_sampled_backend(), ops.get_compilation()
    ops.set_compilation("always")
    ops.set_sampled_backend("fused")
    ops.clear_kernels()
    yield
    ops.set_sampled_backend(before[0])
    ops.set_compilation(before[1])
    ops.clear_kernels()


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def by_torch(*operands) -> torch.Tensor:
    ops.set_sampled_backend("index_select")
    try:
        return _op.sampled_matmul(*operands)
    finally:
        ops.set_sampled_backend("fused")


def check(*operands) -> None:
    a, b, _, indices, scales, group = operands
    y, want = _op.sampled_matmul(*operands), by_torch(*operands)
    assert (y.dtype, y.shape) == (want.dtype, want.shape)
    every = torch.zeros(a.shape[1], dtype=torch.float64)
    for index, scale in zip(indices.tolist(), scales.tolist(), strict=True):
        every[index * group : (index + 1) * group] += abs(scale)
    size = (a.double().abs() * every) @ b.double().abs() + 5
    assert float(((y.double() - want.double()).abs() / size).max()) <= TOLERANCE[a.dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("group", [1, 4])
def test_one_kernel_serves_every_sample(dtype: torch.dtype, group: int) -> None:
    """Any k, mode, number of rows and strides, with a bias or without."""
    calls = 0
    for rows in (1, 7, 70):
        a, b, bias = randn(rows, 50, dtype=dtype), randn(50, 19, seed=1, dtype=dtype), randn(19)
        scores = ops.column_row_scores(a, b, group)
        for k, mode in enumerate(sampling.MODES, start=1):
            sample = ops.column_row_sample(scores, 2 * k, mode, seed=rows)
            check(a, b, bias if k % 2 else None, *sample, group)
            check(a.t().contiguous().t(), b.t().contiguous().t(), bias, *sample, group)
            calls += 2
    statistics = ops.kernel_statistics()
    assert (statistics["compiled"], statistics["kernel_calls"]) == (1, calls)


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(groups: int) -> None:
    weight, bias = randn(8, 6 // groups, 3, 2, seed=1), randn(8)
    geometry = ([1, 2], [1, 0], [2, 1], groups)
    for images in (1, 3):
        x = randn(images, 6, 7, 9)
        scores = ops.channel_scores(x, weight, *geometry)
        for k, mode in ((1, "topk"), (2, "crs"), (3, "bernoulli")):
            sample = ops.column_row_sample(scores, k, mode, seed=4, groups=groups)
            for image in (x, x.to(memory_format=torch.channels_last)):
                for added in (bias, None):
                    results = []
                    for backend in ("fused", "index_select"):
                        ops.set_sampled_backend(backend)
                        y = _op.sampled_conv2d(image, weight, added, *sample, *geometry)
                        results.append(y)
                    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    statistics = ops.kernel_statistics()
    assert (statistics["compiled"], statistics["kernel_calls"]) == (1, 24)


def test_what_is_not_taken_does_not_leak() -> None:
    a, b = randn(6, 9), randn(9, 4, seed=1)
    indices = torch.tensor([1, 3, 8, 0], dtype=torch.int32)
    scales = torch.tensor([2.0, 0.5, 1.0, 0.0])
    clean = _op.sampled_matmul(a, b, None, indices, scales)
    for column in (0, 2, 7):
        a[:, column], b[column] = float("nan"), float("inf")
    assert torch.equal(_op.sampled_matmul(a, b, None, indices, scales), clean)
    assert ops.kernel_statistics()["kernel_calls"] == 2
    nothing = _op.sampled_matmul(a, b, None, indices, torch.zeros(4))
    assert not nothing.any()


@pytest.mark.parametrize("where", ["forward_backward", "backward"])
def test_training_runs_on_kernels_too(where: str) -> None:
    """Operands change with every step, and nothing is compiled again."""
    leaves = [randn(24, 16).requires_grad_(), randn(8, 16, seed=1).requires_grad_()]
    options = SamplingOptions(where=where)
    for step in range(3):
        results = []
        for backend in ("fused", "index_select"):
            ops.set_sampled_backend(backend)
            y = ops.sampled_linear(leaves[0], leaves[1], None, options)
            results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            for leaf in leaves:
                leaf.add_(0.1 * (step + 1))
    compiled = 1 if where == "forward_backward" else 2
    assert ops.kernel_statistics()["compiled"] == compiled


def test_automatic_choice_is_one_of_both() -> None:
    ops.set_sampled_backend("auto")
    a, b = randn(32, 16), randn(16, 8)
    sample = ops.column_row_sample(ops.column_row_scores(a, b), 8)
    for _ in range(2):
        y = _op.sampled_matmul(a, b, None, *sample)
        torch.testing.assert_close(y, by_torch(a, b, None, *sample))
        ops.set_sampled_backend("auto")
    assert ops.kernel_statistics()["compiled"] == 1


def test_other_dtypes_and_no_rows() -> None:
    for dtype in (torch.float64, torch.float16):
        a, b = randn(6, 8, dtype=dtype), randn(8, 4, dtype=dtype)
        assert ops.sampled_matmul(a, b).dtype is dtype
    assert ops.sampled_matmul(randn(0, 8), randn(8, 4)).shape == (0, 4)
    assert ops.kernel_statistics()["compiled"] == 0
