"""How large the error of a sampled product will be, by the scores of its pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lutcc.ir import sampling
from lutcc.ir.types import Array
from lutcc.sampling_options import SamplingOptions


def relative_error(
    scores: Array, k: int, options: SamplingOptions | None = None, ranking: Array | None = None
) -> float:
    """Return the expected relative error of a product that is sampled by its scores.

    Parameters
    ----------
    scores
        (P,) norms of the pairs: |column of A| |row of B|.
    k
        How many pairs are taken.
    options
        Mode, probabilities and scaling; those of ``SamplingOptions()`` if None.
    ranking
        (P,) what "topk_weights" goes by; the scores themselves if None.

    Returns
    -------
    float
        sqrt(E ||sampled - exact||^2 / ||exact||^2), where the products of different pairs are
        uncorrelated, so that ||exact||^2 is the sum of their squares. 0 where all pairs are taken;
        NaN where scores are not finite, or all 0.

    Notes
    -----
    Sources: Adelman et al., Faster neural network training with approximate tensor operations:
    equation 5 for crs, the variance of equation 15 for bernoulli, theorem 2 for top-k; Liu et al.,
    Winner-take-all column row sampling (NeurIPS 2023), for wta_crs.

    Examples
    --------
    >>> round(relative_error(np.array([3.0, 1.0, 1.0, 1.0]), 1), 6)  # 3 of 12 parts are left
    0.5
    """
    options = options or SamplingOptions()
    values = np.asarray(scores, np.float64)
    largest = values.max(initial=0.0)
    if not np.isfinite(values).all() or not largest > 0:
        return float("nan")
    squares = (values / largest) ** 2
    if k >= len(values):
        return 0.0
    if options.mode in ("topk", "topk_weights"):
        order = np.argsort(-(values if ranking is None else ranking), kind="stable")
        missing = squares[order[k:]].sum()
    else:
        missing = _expected(squares, k, options)
    return float(np.sqrt(max(missing, 0.0) / squares.sum()))


def _expected(squares: Array, k: int, options: SamplingOptions) -> float:
    """Return E ||error||^2 of a random mode."""
    scores, plain = np.sqrt(squares), options.scaling == "none"
    if options.mode == "bernoulli":
        p = sampling.bernoulli_probabilities(scores, k, options.probabilities)
        # a pair of probability 0 has score 0
        scaled = (1 - p) / np.where(p > 0, p, 1.0)
        return float(((1 - p if plain else scaled) * squares).sum())
    p = sampling.crs_probabilities(scores, options.probabilities)
    certain = sampling.winners(p, k) if options.mode == "wta_crs" else 0
    rest = np.argsort(-p, kind="stable")[certain:]
    p, squares, draws = p[rest], squares[rest], k - certain
    if not p.sum() > 0:
        return 0.0
    p = p / p.sum()
    if plain:
        return float(((1 - p) ** draws * squares).sum())
    return float(((1 / np.where(p > 0, p, 1.0) - 1) * squares).sum() / draws)


def squared_errors(
    scores: Array,
    options: SamplingOptions,
    ratios: Sequence[float],
    *,
    groups: int = 1,
    ranking: Array | None = None,
) -> Array:
    """Return the squared relative error for each of some sampling ratios.

    Parameters
    ----------
    scores
        (groups * P,) scores; of a convolution's groups, each takes as many of its own.
    options
        How is sampled; its ratio does not count.
    ratios
        Ratios to try.
    groups
        Groups of a convolution.
    ranking
        As for :func:`relative_error`.

    Returns
    -------
    Array
        (len(ratios),) float64; NaN where the scores say nothing.

    Examples
    --------
    >>> errors = squared_errors(np.array([2.0, 1.0, 1.0]), SamplingOptions(), [0.4, 0.7, 1])
    >>> errors.round(2).tolist()
    [0.33, 0.17, 0.0]
    """
    values = np.asarray(scores, np.float64)
    largest = values.max(initial=0.0)
    if not np.isfinite(values).all() or not largest > 0:
        return np.full(len(ratios), np.nan)
    parts = (values / largest).reshape(groups, -1)
    ranks = [None] * groups if ranking is None else np.reshape(ranking, (groups, -1))
    energies = (parts**2).sum(1)
    found = np.zeros(len(ratios))
    for at, ratio in enumerate(ratios):
        k = dataclasses.replace(options, sample_ratio=ratio).count(parts.shape[1])
        for part, rank, energy in zip(parts, ranks, energies, strict=True):
            if energy > 0:  # else the group adds nothing
                found[at] += relative_error(part, k, options, rank) ** 2 * energy
    return found / energies.sum()
