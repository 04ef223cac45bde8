"""Which column-row pairs a sampled product multiplies, and what each of them counts.

A product of A (N, K) and B (K, M) is the sum over K pairs of a column of A and a row of B. A mode
takes some of the pairs, by a score per pair that stands for its norm, and scales them. Everything
is float64 until the scales are rounded, and random numbers come from a counter-based generator, so
that every backend takes the same pairs from the same scores and seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lutcc.ir.types import Array

#: How pairs are taken. ``topk_weights`` is ``topk`` by scores that depend on B only.
MODES = ("crs", "bernoulli", "topk", "topk_weights", "wta_crs")
#: Modes that draw random numbers.
RANDOM_MODES = ("crs", "bernoulli", "wta_crs")
#: Where the probabilities of a random mode come from.
PROBABILITIES = ("optimal", "uniform")

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(seed: int, positions: Array) -> Array:
    """Return the first word of Philox 4x32-10 at each counter ``(position, 0, 0, 0)``.

    Parameters
    ----------
    seed
        Below 2**64; its halves are the key, low half first.
    positions
        Non-negative integers below 2**32, any shape.

    Returns
    -------
    Array
        uint32, the shape of ``positions``.

    Notes
    -----
    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).

    Examples
    --------
    >>> hex(philox(0, np.array(0)).item())
    '0x6627e8d5'
    """
    words = [np.asarray(positions).astype(np.uint64)]
    words += [np.zeros_like(words[0]) for _ in range(3)]
    keys = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
    for _ in range(_ROUNDS):
        first = words[0] * _MULTIPLIERS[0]
        second = words[2] * _MULTIPLIERS[1]
        words = [
            (second >> _HALF) ^ words[1] ^ np.uint64(keys[0]),
            second & _LOW,
            (first >> _HALF) ^ words[3] ^ np.uint64(keys[1]),
            first & _LOW,
        ]
        keys = [(key + step) & 0xFFFFFFFF for key, step in zip(keys, _WEYL, strict=True)]
    return words[0].astype(np.uint32)


def uniform(seed: int, positions: Array) -> Array:
    """Return a number in (0, 1) for each position: (word + 0.5) / 2**32, float64.

    Examples
    --------
    >>> uniform(0, np.array([0])).round(4).tolist()
    [0.399]
    """
    return (philox(seed, positions).astype(np.float64) + 0.5) * 2.0**-32


def sample_count(columns: int, sample_ratio: float, minimal_k: int = 1) -> int:
    """Return k: ``sample_ratio`` of the columns rounded down, at least ``minimal_k``, at most all.

    Examples
    --------
    >>> sample_count(10, 0.29), sample_count(10, 0.3), sample_count(10, 0.01, 4)
    (2, 3, 4)
    """
    # The ratio times the columns may fall short of a whole number by rounding alone.
    return min(columns, max(minimal_k, 1, int(sample_ratio * columns * (1 + 1e-12))))


def slots(mode: str, k: int, columns: int) -> int:
    """Return how many pairs a mode may take: k, or all of them where the number is random.

    Examples
    --------
    >>> slots("topk", 3, 8), slots("bernoulli", 3, 8)
    (3, 8)
    """
    return columns if mode == "bernoulli" else k


def weights_of(scores: Array) -> Array:
    """Return scores as float64 weights in [0, inf) whose sum is positive and finite.

    Where some scores are infinite or NaN, those alone count, each 1, so that what is not finite
    is taken as surely as anything; where all are 0, all count the same.
    """
    weights = np.asarray(scores, np.float64)
    wild = ~np.isfinite(weights)
    if wild.any():
        return wild.astype(np.float64)
    largest = weights.max(initial=0.0)
    return weights / largest if largest > 0 else np.ones_like(weights)


def crs_probabilities(scores: Array, probabilities: str = "optimal") -> Array:
    """Return equation 4's probabilities, which sum to 1, or uniform ones.

    Examples
    --------
    >>> crs_probabilities(np.array([3.0, 1.0])).tolist()
    [0.75, 0.25]
    """
    weights = weights_of(scores)
    if probabilities == "uniform":
        weights = np.ones_like(weights)
    return weights / weights.sum()


def bernoulli_probabilities(scores: Array, k: int, probabilities: str = "optimal") -> Array:
    """Return equation 16's probabilities: they sum to k, and none is above 1.

    What ``min(., 1)`` cuts off is given to the others in proportion to their scores, until none is
    above 1; that minimises the variance under equation 14. Pairs of score 0 get 0, so fewer than k
    other pairs are all taken.

    Examples
    --------
    >>> bernoulli_probabilities(np.array([8.0, 1.0, 1.0]), 2).tolist()
    [1.0, 0.5, 0.5]
    """
    weights = weights_of(scores)
    if probabilities == "uniform":
        weights = np.ones_like(weights)
    order = np.argsort(-weights, kind="stable")
    ranked = weights[order]
    rest = np.cumsum(ranked[::-1])[::-1]  # of each and all smaller ones
    # The first t pairs are certain; the next would get (k - t) * weight / rest.
    certain = np.arange(len(ranked))
    with np.errstate(all="ignore"):
        share = np.where(rest > 0, (k - certain) * ranked / rest, 0.0)
    first = int(np.argmax(share <= 1)) if (share <= 1).any() else len(ranked)
    first = min(first, k)
    result = np.zeros_like(weights)
    result[order[:first]] = 1.0
    if first < min(k, len(ranked)) and rest[first] > 0:
        result[order[first:]] = np.minimum((k - first) * ranked[first:] / rest[first], 1.0)
    return result


def winners(probabilities: Array, k: int) -> int:
    """Return how many of the likeliest pairs WTA-CRS takes for certain, in 0..k - 1.

    It minimises (1 - their probability) / (k - their number), the factor of the variance; of those
    within 1e-12 of the least the smallest number, so that rounding does not decide between equals.

    Examples
    --------
    >>> winners(np.array([0.9, 0.05, 0.05]), 2), winners(np.array([0.4, 0.3, 0.3]), 1)
    (1, 0)
    """
    ranked = -np.sort(-probabilities)
    left = 1.0 - np.concatenate([[0.0], np.cumsum(ranked)])[:k]
    losses = np.maximum(left, 0.0) / (k - np.arange(len(left)))
    return int(np.argmax(losses <= losses.min() + 1e-12))


@dataclass(frozen=True, slots=True)
class Sample:
    """The pairs that are taken, each once.

    Parameters
    ----------
    indices
        (S,) int32: first the pairs taken, ascending, then 0.
    scales
        (S,) float32: what each counts, positive; 0 beyond the pairs taken.
    """

    indices: Array
    scales: Array


def select(
    scores: Array,
    k: int,
    mode: str,
    probabilities: str = "optimal",
    seed: int = 0,
    first_position: int = 0,
) -> Sample:
    """Take about k of the pairs.

    Parameters
    ----------
    scores
        (K,) non-negative; see :func:`weights_of` for what is not finite.
    k
        1..K.
    mode
        One of :data:`MODES`. crs: k draws with replacement, equation 1; a pair drawn c times is
        taken once with scale c / (k p). bernoulli: each pair for itself, equation 15, scale 1 / p.
        topk, topk_weights: the k largest scores, of equal ones the lowest index, scale 1. wta_crs:
        the likeliest pairs (:func:`winners`) for certain with scale 1, the others by crs.
    probabilities
        "optimal" (by score) or "uniform", for crs and bernoulli.
    seed
        Below 2**64.
    first_position
        Counter of the first random number: draw t or pair t uses number ``first_position + t``.

    Returns
    -------
    Sample
        With S = k, but K for bernoulli.

    Notes
    -----
    Source: Adelman et al., Faster neural network training with approximate tensor operations,
    equations 1, 4, 15, 16 and section 6; wta_crs: Liu et al., Winner-take-all column row sampling
    (NeurIPS 2023), equation 6.

    Examples
    --------
    >>> sample = select(np.array([1.0, 5.0, 2.0]), 2, "topk")
    >>> sample.indices.tolist(), sample.scales.tolist()
    ([1, 2], [1.0, 1.0])
    """
    scores = np.asarray(scores, np.float64)
    columns = len(scores)
    scales = np.zeros(columns)
    if mode in ("topk", "topk_weights"):
        ranked = np.where(np.isfinite(scores), scores, np.inf)
        scales[np.argsort(-ranked, kind="stable")[:k]] = 1.0
    elif mode == "bernoulli":
        p = bernoulli_probabilities(scores, k, probabilities)
        taken = uniform(seed, first_position + np.arange(columns)) < p
        scales[taken] = 1.0 / p[taken]
    else:
        p = crs_probabilities(scores, probabilities)
        certain = winners(p, k) if mode == "wta_crs" else 0
        sure = np.argsort(-p, kind="stable")[:certain]
        rest = p.copy()
        rest[sure] = 0.0
        counts, left = _draw(rest, k - certain, seed, first_position)
        drawn = counts > 0
        scales[drawn] = counts[drawn] * left / ((k - certain) * p[drawn])
        scales[sure] = 1.0
    return _compact(scales, slots(mode, k, columns))


def _draw(weights: Array, draws: int, seed: int, first_position: int) -> tuple[Array, Array]:
    """Return how often each index is drawn in proportion to its weight, and the weights' sum."""
    total = np.cumsum(weights)
    if not total[-1] > 0:
        return np.zeros(len(weights)), total[-1]
    points = uniform(seed, first_position + np.arange(draws)) * total[-1]
    # Indices of weight 0 have the sum of the one before them, so the search passes them by.
    found: npt.NDArray[np.intp] = np.asarray(np.searchsorted(total, points, side="right"))  # pyright: ignore
    found = np.minimum(found, np.flatnonzero(weights)[-1])
    return np.bincount(found, minlength=len(weights)).astype(np.float64), total[-1]


def _compact(scales: Array, size: int) -> Sample:
    taken = np.flatnonzero(scales)
    indices, kept = np.zeros(size, np.int32), np.zeros(size, np.float32)
    indices[: len(taken)] = taken
    kept[: len(taken)] = scales[taken]
    return Sample(indices, kept)
