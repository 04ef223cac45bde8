"""Codebooks and soft indices learnt together by gradients (JLCM, equations 5 to 9)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lutcc.fit.codebook_regions import Regions
from lutcc.fit.output_error import OutputError
from lutcc.fit.proximal import soft_assign

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


@dataclass(frozen=True, slots=True, eq=False)
class Batches:
    """Inputs and what is compared behind an activation.

    Attributes
    ----------
    X
        (N, K) inputs.
    base
        (N, M): X W^T + bias, before the activation.
    target
        (N, M): the exact outputs behind the activation.
    activation
        The activation, of tensors.
    unit
        The mean square of an input.
    """

    X: Tensor
    base: Tensor
    target: Tensor
    activation: Callable[[Tensor], Tensor]
    unit: float

    def error(self, difference: Tensor, rows: slice, picked: Tensor | slice) -> Tensor:
        """Return the mean error of weights W + ``difference`` (rows, K), of ``picked`` inputs."""
        outputs = self.base[picked][:, rows] + self.X[picked] @ difference.T
        missed = self.activation(outputs) - self.target[picked][:, rows]
        return missed.square().sum() / (len(missed) * self.unit)


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
        square = torch.linalg.vector_norm(gradient, dim=0, keepdim=True).square_()
        self.second.lerp_(square.div_(len(gradient)), 1 - SQUARE_MOMENTUM)
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
    error: OutputError,
    regions: Regions,
    indices: Tensor,
    codebooks: Tensor,
    scales: Tensor,
    *,
    batches: Batches | None,
    joint: bool,
    proximal: bool,
    steps: int,
    batch_size: int,
    rate: float,
    sharpness: float,
    random: np.random.RandomState,
) -> tuple[Tensor, Tensor, Tensor, list[float]]:
    """Return indices, codebooks and scales after ``steps`` steps, and the objective of each.

    Rows are independent but for shared codebooks, so they are learnt in blocks. Codebooks of
    regions that do not fit a block stay as they are.

    Parameters
    ----------
    error
        The quadratic error, used as it is where ``batches`` is None, and for its penalty.
    regions, indices, codebooks, scales
        Where to start; (M, K) int64, (G, L) and (T,) float32.
    joint
        Learn indices as well as codebooks and scales.
    proximal, steps, batch_size, rate, sharpness
        Of the options; ``sharpness`` is lambda of equation 6.
    """
    spread = float(error.exact.std().clamp_min(1e-12))
    indices, codebooks, scales = indices.clone(), codebooks.clone(), scales.clone()
    curve = np.zeros(steps)
    rows = len(error.exact)
    for start, stop in _blocks(regions, len(error.exact[0]) * codebooks.shape[1]):
        part = slice(start, stop)
        block = _Block(
            error.rows(start, stop), regions.rows(start, stop), part, batches, spread, joint
        )
        book_mask = _owned(regions.books, part, len(codebooks))
        factor_mask = _owned(regions.factors, part, len(scales)) * regions.scaled
        books = (codebooks / spread).requires_grad_()
        factors = scales.clone().requires_grad_()
        optimisers = [
            _PooledAdam.of(books.data[None], rate * CODEBOOK_RATE),
            _PooledAdam.of(factors.data[None], rate * CODEBOOK_RATE),
        ]
        logits, gap = block.start(indices[part], books.detach(), factors.detach())
        logit_optimiser = _PooledAdam.of(logits.data, rate)
        for step in range(steps):
            picked = (
                None
                if batches is None
                else torch.from_numpy(random.randint(len(batches.X), size=batch_size))
            )
            tables = block.regions.tables(books, factors)
            planes = tables.movedim(2, 0)[..., None]
            if joint:
                logits.grad = None
                weights, shares = soft_assign(logits, planes, proximal=proximal, unit=gap)
                weights = block.flat(weights)
            else:
                shares = None
                weights = block.regions.look_up(tables, indices[part])
            value, gradient = block.loss(weights.detach(), picked)
            roots, grads = [weights], [gradient]
            beta = beta_at(step / max(steps - 1, 1))
            if joint and shares is not None and beta is not None and sharpness:
                hard = sharpness * (1 - (2 * shares - 1).abs().pow(beta)).sum()
                value += float(hard.detach())
                roots.append(hard)
                grads.append(torch.ones_like(hard))
            books.grad = factors.grad = None
            torch.autograd.backward(roots, grads)
            curve[step] += value / error.exact.numel()
            if joint and logits.grad is not None:
                logit_optimiser.step(logits.grad)
            for optimiser, leaf, mask in zip(
                optimisers, (books, factors), (book_mask[:, None], factor_mask), strict=True
            ):
                if leaf.grad is not None and mask.any():
                    optimiser.step((leaf.grad * mask)[None])
        if joint:
            hard_indices = logits.detach().argmax(0)
            indices[part] = block.flat(hard_indices)
        codebooks, scales = books.detach() * spread, factors.detach()
    assert rows == len(indices)
    return indices, codebooks, scales, curve.tolist()


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Rows that are learnt at a time, in units of the weights' spread."""

    error: OutputError
    regions: Regions
    part: slice
    batches: Batches | None
    spread: float
    joint: bool

    def flat(self, values: Tensor) -> Tensor:
        """Return (rows, K) of (rows, S, size): the last segment is filled up."""
        return values.flatten(1)[:, : self.error.exact.shape[1]]

    def segmented(self, values: Tensor) -> Tensor:
        """Return (rows, S, size) of (rows, K)."""
        missing = self.regions.segments * self.regions.size - values.shape[1]
        filled = torch.nn.functional.pad(values, (0, missing))
        return filled.reshape(len(values), self.regions.segments, self.regions.size)

    def start(self, indices: Tensor, books: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (L, rows, S, size) and the gaps of codebooks (rows, S, 1)."""
        if not self.joint:
            return torch.empty(0), torch.empty(0)
        planes = self.regions.tables(books, factors).movedim(2, 0)[..., None]
        exact = self.segmented(self.error.exact / self.spread)
        logits, gap = first_logits(exact, planes, self.segmented(indices))
        return logits.requires_grad_(), gap

    def loss(self, weights: Tensor, picked: Tensor | None) -> tuple[float, Tensor]:
        """Return the error at ``weights`` (in spreads), and its gradient."""
        difference = weights - self.error.exact / self.spread
        if self.batches is None or picked is None:
            gradient = difference @ self.error.gram
            floor = float(self.error.floor.sum()) / self.spread**2
            if self.error.cross is None:
                return float((difference * gradient).sum()) + floor, 2 * gradient
            cross = self.error.cross / self.spread
            value = (difference * (gradient - 2 * cross)).sum()
            return float(value) + floor, 2 * (gradient - cross)
        difference.requires_grad_()
        value = self.batches.error(difference * self.spread, self.part, picked) / self.spread**2
        value = value + self.error.penalty * difference.square().sum()
        (gradient,) = torch.autograd.grad(value, [difference])
        return float(value.detach()), gradient


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
