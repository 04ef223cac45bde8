"""What JLCM is compared with: rounding to a grid, AdaRound, and k-means of each channel.

Grids are the integers of so many bits times a scale of the region, that is one codebook and
scales. All return :class:`~lutcc.codebook_weights.CodebookWeights`, so that footprints are counted
alike; regions are as in :class:`lutcc.fit.codebook_plan.CodebookPlan`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils import check_random_state
from torch import Tensor

from lutcc.codebook_weights import CodebookWeights
from lutcc.fit.output_error import Calibration
from lutcc.fit.scalar_clustering import cluster_scalars, nearest
from lutcc.fit.soft_assignments import beta_at
from lutcc.ir.codebooks import region_starts

Weights = npt.NDArray[np.float32]

#: Scales that are tried, over the one at which the largest weight is just on the grid.
SCALES_TRIED = np.linspace(0.2, 1.05, 52)
#: AdaRound's stretch of the sigmoid, weight of its regularisation (errors are in grid steps here;
#: AdaRound's 0.01 leaves most weights undecided), and rate times steps.
STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1
ROUNDING_SHARPNESS = 1.0
ROUNDING_TRAVEL = 10.0


def round_to_nearest(
    W: Weights, bits: int, *, regions: int = 1, segment_size: int = 0
) -> CodebookWeights:
    """Return W (M, K) on the nearest point of a grid whose scale is the best one of each region.

    Parameters
    ----------
    W
        Weights.
    bits
        2, 3 or 4.
    regions
        1: a scale for the matrix; M: one a channel; fewer, or more: groups of rows, or segments.
    segment_size
        Columns of a segment.

    Notes
    -----
    The scale, its sign included (grids have one point more below zero), is the one of 104 with the
    smallest squared error. Source: Krishnamoorthi 2018; the search as in OCTAV and LAPQ.

    Examples
    --------
    >>> w = round_to_nearest(np.float32([[-0.5, 0.25, 0.0]]), 3, regions=1)
    >>> w.codebooks.tolist()[0][:2], w.footprint().scales
    ([-4.0, -3.0], 16)
    """
    weights = np.asarray(W, np.float32)
    region = _region(weights.shape, regions, segment_size)
    half = 2 ** (bits - 1)
    largest = np.zeros(regions, np.float32)
    np.maximum.at(largest, region.ravel(), np.abs(weights).ravel())
    best, lowest = np.ones(regions, np.float16), np.full(regions, np.inf)
    for factor in np.concatenate([SCALES_TRIED, -SCALES_TRIED]):
        scale = (largest * np.float32(factor) / half).astype(np.float16)
        scale[scale == 0] = 1
        step = scale.astype(np.float32)[region]
        missed = step * np.clip(np.rint(weights / step), -half, half - 1) - weights
        error = np.bincount(region.ravel(), np.square(missed).ravel(), minlength=regions)
        better = error < lowest
        best[better], lowest[better] = scale[better], error[better]
    step = best.astype(np.float32)[region]
    points = np.clip(np.rint(weights / step), -half, half - 1)
    return _on_grid(points, best, bits, segment_size if regions > len(weights) else 0)


def channel_kmeans(
    W: Weights,
    bits: int,
    *,
    regions: int | None = None,
    segment_size: int = 0,
    random_state: int | np.random.RandomState | None = None,
) -> CodebookWeights:
    """Return W (M, K) with a k-means codebook of each channel, rows as they are.

    Parameters
    ----------
    W
        Weights.
    bits
        2, 3 or 4.
    regions
        None: a codebook a channel. Else groups of rows, or segments: at a goal that channels'
        codebooks are too large for.
    segment_size
        Columns of a segment.
    random_state
        Of k-means++.

    Examples
    --------
    >>> w = channel_kmeans(np.float32([[1, 2, 3, 4, 1, 2], [5, 5, 6, 7, 8, 8]]), 2)
    >>> w.codebooks.tolist()
    [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]
    """
    weights = np.asarray(W, np.float32)
    rows = len(weights)
    count = rows if regions is None else regions
    random = check_random_state(random_state)
    region = _region(weights.shape, count, segment_size)
    indices = np.empty(weights.shape, np.uint8)
    codebooks = np.empty((count, 2**bits), np.float16)
    # regions of as many weights are clustered together: they stand as rows of one array
    places = np.split(
        np.argsort(region, axis=None, kind="stable"), np.cumsum(np.bincount(region.ravel()))[:-1]
    )
    sizes = np.array([len(p) for p in places])
    for size in np.unique(sizes):
        chosen = np.flatnonzero(sizes == size)
        index = np.stack([places[r] for r in chosen])
        sets = weights.ravel()[index]
        tables = cluster_scalars(sets, 2**bits, "kmeans", random=random).astype(np.float16)
        codebooks[chosen] = tables
        indices.ravel()[index] = nearest(sets, tables)
    return CodebookWeights.of(
        indices, codebooks, bits=bits, segment_size=segment_size if count > rows else 0
    )


def adaround(
    W: Weights,
    X: Weights,
    Y: Weights | None = None,
    bias: Weights | None = None,
    *,
    bits: int,
    regions: int = 1,
    segment_size: int = 0,
    activation: str | None = None,
    steps: int = 1000,
    batch_size: int = 256,
    random_state: int | np.random.RandomState | None = None,
) -> CodebookWeights:
    """Return W (M, K) rounded up or down on the grid of :func:`round_to_nearest`, as X makes best.

    Parameters
    ----------
    W, bits, regions, segment_size
        As in :func:`round_to_nearest`.
    X, Y, bias, activation
        As in :func:`lutcc.fit.codebook_learning.learn`.
    steps, batch_size, random_state
        Of Adam; without an activation every step sees all inputs.

    Notes
    -----
    Source: Nagel et al., Up or down? Adaptive rounding for post-training quantization, ICML 2020.
    """
    start = round_to_nearest(W, bits, regions=regions, segment_size=segment_size)
    data = Calibration.of(start, W, X, Y, bias, activation, penalty=0.0)
    random = check_random_state(random_state)
    half = 2 ** (bits - 1)
    region = torch.from_numpy(_region(start.shape, regions, segment_size))
    step = torch.from_numpy(start.scales.astype(np.float32))[region]
    exact = data.exact / step
    low = exact.floor()
    share = ((exact - low).clamp(0.01, 0.99) - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW)
    logits = share.logit().requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=ROUNDING_TRAVEL / max(steps, 1))
    unit = float(step.abs().mean())

    def up() -> Tensor:
        return (logits.sigmoid() * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW).clamp(0, 1)

    for number in range(steps):
        shares = up()
        difference = ((low + shares).clamp(-half, half - 1) - exact) * step
        _, gradient = data.loss(difference.detach(), random, batch_size)
        roots, grads = [difference], [gradient / unit**2]
        beta = beta_at(number / max(steps - 1, 1))
        if beta is not None:
            hard = ROUNDING_SHARPNESS * (1 - (2 * shares - 1).abs().pow(beta)).sum()
            roots.append(hard)
            grads.append(torch.ones_like(hard))
        optimiser.zero_grad()
        torch.autograd.backward(roots, grads)
        optimiser.step()
    points = (low + (up().detach() >= 0.5)).clamp(-half, half - 1).numpy()
    return _on_grid(points, start.scales, bits, start.segment_size)


def _region(shape: tuple[int, int], regions: int, segment_size: int) -> npt.NDArray[np.intp]:
    """Return (M, K): the region of each weight."""
    starts = region_starts(regions, *shape, segment_size)
    size = segment_size if starts.shape[1] > 1 else shape[1]
    return starts[:, np.arange(shape[1]) // size]


def _on_grid(
    points: npt.NDArray[np.floating], scales: npt.NDArray[np.float16], bits: int, segment_size: int
) -> CodebookWeights:
    """Return integers ``points`` (M, K) times ``scales``."""
    half = 2 ** (bits - 1)
    grid = np.arange(-half, half, dtype=np.float32)[None]
    indices = (points + half).astype(np.uint8)
    return CodebookWeights.of(indices, grid, bits=bits, scales=scales, segment_size=segment_size)
