"""Which pairs are taken, by their scores: :func:`lutcc.ir.sampling.select` as an operator."""

from __future__ import annotations

import numpy as np
import torch

from lutcc.errors import suggest
from lutcc.ir import sampling
from lutcc.ops.checks import dtype as check_dtype
from lutcc.ops.checks import require
from lutcc.ops.library import define

_OP = "column_row_sample"


def column_row_sample(
    scores: torch.Tensor,
    k: int,
    mode: str = "topk",
    probabilities: str = "optimal",
    seed: int | torch.Tensor | None = None,
    groups: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take about k pairs by their scores.

    Parameters
    ----------
    scores
        (P,) float32 or float64, not negative.
    k
        1..P / groups.
    mode
        "crs", "bernoulli", "topk", "topk_weights" or "wta_crs", see
        :func:`lutcc.ir.sampling.select`.
    probabilities
        "optimal" or "uniform".
    seed
        Of the random modes: a number, a 0-dimensional int64 tensor, or None to draw it from torch's
        generator of the scores' device.
    groups
        Take k from each of so many equal parts of the scores.

    Returns
    -------
    tuple of torch.Tensor
        Indices (groups * S,) int32 and scales (groups * S,) float32; in each group first the pairs
        that are taken, ascending, then 0 with scale 0. S is k, for bernoulli P / groups.

    Raises
    ------
    InputError
        When an argument is out of range.

    Notes
    -----
    Source: Adelman et al., equations 1, 4, 15 and 16, and section 6.

    Examples
    --------
    >>> indices, scales = column_row_sample(torch.tensor([1.0, 5.0, 2.0]), 2)
    >>> indices.tolist(), scales.tolist()
    ([1, 2], [1.0, 1.0])
    """
    return torch.ops.lutcc.column_row_sample(
        scores, seed_tensor(seed, mode, scores), k, mode, probabilities, groups
    )


def seed_tensor(seed: int | torch.Tensor | None, mode: str, like: torch.Tensor) -> torch.Tensor:
    """Return a seed on the device of ``like``; nothing is drawn for modes that are not random."""
    if isinstance(seed, torch.Tensor):
        return seed
    if seed is None and mode in sampling.RANDOM_MODES:
        return torch.randint(0, 2**62, (), dtype=torch.int64, device=like.device)
    value = 0 if seed is None else int(seed)
    # 64 bits, as the tensor holds them
    value = (value + 2**63) % 2**64 - 2**63
    return torch.full((), value, dtype=torch.int64, device=like.device)


def _check(
    scores: torch.Tensor,
    seed: torch.Tensor,
    k: int,
    mode: str,
    probabilities: str = "optimal",
    groups: int = 1,
) -> None:
    check_dtype(_OP, "scores", scores, (torch.float32, torch.float64))
    require(
        scores.ndim == 1 and groups >= 1 and scores.shape[0] >= 1 and scores.shape[0] % groups == 0,
        _OP,
        f"scores {tuple(scores.shape)} are not one score per pair for groups={groups}",
        "pass the result of column_row_scores or channel_scores",
    )
    require(
        seed.dtype is torch.int64 and seed.ndim == 0 and seed.device == scores.device,
        _OP,
        f"seed must be a 0-dimensional int64 tensor on {scores.device}, got {seed.dtype} of shape "
        f"{tuple(seed.shape)} on {seed.device}",
        "torch.tensor(seed, device=scores.device)",
    )
    pairs = scores.shape[0] // groups
    require(
        1 <= k <= pairs,
        _OP,
        f"k={k} is not in 1..{pairs}, the number of pairs" + (" of a group" * (groups > 1)),
        "use lutcc.ir.sampling.sample_count",
    )
    for name, value, known in (
        ("mode", mode, sampling.MODES),
        ("probabilities", probabilities, sampling.PROBABILITIES),
    ):
        if value not in known:
            require(False, _OP, f"{name}={value!r} is unknown", suggest(value, known))
    require(
        probabilities == "optimal" or mode in ("crs", "bernoulli"),
        _OP,
        f"probabilities={probabilities!r} with mode={mode!r}, which goes by the scores",
        "use mode='crs' or 'bernoulli', or probabilities='optimal'",
    )


def _slots(scores: torch.Tensor, k: int, mode: str, groups: int) -> int:
    return groups * sampling.slots(mode, k, scores.shape[0] // groups)


def _fake(
    scores: torch.Tensor,
    seed: torch.Tensor,
    k: int,
    mode: str,
    probabilities: str = "optimal",
    groups: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    size = (_slots(scores, k, mode, groups),)
    return scores.new_empty(size, dtype=torch.int32), scores.new_empty(size, dtype=torch.float32)


def _cpu(
    scores: torch.Tensor,
    seed: torch.Tensor,
    k: int,
    mode: str,
    probabilities: str = "optimal",
    groups: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = scores.shape[0] // groups
    draws = sampling.slots(mode, k, pairs)
    whole_seed = int(seed) & 0xFFFFFFFFFFFFFFFF  # a negative number stands for its bits
    indices = np.empty((groups, draws), np.int32)
    scales = np.empty((groups, draws), np.float32)
    for group, part in enumerate(scores.detach().resolve_neg().numpy().reshape(groups, pairs)):
        sample = sampling.select(part, k, mode, probabilities, whole_seed, group * draws)
        # padding keeps index 0, of whatever group
        indices[group] = np.where(sample.scales > 0, sample.indices + group * pairs, 0)
        scales[group] = sample.scales
    return torch.from_numpy(indices.reshape(-1)), torch.from_numpy(scales.reshape(-1))


define(
    "column_row_sample(Tensor scores, Tensor seed, SymInt k, str mode, "
    'str probabilities="optimal", int groups=1) -> (Tensor, Tensor)',
    check=_check,
    cpu=_cpu,
    fake=_fake,
    cuda=True,
)
