"""``column_row_sample``: which pairs are taken, on the GPU and without waiting for it.

Top-k ranks each pair by counting those before it: P^2 comparisons, which for the sizes of layers
take less time than one pass of a sort. Probabilities of the random modes are a few operators of
torch in float64. What is taken is brought into ascending order by a running count.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lutcc.ir.sampling import slots
from lutcc.schedules.triton.jit import jit
from lutcc.schedules.triton.target import current_target

#: Pairs per program that are ranked, and that a step compares them with.
PAIRS, OTHERS = 64, 64
#: Random numbers per program, and pairs that a step of a running sum or count takes.
NUMBERS, STEP = 256, 1024


@jit
def rank_kernel(scores, scales, pairs, k, blocks, PAIRS: tl.constexpr, OTHERS: tl.constexpr):
    """Give 1 to pairs that fewer than k come before: larger ones, and equal ones of lower index."""
    group = (tl.program_id(0) // blocks).to(tl.int64) * pairs
    i = (tl.program_id(0) % blocks) * PAIRS + tl.arange(0, PAIRS)
    mine = tl.load(scores + group + i, mask=i < pairs, other=0.0)
    # what is not finite comes before all that is: NaN is not equal to itself
    mine = tl.where((mine == mine) & (mine < float("inf")), mine, float("inf"))
    before = tl.zeros((PAIRS,), tl.int32)
    for start in range(0, pairs, OTHERS):
        j = start + tl.arange(0, OTHERS)
        other = tl.load(scores + group + j, mask=j < pairs, other=0.0)
        other = tl.where((other == other) & (other < float("inf")), other, float("inf"))
        larger = other[None, :] > mine[:, None]
        equal = (other[None, :] == mine[:, None]) & (j[None, :] < i[:, None])
        counts = (larger | equal) & (j < pairs)[None, :]
        before += tl.sum(counts.to(tl.int32), 1)
    tl.store(scales + group + i, (before < k).to(tl.float64), mask=i < pairs)


@jit
def compact_kernel(scales, indices, kept, pairs, places, STEP: tl.constexpr):
    """Write what is taken of one group, ascending, before the zeros that are there."""
    group = tl.program_id(0).to(tl.int64)
    done = tl.zeros((), tl.int32)
    for start in range(0, pairs, STEP):
        i = start + tl.arange(0, STEP)
        scale = tl.load(scales + group * pairs + i, mask=i < pairs, other=0.0)
        taken = scale != 0.0
        count = taken.to(tl.int32)
        place = done + tl.cumsum(count, 0) - 1
        done += tl.sum(count, 0)
        out = group * places + place
        tl.store(indices + out, (group * pairs + i).to(tl.int32), mask=taken)
        tl.store(kept + out, scale.to(tl.float32), mask=taken)


@jit
def running_sum_kernel(weights, sums, pairs, STEP: tl.constexpr):
    """Write the running sums of one group of weights, none of which is negative.

    Unlike torch's they are the same every time, so that a pass that is computed again, as
    checkpoints do, takes the same pairs.
    """
    group = tl.program_id(0).to(tl.int64) * pairs
    done = tl.zeros((), tl.float64)
    for start in range(0, pairs, STEP):
        i = start + tl.arange(0, STEP)
        here = tl.cumsum(tl.load(weights + group + i, mask=i < pairs, other=0.0), 0) + done
        tl.store(sums + group + i, here, mask=i < pairs)
        done = tl.max(here, 0)


@jit
def uniform_kernel(seed, out, count, STEP: tl.constexpr):
    """Write (word + 0.5) / 2**32 of Philox 4x32-10 at the counters (i, 0, 0, 0)."""
    i = tl.program_id(0) * STEP + tl.arange(0, STEP)
    whole = tl.load(seed)
    key0 = (whole & 0xFFFFFFFF).to(tl.uint32)
    key1 = ((whole >> 32) & 0xFFFFFFFF).to(tl.uint32)
    c0 = i.to(tl.uint32)
    c1 = tl.zeros((STEP,), tl.uint32)
    c2 = tl.zeros((STEP,), tl.uint32)
    c3 = tl.zeros((STEP,), tl.uint32)
    for _ in tl.static_range(10):
        first = c0.to(tl.uint64) * 0xD2511F53
        second = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (second >> 32).to(tl.uint32) ^ c1 ^ key0
        c1 = (second & 0xFFFFFFFF).to(tl.uint32)
        c2 = (first >> 32).to(tl.uint32) ^ c3 ^ key1
        c3 = (first & 0xFFFFFFFF).to(tl.uint32)
        key0 = (key0.to(tl.uint64) + 0x9E3779B9).to(tl.uint32)
        key1 = (key1.to(tl.uint64) + 0xBB67AE85).to(tl.uint32)
    value = (c0.to(tl.float64) + 0.5) * (1.0 / 4294967296.0)
    tl.store(out + i, value, mask=i < count)


def column_row_sample(
    scores: torch.Tensor,
    seed: torch.Tensor,
    k: int,
    mode: str,
    probabilities: str = "optimal",
    groups: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take about k pairs of each group, as :func:`lutcc.ir.sampling.select` does.

    Parameters
    ----------
    scores
        (P,) float32 or float64.
    seed
        0-dimensional int64 on the same device, whose bits are the seed.
    k, mode, probabilities, groups
        As there.

    Returns
    -------
    tuple of torch.Tensor
        Indices (groups * S,) int32 and scales (groups * S,) float32.

    Notes
    -----
    Source: Adelman et al., equations 1, 4, 15 and 16, and section 6.

    Examples
    --------
    >>> scores = torch.tensor([1.0, 5.0, 2.0]).cuda()  # doctest: +SKIP
    >>> seed = torch.tensor(0).cuda()  # doctest: +SKIP
    >>> column_row_sample(scores, seed, 2, "topk")[0].tolist()  # doctest: +SKIP
    [1, 2]
    """
    pairs = scores.shape[0] // groups
    grouped = scores.reshape(groups, pairs)
    if mode in ("topk", "topk_weights"):
        scales = _largest(grouped.contiguous(), k)
    elif mode == "bernoulli":
        chances = _bernoulli(grouped, k, probabilities)
        taken = _uniform(seed, groups * pairs).view(groups, pairs) < chances
        scales = torch.where(taken, 1 / chances, 0.0)
    else:
        scales = _drawn(grouped, seed, k, mode, probabilities)
    places = slots(mode, k, pairs)
    indices = scores.new_zeros((groups * places,), dtype=torch.int32)
    kept = scores.new_zeros((groups * places,), dtype=torch.float32)
    compact_kernel[(groups,)](scales, indices, kept, pairs, places, STEP=STEP)
    return indices, kept


def _largest(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Return float64 (groups, pairs): 1 for the k largest of each group."""
    groups, pairs = scores.shape
    scales = scores.new_empty((groups, pairs), dtype=torch.float64)
    block = 32 if current_target().backend == "interpreter" else PAIRS
    blocks = triton.cdiv(pairs, block)
    rank_kernel[(groups * blocks,)](scores, scales, pairs, k, blocks, PAIRS=block, OTHERS=OTHERS)
    return scales


def _uniform(seed: torch.Tensor, count: int) -> torch.Tensor:
    """Return float64 (count,) in (0, 1)."""
    out = torch.empty((count,), dtype=torch.float64, device=seed.device)
    uniform_kernel[(triton.cdiv(count, NUMBERS),)](seed, out, count, STEP=NUMBERS)
    return out


def _running_sum(weights: torch.Tensor) -> torch.Tensor:
    """Return the running sums along each group of float64 (groups, pairs)."""
    weights = weights.contiguous()
    sums = torch.empty_like(weights)
    groups, pairs = weights.shape
    running_sum_kernel[(groups,)](weights, sums, pairs, STEP=STEP)
    return sums


def _weights(scores: torch.Tensor, probabilities: str) -> torch.Tensor:
    """Return float64 (groups, pairs), as :func:`lutcc.ir.sampling.weights_of`, or ones."""
    if probabilities == "uniform":
        return torch.ones_like(scores, dtype=torch.float64)
    wide = scores.to(torch.float64)
    wild = ~wide.isfinite()
    largest = torch.where(wild, 0.0, wide).amax(1, keepdim=True)
    usual = torch.where(largest > 0, wide / largest, 1.0)
    return torch.where(wild.any(1, keepdim=True), wild.to(torch.float64), usual)


def _bernoulli(scores: torch.Tensor, k: int, probabilities: str) -> torch.Tensor:
    """Return (groups, pairs), as :func:`lutcc.ir.sampling.bernoulli_probabilities`."""
    weights = _weights(scores, probabilities)
    pairs = weights.shape[1]
    ranked, order = weights.sort(dim=1, descending=True, stable=True)
    rest = _running_sum(ranked.flip(1)).flip(1)
    place = torch.arange(pairs, device=scores.device)
    share = torch.where(rest > 0, (k - place) * ranked / rest, 0.0)
    # The first pair whose share is at most 1; the places before it are certain.
    certain = (share > 1).to(torch.int64).cumprod(1).sum(1, keepdim=True).clamp(max=k)
    left = rest.gather(1, certain.clamp(max=pairs - 1))
    open_ = (certain < min(k, pairs)) & (left > 0)
    others = torch.where(open_, ((k - certain) * ranked / left).clamp(max=1.0), 0.0)
    chances = torch.where(place < certain, 1.0, others)
    return torch.zeros_like(chances).scatter_(1, order, chances)


def _drawn(
    scores: torch.Tensor, seed: torch.Tensor, k: int, mode: str, probabilities: str
) -> torch.Tensor:
    """Return the scales of draws with replacement; of wta_crs, after what it takes for certain."""
    weights = _weights(scores, probabilities)
    groups, pairs = weights.shape
    p = weights / weights.sum(1, keepdim=True)
    draws = p.new_full((groups, 1), k, dtype=torch.int64)
    sure = torch.zeros_like(p, dtype=torch.bool)
    if mode == "wta_crs":
        ranked, order = p.sort(dim=1, descending=True, stable=True)
        before = torch.nn.functional.pad(_running_sum(ranked), (1, 0))[:, :k]
        losses = (1 - before).clamp(min=0.0) / (k - torch.arange(k, device=p.device))
        near = losses <= losses.amin(1, keepdim=True) + 1e-12
        certain = near.to(torch.int64).argmax(1, keepdim=True)
        place = torch.arange(pairs, device=p.device)
        sure.scatter_(1, order, (place < certain).expand(groups, pairs))
        draws = k - certain
    rest = torch.where(sure, 0.0, p)
    total = _running_sum(rest)
    whole = total[:, -1:]
    number = torch.arange(k, device=p.device)
    # Draw t has the number t of its group whatever others take.
    points = _uniform(seed, groups * k).view(groups, k) * whole
    last = pairs - 1 - (rest > 0).flip(1).to(torch.int64).argmax(1, keepdim=True)
    found = torch.searchsorted(total, points, right=True).minimum(last)
    drawn = ((number < draws) & (whole > 0)).to(torch.float64)
    counts = torch.zeros_like(p).scatter_add_(1, found, drawn)  # whole numbers: in any order
    # Sums of the same weights may differ in their last bit: what cannot be drawn never is.
    scales = torch.where((counts > 0) & (rest > 0), counts * whole / (draws * p), 0.0)
    return torch.where(sure, 1.0, scales)
