"""Scores, selection and sampled products, forward and backward, against plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lutcc.ir import sampling
from lutcc.schedules.triton.column_row_sample import column_row_sample
from lutcc.schedules.triton.column_row_scores import column_row_scores
from lutcc.schedules.triton.sampled_matmul import sampled_matmul
from lutcc.schedules.triton.sampled_matmul_backward import (
    sampled_matmul_input_grad,
    sampled_matmul_weight_grad,
)
from tests.triton.interpreter.test_kernels import TOLERANCES, check, random

pytestmark = pytest.mark.one_in(3)

DTYPES = list(TOLERANCES)

# (N, K, M, group_size): odd sizes, single rows and columns, short last groups, several tiles
SHAPES = [
    (19, 37, 21, 1),
    (1, 23, 5, 1),
    (7, 1, 3, 1),
    (1, 1, 1, 1),
    (18, 50, 17, 16),
    (5, 19, 20, 4),
    (17, 9, 2, 16),
]


def layouts(rows: int, columns: int, dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    """Return one matrix, stored by rows, by columns, and with gaps between the elements."""
    x = random(rows, columns, dtype=dtype, seed=seed)
    wide = torch.full((rows, 2 * columns), float("nan"), dtype=dtype)
    wide[:, ::2] = x
    return [x, x.t().contiguous().t(), wide[:, ::2]]


def some_pairs(pairs: int, places: int, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a sample of ``count`` pairs, with padding up to ``places``."""
    generator = torch.Generator().manual_seed(seed)
    indices = torch.zeros(places, dtype=torch.int32)
    scales = torch.zeros(places)
    chosen = torch.randperm(pairs, generator=generator)[:count].sort()[0]
    indices[:count] = chosen.to(torch.int32)
    scales[:count] = torch.rand(count, generator=generator) + 0.5
    return indices, scales


def column_scales(
    indices: torch.Tensor, scales: torch.Tensor, columns: int, group_size: int
) -> torch.Tensor:
    """Return float64 (columns,): what each column counts."""
    whole = torch.zeros(-(-columns // group_size), dtype=torch.float64)
    taken = scales != 0
    whole[indices[taken].long()] = scales[taken].double()
    return whole.repeat_interleave(group_size)[:columns]


def wanted_products(a, b, bias, grad, indices, scales, group_size):
    """Return y, da and db in float64; columns that are not taken are not touched."""
    counts = column_scales(indices, scales, a.shape[1], group_size)
    taken = counts != 0
    a, b, grad = a.double(), b.double(), grad.double()
    y = (a[:, taken] * counts[taken]) @ b[taken]
    if bias is not None:
        y = y + bias.double()
    da, db = torch.zeros_like(a), torch.zeros_like(b)
    da[:, taken] = (grad @ b[taken].t()) * counts[taken]
    db[taken] = (a[:, taken] * counts[taken]).t() @ grad
    return y, da, db


def run(a, b, bias, grad, indices, scales, group_size):
    return (
        sampled_matmul(a, b, bias, indices, scales, group_size),
        sampled_matmul_input_grad(grad, b, indices, scales, group_size),
        sampled_matmul_weight_grad(a, grad, indices, scales, group_size),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_and_their_gradients(shape, dtype):
    rows, columns, outputs, group_size = shape
    pairs = -(-columns // group_size)
    fractions = (1, pairs // 2, pairs) if dtype is torch.float64 else (-(-pairs // 2),)
    a, b = random(rows, columns, dtype=dtype), random(columns, outputs, dtype=dtype, seed=1)
    grad, bias = random(rows, outputs, dtype=dtype, seed=2), random(outputs, dtype=torch.float32)
    for count in set(fractions):
        indices, scales = some_pairs(pairs, pairs, count, seed=count)
        args = (a, b, bias, grad, indices, scales, group_size)
        # scaled rows are rounded once more
        check(run(*args), wanted_products(*args), dtype, slack=2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_strides_of_any_kind(dtype):
    rows, columns, outputs = 18, 35, 20
    indices, scales = some_pairs(9, 7, 5, seed=3)
    sparse_i, sparse_s = torch.zeros(14, dtype=torch.int32), torch.zeros(14)
    sparse_i[::2], sparse_s[::2] = indices, scales
    for i in range(3):
        a, b, grad = (
            layouts(n, m, dtype, seed)[(i + seed) % 3]
            for seed, (n, m) in enumerate([(rows, columns), (columns, outputs), (rows, outputs)])
        )
        args = (a, b, None, grad, indices, scales, 4)
        wanted = wanted_products(*args)
        check(run(*args), wanted, dtype, slack=2)
    a, b = layouts(rows, columns, dtype, 0)[2], layouts(columns, outputs, dtype, 1)[0]
    # gradients of a sum have no strides at all
    ones = torch.ones(1, 1, dtype=dtype).expand(rows, outputs)
    wanted = wanted_products(a, b, None, ones, indices, scales, 4)
    check(run(a, b, None, ones, sparse_i[::2], sparse_s[::2], 4), wanted, dtype, slack=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group_size", [1, 8])
def test_what_is_not_taken_may_hold_anything(group_size, dtype):
    """NaN and infinities of other pairs are not read, or at least do not show."""
    columns = 44
    a, b = random(6, columns, dtype=dtype), random(columns, 18, dtype=dtype, seed=1)
    grad = random(6, 18, dtype=dtype, seed=2)
    pairs = -(-columns // group_size)
    indices, scales = some_pairs(pairs, pairs, pairs // 2, seed=0)
    indices[pairs // 2 :] = pairs - 1  # padding names a pair, which is not taken
    scales[pairs // 2 - 1 :] = 0
    other = column_scales(indices, scales, columns, group_size) == 0
    assert other.any()
    a[:, other], b[other] = float("nan"), float("inf")
    args = (a, b, None, grad, indices, scales, group_size)
    check(run(*args), wanted_products(*args), dtype, slack=2)
    _, da, db = run(*args)
    assert not da[:, other].any()
    assert not db[other].any()


def test_no_pairs_no_rows_no_outputs():
    a, b, bias = random(5, 8, dtype=torch.float32), random(8, 3, dtype=torch.float32), torch.ones(3)
    indices, scales = torch.zeros(4, dtype=torch.int32), torch.zeros(4)
    grad = torch.ones(5, 3)
    y, da, db = run(a, b, bias, grad, indices, scales, 1)
    assert torch.equal(y, torch.ones(5, 3))
    assert torch.equal(da, torch.zeros(5, 8))
    assert torch.equal(db, torch.zeros(8, 3))
    scales[0] = 2.0
    y, da, db = run(a[:0], b, bias, grad[:0], indices, scales, 1)
    assert (y.shape, da.shape) == ((0, 3), (0, 8))
    assert torch.equal(db, torch.zeros(8, 3))
    y, da, db = run(a, b[:, :0], bias[:0], grad[:, :0], indices, scales, 1)
    assert (y.shape, db.shape) == ((5, 0), (8, 0))
    assert torch.equal(da, torch.zeros(5, 8))


def test_weight_gradients_of_many_rows():
    """Which may be split among programs; the same bits every time."""
    a, grad = random(700, 20, dtype=torch.float32), random(700, 18, dtype=torch.float32, seed=1)
    indices, scales = some_pairs(20, 12, 10, seed=4)
    first, second = (sampled_matmul_weight_grad(a, grad, indices, scales) for _ in range(2))
    assert torch.equal(first, second)
    args = (a, torch.zeros(20, 18), None, grad, indices, scales, 1)
    check([first], wanted_products(*args)[2:], torch.float32, slack=2)


def test_scaled_rows_are_rounded_to_the_dtype_of_the_operands():
    """One product, so that the result shows it: bfloat16(1.5703125 * 1.3) * 256 + 0."""
    a = torch.full((1, 1), 256.0, dtype=torch.bfloat16)
    b = torch.full((1, 1), 1.5703125, dtype=torch.bfloat16)
    scale = torch.tensor([1.3])
    y = sampled_matmul(a, b, None, torch.zeros(1, dtype=torch.int32), scale)
    rounded = (b.float() * scale).to(torch.bfloat16)
    assert torch.equal(y, a * rounded)


def test_float32_follows_the_precision_that_torch_is_set_to():
    # exact in float32; tf32 keeps 10 bits after the first
    x, one = torch.full((1, 1), 1 + 2.0**-12), torch.ones(1, 1)
    sample = (torch.zeros(1, dtype=torch.int32), torch.ones(1))
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = False
        assert sampled_matmul(x, one, None, *sample).item() == x.item()
        torch.backends.cuda.matmul.allow_tf32 = True
        assert sampled_matmul(x, one, None, *sample).item() == 1.0
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_scores(shape, dtype):
    rows, columns, outputs, group_size = shape
    a, b = random(rows, columns, dtype=dtype), random(columns, outputs, dtype=dtype, seed=1)
    for weights_only in (False, True):
        norms = b.double().norm(dim=1) * (1 if weights_only else a.double().norm(dim=0))
        pairs = -(-columns // group_size)
        padded = torch.nn.functional.pad(norms, (0, pairs * group_size - columns))
        wanted = padded.view(pairs, group_size).norm(dim=1)
        got = column_row_scores(a, b, group_size, weights_only)
        sums = torch.float64 if dtype is torch.float64 else torch.float32
        check([got], [wanted], sums)


def test_scores_of_strided_operands_and_many_rows():
    for i in range(3):
        a = layouts(150, 40, torch.float64, 0)[i]
        b = layouts(40, 130, torch.float64, 1)[(i + 1) % 3]
        wanted = a.norm(dim=0) * b.norm(dim=1)
        check([column_row_scores(a, b)], [wanted], torch.float64)
    none = column_row_scores(torch.zeros(0, 40), torch.ones(40, 130))
    assert torch.equal(none, torch.zeros(40))


@pytest.mark.parametrize(
    ("large", "small", "dtype"),
    [(1e25, 1e-25, torch.float32), (1e25, 1e-25, torch.bfloat16), (1e130, 1e-130, torch.float64)],
)
def test_scores_whose_squares_leave_the_range(large, small, dtype):
    a = torch.tensor([[large, small, 3.0], [large, small, 4.0]], dtype=dtype)
    b = torch.tensor([[small, small], [large, large], [5.0, 12.0]], dtype=dtype)
    wanted = a.double().norm(dim=0) * b.double().norm(dim=1)
    got = column_row_scores(a, b)
    np.testing.assert_allclose(got.double(), wanted, rtol=1e-6)


def assert_selects_as_defined(scores, k, mode, probabilities="optimal", seed=0, groups=1):
    indices, scales = column_row_sample(scores, torch.tensor(seed), k, mode, probabilities, groups)
    pairs = len(scores) // groups
    places = sampling.slots(mode, k, pairs)
    assert indices.dtype is torch.int32
    assert scales.dtype is torch.float32
    assert indices.shape == scales.shape == (groups * places,)
    for group, part in enumerate(scores.numpy().reshape(groups, pairs)):
        wanted = sampling.select(part, k, mode, probabilities, seed % 2**64, group * places)
        mine = slice(group * places, (group + 1) * places)
        taken = wanted.scales > 0
        offset = np.where(taken, group * pairs, 0)
        np.testing.assert_array_equal(indices[mine].numpy(), wanted.indices + offset)
        np.testing.assert_allclose(scales[mine].numpy(), wanted.scales, rtol=1e-6)


@pytest.mark.parametrize("mode", sampling.MODES)
def test_selection_is_that_of_the_definition(mode):
    generator = torch.Generator().manual_seed(0)
    for pairs, k in ((1, 1), (7, 7), (40, 39), (150, 3)):
        scores = torch.rand(pairs, generator=generator) ** 3
        for seed in (2**62 - 1, -1):
            assert_selects_as_defined(scores, k, mode, seed=seed)
    if mode in ("crs", "bernoulli"):
        assert_selects_as_defined(scores, 20, mode, "uniform", seed=3)
    assert_selects_as_defined(scores.double(), 75, mode, seed=4)


@pytest.mark.parametrize("mode", sampling.MODES)
def test_selection_in_groups(mode):
    scores = torch.rand(3 * 34, generator=torch.Generator().manual_seed(1))
    assert_selects_as_defined(scores, 11, mode, seed=7, groups=3)
    assert_selects_as_defined(scores[:20], 1, mode, seed=7, groups=20)


@pytest.mark.parametrize("mode", sampling.MODES)
def test_selection_of_ties_zeros_and_what_is_not_finite(mode):
    nan, inf = float("nan"), float("inf")
    cases = [
        [2.0, 1.0, 2.0, 2.0, 0.0, 2.0, 1.0, 0.0],
        [0.0] * 8,
        [0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
        [1.0, nan, 5.0, inf, 2.0, nan, 0.0, 9.0],
        [inf, 1.0, nan, 2.0, 3.0, 4.0, 5.0, 6.0],
        [1e-30, 1e30, 1e-30, 1e20, 1.0, 2.0, 1e-20, 1e-38],
    ]
    for scores in cases:
        for k in (1, 3, 5):
            assert_selects_as_defined(torch.tensor(scores), k, mode, seed=11)


def test_selection_of_as_many_ties_as_take_several_programs():
    scores = torch.ones(140)
    scores[::7] = 2.0
    assert_selects_as_defined(scores, 70, "topk")
    assert_selects_as_defined(scores, 50, "topk_weights")


def test_random_numbers_are_those_of_the_definition():
    from lutcc.schedules.triton import column_row_sample as module

    for seed in (0, 1, 2**32, 2**62 + 77, -5):
        got = module._uniform(torch.tensor(seed), 300)
        assert np.array_equal(got.numpy(), sampling.uniform(seed % 2**64, np.arange(300)))


def test_a_sample_and_its_product_tied_together():
    a, b = random(9, 40, dtype=torch.float64), random(40, 7, dtype=torch.float64, seed=1)
    grad = random(9, 7, dtype=torch.float64, seed=2)
    for mode in ("topk", "bernoulli"):
        for group_size in (1, 8):
            scores = column_row_scores(a, b, group_size)
            k = len(scores) // 2
            sample = column_row_sample(scores, torch.tensor(5), k, mode)
            args = (a, b, None, grad, *sample, group_size)
            check(run(*args), wanted_products(*args), torch.float64)


def test_every_config_fits_and_covers_what_a_step_takes():
    from lutcc.schedules.triton.sampled_columns import aligned_run, choose_config
    from lutcc.schedules.triton.target import Target

    for target in (Target("sm_80", "cuda"), Target("sm_90", "cuda"), Target("gfx942", "hip")):
        for dtype in DTYPES:
            for group_size in (1, 3, 12, 16, 100):
                config = choose_config(dtype, target, aligned_run(group_size))
                tiles = (config.rows + config.columns) * config.depth * dtype.itemsize
                assert tiles * config.num_stages <= target.shared_memory
                for size in (config.rows, config.columns, config.depth):
                    assert size >= 16
                    assert size & (size - 1) == 0
