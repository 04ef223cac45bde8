"""What the paper proves of its estimators holds of these samples, within their own noise.

Every check is against a standard error or an exact formula, with fixed seeds.
"""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutcc.ir.sampling import (
    MODES,
    bernoulli_probabilities,
    crs_probabilities,
    philox,
    sample_count,
    select,
    uniform,
    winners,
)
from tests.ir import plain_sampled

DRAWS = 1500
K = 24
TAKEN = 8


def factors(seed: int, mean: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return a (5, K) and b (K, 4) whose columns and rows have very different norms."""
    rng = np.random.default_rng(seed)
    spread = np.exp(1.3 * rng.normal(size=K))
    return rng.normal(mean, 1, (5, K)) * spread, rng.normal(mean, 1, (K, 4))


def norms(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=1)


@cache
def estimates(mode: str, probabilities: str = "optimal") -> np.ndarray:
    """Return (DRAWS, 5, 4): the sampled product under seed after seed."""
    (a, b), k, found = factors(1), TAKEN, []
    scores = norms(a, b)
    for seed in range(DRAWS):
        sample = select(scores, k, mode, probabilities, seed)
        found.append((a[:, sample.indices] * sample.scales) @ b[sample.indices])
    return np.array(found)


RANDOM = [
    ("crs", "optimal"),
    ("crs", "uniform"),
    ("bernoulli", "optimal"),
    ("bernoulli", "uniform"),
    ("wta_crs", "optimal"),
]


@pytest.mark.parametrize(("mode", "probabilities"), RANDOM)
def test_unbiased(mode: str, probabilities: str) -> None:
    """Equations 3 and 15: within 4 standard errors, in fixed projections of the product."""
    a, b = factors(1)
    errors = estimates(mode, probabilities) - a @ b
    rng = np.random.default_rng(0)
    for _ in range(6):
        projected = np.einsum("i,tij,j->t", rng.normal(size=5), errors, rng.normal(size=4))
        standard_error = projected.std(ddof=1) / math.sqrt(DRAWS)
        assert standard_error > 0
        assert abs(projected.mean()) <= 4 * standard_error


def test_top_k_is_biased_by_what_it_leaves_out() -> None:
    a, b = factors(1)
    for mode in ("topk", "topk_weights"):
        first, *others = (select(norms(a, b), 8, mode, seed=s) for s in range(3))
        assert all((first.indices == other.indices).all() for other in others)
        error = (a[:, first.indices] * first.scales) @ b[first.indices] - a @ b
        assert np.linalg.norm(error) > 0.05 * np.linalg.norm(a @ b)


def squared_errors(a: np.ndarray, b: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """Return mean and standard error of the squared Frobenius norm of the error."""
    squares = np.square(found - a @ b).sum((1, 2))
    return squares.mean(), squares.std(ddof=1) / math.sqrt(len(squares))


@pytest.mark.parametrize("probabilities", ["optimal", "uniform"])
def test_error_of_crs(probabilities: str) -> None:
    """Equation 5, whose sums run over all pairs; for other p the sum that it is the least of."""
    a, b = factors(1)
    k, scores, square = TAKEN, norms(a, b), np.square(a @ b).sum()
    p = crs_probabilities(scores, probabilities)
    wanted = ((scores**2 / p).sum() - square) / k
    if probabilities == "optimal":
        assert wanted == pytest.approx((scores.sum() ** 2 - square) / k, rel=1e-12)
    mean, error = squared_errors(a, b, estimates("crs", probabilities))
    assert abs(mean - wanted) <= 4 * error
    assert error < 0.1 * wanted


@pytest.mark.parametrize("probabilities", ["optimal", "uniform"])
def test_error_of_bernoulli(probabilities: str) -> None:
    """Pairs are independent: the sum of (1 - p) / p |a|^2 |b|^2."""
    a, b = factors(1)
    p = bernoulli_probabilities(norms(a, b), TAKEN, probabilities)
    wanted = ((1 - p) / p * norms(a, b) ** 2).sum()
    mean, error = squared_errors(a, b, estimates("bernoulli", probabilities))
    assert abs(mean - wanted) <= 4 * error
    assert error < 0.1 * wanted


def test_error_of_wta_crs() -> None:
    """Crs over the pairs that are not certain, and never worse than crs over all."""
    a, b = factors(1)
    scores, k = norms(a, b), TAKEN
    p = crs_probabilities(scores)
    certain = winners(p, k)
    assert certain > 0
    rest = np.argsort(-p)[certain:]
    square = np.square(a[:, rest] @ b[rest]).sum()
    wanted = (scores[rest].sum() ** 2 - square) / (k - certain)
    mean, error = squared_errors(a, b, estimates("wta_crs"))
    assert abs(mean - wanted) <= 4 * error
    assert wanted < (scores.sum() ** 2 - np.square(a @ b).sum()) / k


def test_no_other_probabilities_are_better() -> None:
    """Equation 4 for crs, and equation 16 with what min cuts off given to the others."""
    rng = np.random.default_rng(5)
    scores, k = rng.exponential(size=K) ** 2, 7
    p, q = crs_probabilities(scores), bernoulli_probabilities(scores, k)
    assert (q == 1).any()  # or nothing would be cut off

    def of_bernoulli(chances: np.ndarray) -> float:
        return float(((1 - chances) / chances * scores**2).sum())

    for _ in range(200):
        other = p * np.exp(0.1 * rng.normal(size=K))
        other /= other.sum()
        assert (scores**2 / other).sum() > (scores**2 / p).sum()
        step = rng.normal(size=K) * np.where(q < 1, 0.05, 0.0)
        step[q == 1] = -np.abs(rng.normal(size=int((q == 1).sum()))) * 0.05
        near = q + step
        free = q < 1
        near[free] -= (near.sum() - k) / free.sum()  # equation 14
        if (near > 0).all() and (near <= 1).all():
            assert of_bernoulli(near) > of_bernoulli(q)
    cut = np.minimum(k * scores / scores.sum(), 1)
    assert cut.sum() < k - 0.2
    assert q.sum() == pytest.approx(k)
    assert of_bernoulli(q) < of_bernoulli(cut)


def test_top_k_is_the_best_estimate_of_independent_pairs_with_zero_mean() -> None:
    """Theorem 2, by drawing the factors: no other k pairs, and no other scale, has less error."""
    rng = np.random.default_rng(6)
    n, k, trials = 7, 3, 2000
    spread = np.exp(0.5 * rng.normal(size=n))
    subsets = np.array(list(itertools.combinations(range(n), k)))
    masks = np.zeros((len(subsets), n))
    np.put_along_axis(masks, subsets, 1, 1)
    excess: list[np.ndarray] = []
    scaled: list[list[float]] = []
    for _ in range(trials):
        # the norms are known; the signs, and so the products, are independent of zero mean
        size_a, size_b = np.abs(rng.normal(size=(4, n))) * spread, np.abs(rng.normal(size=(n, 3)))
        a, b = size_a * rng.choice([-1, 1], (4, n)), size_b * rng.choice([-1, 1], (n, 3))
        products = a.T[:, :, None] * b[:, None, :]
        whole = products.sum(0)
        errors = np.square(np.tensordot(masks, products, 1) - whole).sum((1, 2))
        chosen = select(norms(a, b), k, "topk").indices
        mine = masks[:, chosen].sum(1).argmax()
        excess.append(errors - errors[mine])
        best = products[chosen].sum(0)
        scaled.append(
            [float(np.square(s * best - whole).sum()) - errors[mine] for s in (0.8, 1.2, n / k)]
        )
    # which pairs are best differs from trial to trial: each rank of the subsets, by their norms
    for table in (np.sort(np.array(excess), 1).mean(0, keepdims=True), np.array(scaled)):
        assert table.mean() > 0
    means, errors = np.mean(scaled, 0), np.std(scaled, 0, ddof=1) / math.sqrt(trials)
    assert (means > 4 * errors).all()
    # a fixed rule by norms: take the pairs of ranks r, for each set of ranks but the first k
    order_excess = ranks_excess(rng, n, k, trials)
    means, errors = order_excess.mean(0), order_excess.std(0, ddof=1) / math.sqrt(trials)
    assert (means > 4 * errors).all()


def ranks_excess(rng: np.random.Generator, n: int, k: int, trials: int) -> np.ndarray:
    """Return (trials, sets of ranks but the first): squared error above that of the top k."""
    sets = list(itertools.combinations(range(n), k))
    masks = np.zeros((len(sets), n))
    np.put_along_axis(masks, np.array(sets), 1, 1)
    found = []
    for _ in range(trials):
        a, b = rng.normal(size=(4, n)), rng.normal(size=(n, 3))
        order = np.argsort(-norms(a, b))
        products = a.T[order][:, :, None] * b[order][:, None, :]
        errors = np.square(np.tensordot(masks, products, 1) - products.sum(0)).sum((1, 2))
        found.append(errors[1:] - errors[0])  # the first set is ranks 0 .. k - 1
    return np.array(found)


def test_random_numbers() -> None:
    """Word for word those of Philox 4x32-10, and uniform."""
    assert philox(0, np.array([0])).tolist() == [0x6627E8D5]  # the published vector
    for seed in (1, 2**32, 2**32 + 1, 0xDEADBEEFCAFEBABE, 2**64 - 1):
        positions = np.array([0, 1, 2, 1000, 2**31, 2**32 - 1])
        want = [plain_sampled.philox(seed, int(p)) for p in positions]
        assert philox(seed, positions).tolist() == want
    drawn = uniform(12345, np.arange(100_000))
    assert 0 < drawn.min() < drawn.max() < 1
    counts = np.histogram(drawn, 50, (0, 1))[0]
    # chi squared with 49 degrees of freedom: 99.9 % are below 85.4
    assert ((counts - 2000) ** 2 / 2000).sum() < 85.4
    pairs = np.corrcoef(drawn[:-1], drawn[1:])[0, 1]
    assert abs(pairs) < 4 / math.sqrt(len(drawn))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(0, 2.0**100, width=32), min_size=1, max_size=40),
    st.data(),
)
def test_samples_are_in_order(scores: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(scores)))
    mode = data.draw(st.sampled_from(MODES))
    sample = select(
        np.array(scores, np.float32), k, mode, seed=data.draw(st.integers(0, 2**64 - 1))
    )
    taken = int((sample.scales > 0).sum())
    assert (sample.scales[:taken] > 0).all()
    assert (np.diff(sample.indices[:taken]) > 0).all()
    assert not sample.indices[taken:].any()
    assert len(sample.scales) == (len(scores) if mode == "bernoulli" else k)
    if mode.startswith("topk"):
        assert taken == k
        least = min(scores[i] for i in sample.indices)
        assert sum(s > least for s in scores) <= k
    positive = sum(s > 0 for s in np.array(scores, np.float32))
    chances = bernoulli_probabilities(np.array(scores, np.float32), k)
    usable = positive or len(scores)
    assert chances.sum() <= min(k, usable) + 1e-9
    assert chances.max() <= 1


def test_counts() -> None:
    assert sample_count(100, 0.29) == 29
    assert sample_count(3, 0.01) == 1
    assert sample_count(100, 0.1, 32) == 32
    assert sample_count(20, 0.1, 32) == 20
    assert sample_count(7, 1) == 7
    for columns in range(1, 300):
        for part in range(1, columns + 1):
            assert sample_count(columns, part / columns) == part
