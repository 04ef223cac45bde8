"""Codebooks and soft indices learnt together by gradients (JLCM, equations 5 to 9)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor

from lutcc.codebook_options import CodebookOptions
from lutcc.fit.codebook_regions import Regions
from lutcc.fit.output_error import Calibration
from lutcc.fit.proximal import assigned_codewords, soft_assign, softness

#: Logits held at a time; more are learnt in blocks of rows.
BLOCK_VALUES = 1 << 25
#: Logits start at minus this times the squared distance to a codeword, in gaps of the codebook: a
#: weight that sits on a codeword gives each neighbour 2% of the codeword's share.
INITIAL_SHARPNESS = 4.0
#: The schedule of beta: AdaRound's. No regularisation for a fifth of the steps, then a cosine.
WARM_UP, FIRST_BETA, LAST_BETA = 0.2, 20.0, 2.0
#: Rate of codebooks and scales over that of logits.
CODEBOOK_RATE = 0.05
MOMENTUM, SQUARE_MOMENTUM = 0.9, 0.99


@dataclass(slots=True)
class _PooledAdam:
    """Adam whose step sizes are shared along the first axis.

    A step size of each logit would undo what equation 8 is about: it makes the steps towards near
    and far codewords equal.
    """

    values: Tensor
    rate: float
    first: Tensor
    second: Tensor
    steps: int = 0

    @classmethod
    def of(cls, values: Tensor, rate: float) -> _PooledAdam:
        return cls(values, rate, torch.zeros_like(values), torch.zeros_like(values[:1]))

    def step(self, gradient: Tensor) -> None:
        self.steps += 1
        self.first.lerp_(gradient, 1 - MOMENTUM)
        square = gradient.square().mean(0, keepdim=True)
        self.second.lerp_(square, 1 - SQUARE_MOMENTUM)
        scale = (self.second / (1 - SQUARE_MOMENTUM**self.steps)).sqrt_().add_(1e-8)
        rate = self.rate / (1 - MOMENTUM**self.steps)
        self.values.sub_(self.first.div(scale), alpha=rate)


def beta_at(progress: float) -> float | None:
    """Return the exponent of the second regularisation; None while there is none.

    Examples
    --------
    >>> beta_at(0.1), beta_at(0.2), round(beta_at(1.0), 3)
    (None, 20.0, 2.0)
    """
    if progress < WARM_UP:
        return None
    cosine = math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))
    return LAST_BETA + 0.5 * (FIRST_BETA - LAST_BETA) * (1 + cosine)


def first_logits(exact: Tensor, tables: Tensor, assigned: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (L, ...) whose argmax is ``assigned``, and the codebooks' mean gaps (...).

    They fall with the squared distance of codewords from the weight; where its nearest codeword is
    not the one that is assigned, from that codeword.

    Parameters
    ----------
    exact
        (...) weights.
    tables
        (L, ...) codewords, broadcast.
    assigned
        (...) int64.
    """
    spread = tables.amax(0) - tables.amin(0)
    gap = (spread / (len(tables) - 1)).clamp_min(1e-12)
    codewords = tables.expand(len(tables), *assigned.shape)
    chosen = codewords.gather(0, assigned[None])
    logits = (codewords - exact).div_(gap).square_()
    away = (logits.gather(0, assigned[None]) > logits.amin(0))[0]
    logits = torch.where(away, ((codewords - chosen) / gap).square(), logits).mul_(
        -INITIAL_SHARPNESS
    )
    # equal codewords: the one that is assigned wins by a hair
    return logits.scatter_add_(0, assigned[None], torch.full_like(logits[:1], 1e-3)), gap


def learn_soft_assignments(
    data: Calibration,
    regions: Regions,
    indices: Tensor,
    codebooks: Tensor,
    scales: Tensor,
    options: CodebookOptions,
) -> tuple[Tensor, Tensor, Tensor, list[float]]:
    """Return indices, codebooks and scales after gradient steps, and the objective at each.

    Rows are independent but for shared codebooks, so they are learnt in blocks. Codebooks and
    scales of regions that do not fit a block stay as they are.

    Parameters
    ----------
    data
        What is minimised.
    regions, indices, codebooks, scales
        Where to start; (M, K) int64, (G, L) and (T,) float32.
    options
        ``learn`` ("codebook": indices stay as they are), ``proximal``, ``steps``, ``batch_size``,
        ``learning_rate``, ``sharpness`` (lambda of equation 6) and ``random_state``.
    """
    indices = indices.clone()
    random = check_random_state(options.random_state)
    # in units of the weights' spread, the options' defaults fit every layer
    spread = float(data.exact.std(correction=0).clamp_min(1e-12))
    codebooks, scales = codebooks / spread, scales.clone()
    curve = np.zeros(options.steps)
    for start, stop in _blocks(regions, data.exact.shape[1] * codebooks.shape[1]):
        part = slice(start, stop)
        block = _Block(data.rows(start, stop), regions.rows(start, stop), spread, options)
        learnt, codebooks, scales = block.learn(
            indices[part],
            codebooks,
            scales,
            (
                _owned(regions.books, part, len(codebooks)),
                _owned(regions.factors, part, len(scales)),
            ),
            random,
            curve,
        )
        indices[part] = learnt
    curve /= float(data.exact.square().sum().clamp_min(1e-30)) / spread**2
    return indices, codebooks * spread, scales, curve.tolist()


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Rows that are learnt at a time."""

    data: Calibration
    regions: Regions
    spread: float
    options: CodebookOptions

    def learn(
        self,
        indices: Tensor,
        codebooks: Tensor,
        scales: Tensor,
        owned: tuple[Tensor, Tensor],
        random: np.random.RandomState,
        curve: np.ndarray,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return indices, codebooks and scales; add the objective of each step to ``curve``."""
        options = self.options
        joint = options.learn == "joint"
        exact = self.data.exact / self.spread
        books, factors = codebooks.clone().requires_grad_(), scales.clone().requires_grad_()
        rate = options.learning_rate * CODEBOOK_RATE
        learners = [
            (books, owned[0][:, None], _PooledAdam.of(books.data[None], rate)),
            (factors, owned[1] * self.regions.scaled, _PooledAdam.of(factors.data[None], rate)),
        ]
        logits, gap = torch.zeros(1), torch.ones(1)
        if joint:
            logits, gap = first_logits(
                self._segmented(exact), self._planes(codebooks, scales), self._segmented(indices)
            )
            logits.requires_grad_()
            learners.append(
                (logits, torch.ones(1), _PooledAdam.of(logits.data, options.learning_rate))
            )
        for step in range(options.steps):
            roots, grads = [], []
            if joint:
                soft, shares = soft_assign(
                    logits, self._planes(books, factors), proximal=options.proximal, unit=gap
                )
                weights = self._flat(soft)
                beta = beta_at(step / max(options.steps - 1, 1))
                if beta is not None and options.sharpness:
                    hard = options.sharpness * softness(shares, beta)
                    roots, grads = [hard], [torch.ones_like(hard)]
                    curve[step] += float(hard.detach())
            else:
                weights = self.regions.dequantize(indices, books, factors)
            difference = (weights.detach() - exact) * self.spread
            value, gradient = self.data.loss(difference, random, options.batch_size)
            curve[step] += value / self.spread**2
            for leaf, _, _ in learners:
                leaf.grad = None
            torch.autograd.backward([weights, *roots], [gradient / self.spread, *grads])
            for leaf, mask, optimiser in learners:
                if leaf.grad is not None:
                    gradient = leaf.grad * mask
                    optimiser.step(gradient if leaf is logits else gradient[None])
        if joint:
            indices = self._flat(assigned_codewords(logits.detach()))
        return indices, books.detach(), factors.detach()

    def _planes(self, books: Tensor, factors: Tensor) -> Tensor:
        """Return codewords (L, rows, S, 1)."""
        return self.regions.tables(books, factors).movedim(2, 0)[..., None]

    def _flat(self, values: Tensor) -> Tensor:
        """Return (rows, K) of (rows, S, size): the last segment is filled up."""
        return values.flatten(1)[:, : self.data.exact.shape[1]]

    def _segmented(self, values: Tensor) -> Tensor:
        """Return (rows, S, size) of (rows, K)."""
        missing = self.regions.segments * self.regions.size - values.shape[1]
        filled = torch.nn.functional.pad(values, (0, missing))
        return filled.reshape(len(values), self.regions.segments, self.regions.size)


def _blocks(regions: Regions, row_values: int) -> Iterator[tuple[int, int]]:
    """Yield the rows of blocks; they end where a codebook's region does, where that is possible."""
    rows = len(regions.books)
    most = max(1, BLOCK_VALUES // row_values)
    last = regions.books[:, -1]
    ends = [m + 1 for m in range(rows) if m == rows - 1 or last[m] != last[m + 1]]
    start = 0
    while start < rows:
        within = [end for end in ends if start < end <= start + most]
        stop = within[-1] if within else min(start + most, rows)
        yield start, stop
        start = stop


def _owned(region: Tensor, part: slice, count: int) -> Tensor:
    """Return (count,) float: 1 for regions all of whose rows are in ``part``."""
    total = region.flatten().bincount(minlength=count)
    return (region[part].flatten().bincount(minlength=count) == total).float()
