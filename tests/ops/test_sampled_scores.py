"""Scores of pairs and channels against float64 formulas, and samples against their definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lutcc import ops
from lutcc.errors import InputError
from lutcc.ir import sampling

_op = torch.ops.lutcc


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def plain_scores(a: torch.Tensor, b: torch.Tensor, group: int, weights_only: bool) -> torch.Tensor:
    found = []
    for start in range(0, a.shape[1], group):
        total = 0.0
        for c in range(start, min(start + group, a.shape[1])):
            left = 1.0 if weights_only else (a[:, c].double() ** 2).sum()
            total = total + left * (b[c].double() ** 2).sum()
        found.append(total**0.5)
    return torch.stack(found)


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("group", [1, 4, 100])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
def test_scores(dtype: torch.dtype, group: int, weights_only: bool) -> None:
    a, b = randn(301, 22, dtype=dtype), randn(22, 9, seed=1, dtype=dtype)
    scores = ops.column_row_scores(a, b, group, weights_only)
    assert scores.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    torch.testing.assert_close(
        scores.double(), plain_scores(a, b, group, weights_only), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("rows", [0, 1, 5000])
def test_scores_of_any_strides(rows: int) -> None:
    a, b = randn(rows, 6), randn(6, 9, seed=1)
    want = plain_scores(a, b, 1, False).float()
    views = [a.t().contiguous().t(), torch.cat([a, a], 1)[:, :6], a.repeat_interleave(2, 1)[:, ::2]]
    for view in views:
        torch.testing.assert_close(
            ops.column_row_scores(view, b.t().contiguous().t()), want, rtol=2e-6, atol=0
        )


@pytest.mark.parametrize("size", [1e25, 1e-25, 1e-40])
def test_squares_beyond_float32(size: float) -> None:
    """One huge or tiny column beside usual ones, whose square leaves float32."""
    a, b = randn(40, 5).double(), randn(5, 3, seed=1).double()
    a[:, 2] *= size
    b[3] *= size
    a, b = a.float(), b.float()
    for left, right in ((a, b), (a.t().contiguous().t(), b.t().contiguous().t())):
        scores = ops.column_row_scores(left, right)
        torch.testing.assert_close(
            scores.double(), plain_scores(a, b, 1, False), rtol=2e-6, atol=1e-44
        )
    images = a.t().reshape(1, 5, 8, 5)
    kernels = b.t().reshape(3, 5, 1, 1)
    torch.testing.assert_close(
        ops.channel_scores(images, kernels).double(),
        plain_scores(a, b, 1, False),
        rtol=2e-6,
        atol=1e-44,
    )


def test_scores_of_what_is_not_finite() -> None:
    a, b = randn(40, 5), randn(5, 3)
    a[3, 1], a[4, 2] = float("nan"), float("inf")
    a[:, 4] = 0
    scores = ops.column_row_scores(a, b)
    assert scores.isnan().tolist() == [False, True, False, False, False]
    assert scores[2] == float("inf")
    assert scores[4] == 0


GEOMETRIES = [
    ((1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((3, 2), (2, 1), (1, 2), (1, 2), 2),
    ((2, 2), (3, 4), (0, 1), (1, 1), 3),
    ((2, 3), (1, 2), (2, 0), (3, 2), 6),
]


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation", "groups"), GEOMETRIES)
@pytest.mark.parametrize("weights_only", [False, True])
def test_channel_scores(kernel, stride, padding, dilation, groups, weights_only) -> None:
    x, weight = randn(2, 6, 9, 8), randn(12, 6 // groups, *kernel, seed=1)
    columns = torch.nn.functional.unfold(x.double(), kernel, dilation, padding, stride)
    norms = columns.reshape(2, 6, -1).pow(2).sum((0, 2)).sqrt()
    parts = weight.double().reshape(groups, 12 // groups, 6 // groups, -1)
    weights = parts.pow(2).sum((1, 3)).sqrt().flatten()
    scores = ops.channel_scores(x, weight, stride, padding, dilation, groups, weights_only)
    want = weights if weights_only else norms * weights
    torch.testing.assert_close(scores.double(), want, rtol=2e-6, atol=0)
    strided = x.to(memory_format=torch.channels_last)
    again = ops.channel_scores(strided, weight, stride, padding, dilation, groups, weights_only)
    torch.testing.assert_close(again, scores)


def test_a_pixel_that_no_window_sees_counts_nothing() -> None:
    x, weight = randn(1, 2, 5, 5), randn(3, 2, 2, 2)
    want = ops.channel_scores(x[..., :4, :4].contiguous(), weight, 2)
    x[..., 4, 4] = float("nan")
    torch.testing.assert_close(ops.channel_scores(x, weight, 2), want)


@pytest.mark.parametrize("mode", sampling.MODES)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("seed", [7, -7, 2**64 - 1])
def test_samples_are_those_of_their_definition(mode: str, groups: int, seed: int) -> None:
    scores = randn(30).abs()
    indices, scales = ops.column_row_sample(scores, 4, mode, seed=seed, groups=groups)
    assert (indices.dtype, scales.dtype) == (torch.int32, torch.float32)
    size = 30 // groups
    slots = sampling.slots(mode, 4, size)
    assert len(indices) == len(scales) == groups * slots
    for group in range(groups):
        part = scores[group * size : (group + 1) * size].numpy()
        want = sampling.select(part, 4, mode, "optimal", seed % 2**64, group * slots)
        here = slice(group * slots, (group + 1) * slots)
        assert np.array_equal(scales[here].numpy(), want.scales)
        taken = want.scales > 0
        assert np.array_equal(indices[here].numpy()[taken], want.indices[taken] + group * size)
        assert not indices[here].numpy()[~taken].any()


def test_torch_manual_seed_governs() -> None:
    scores = torch.ones(64)
    torch.manual_seed(3)
    first, second = (ops.column_row_sample(scores, 8, "crs") for _ in range(2))
    torch.manual_seed(3)
    again = ops.column_row_sample(scores, 8, "crs")
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], second[0])
    state = torch.get_rng_state()
    ops.column_row_sample(scores, 8, "topk")
    assert torch.equal(state, torch.get_rng_state())


ERRORS = [
    (lambda: ops.column_row_scores(randn(2, 3), randn(4, 2)), r"a \(2, 3\) and b \(4, 2\)"),
    (lambda: ops.column_row_scores(randn(2, 3), randn(3, 2).double()), "b is torch.float64"),
    (lambda: ops.column_row_scores(randn(2, 3), randn(3, 2), 0), "group_size=0"),
    (lambda: ops.column_row_scores(randn(2, 3).int(), randn(3, 2).int()), "a must be"),
    (lambda: ops.column_row_sample(randn(4), 5), r"k=5 is not in 1\.\.4"),
    (lambda: ops.column_row_sample(randn(4), 0), "k=0"),
    (lambda: ops.column_row_sample(randn(4), 2, "top"), "mode='top'.*\n.*topk"),
    (lambda: ops.column_row_sample(randn(4), 2, "crs", "even"), "probabilities='even'"),
    (lambda: ops.column_row_sample(randn(4), 2, "topk", "uniform"), "goes by the scores"),
    (lambda: ops.column_row_sample(randn(4), 1, groups=3), "groups=3"),
    (lambda: ops.column_row_sample(randn(2, 2), 1), r"scores \(2, 2\)"),
    (lambda: ops.column_row_sample(randn(4), 1, seed=torch.ones(1)), "seed must be"),
    (lambda: ops.channel_scores(randn(1, 4, 3, 3), randn(2, 3, 1, 1)), "do not fit groups=1"),
    (lambda: ops.channel_scores(randn(1, 4, 3, 3), randn(2, 4, 4, 1)), "does not fit images"),
    (lambda: ops.channel_scores(randn(1, 4, 3, 3), randn(2, 4, 1, 1), 0), "stride must be"),
    (lambda: ops.channel_scores(randn(4, 3, 3), randn(2, 4, 1, 1)), "must have 4 dimensions"),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_what_does_not_fit_says_so(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_opcheck() -> None:
    seed = torch.tensor(5)
    quick = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(_op.column_row_scores.default, (randn(5, 6), randn(6, 3), 4, True))
    torch.library.opcheck(_op.column_row_scores.default, (randn(6, 5).t(), randn(6, 3)))
    images = (randn(2, 4, 6, 5), randn(6, 2, 3, 2), [2, 1], [1, 0], [1, 2], 2)
    torch.library.opcheck(_op.channel_scores.default, images, test_utils=quick)
    for mode in sampling.MODES:
        torch.library.opcheck(
            _op.column_row_sample.default,
            (randn(8).abs(), seed, 3, mode, "optimal", 2),
            test_utils=quick,
        )
