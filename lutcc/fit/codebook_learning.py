"""Codebooks and indices learnt from data: JLCM, section 3.3 and 3.4."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils import check_random_state
from torch import Tensor
from torch.nn import functional as F

from lutcc.codebook_options import CodebookOptions
from lutcc.codebook_weights import CodebookWeights
from lutcc.fit.codebook_regions import Regions
from lutcc.fit.error_compensation import compensate, descend, refit_codebooks, refit_scales
from lutcc.fit.output_error import OutputError
from lutcc.fit.soft_assignments import Batches, learn_soft_assignments

#: Rounds of writing all columns anew, and at most so many sweeps of coordinate descent after them.
COMPENSATIONS, SWEEPS = 4, 8
#: At most so many times codebooks and scales are solved for in turn.
REFITS = 4
#: Sweeps end when one lowers the error by less than this share.
SMALLEST_GAIN = 0.003

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


class _Learner:
    """Weights that are learnt, with the best so far by the error that counts."""

    def __init__(self, error: OutputError, regions: Regions, batches: Batches | None) -> None:
        self.error, self.regions, self.batches = error, regions, batches
        self.losses: list[float] = []
        self.best: tuple[Tensor, Tensor, Tensor] | None = None
        self.lowest = float("inf")

    def objective(self, indices: Tensor, codebooks: Tensor, scales: Tensor) -> float:
        """Return equation 6 without its last term, of hard indices, over the weights' square."""
        weights = self.regions.dequantize(indices, codebooks, scales)
        return self._value(weights) / float(self.error.exact.square().sum().clamp_min(1e-30))

    def _value(self, weights: Tensor) -> float:
        if self.batches is None:
            return float(self.error.of_rows(weights).sum())
        difference = weights - self.error.exact
        total = self.error.penalty * float(difference.square().sum())
        count = len(self.batches.X)
        for start in range(0, count, 1024):
            picked = slice(start, min(start + 1024, count))
            value = self.batches.error(difference, slice(None), picked)
            total += float(value) * (picked.stop - start) / count
        return total

    def offer(self, indices: Tensor, codebooks: Tensor, scales: Tensor) -> bool:
        """Keep these, as float16 has them, if they are better; say whether they are."""
        rounded = codebooks.half().float(), scales.half().float()
        value = self.objective(indices, *rounded)
        self.losses.append(value)
        if not value < self.lowest:
            return False
        self.lowest, self.best = value, (indices, *rounded)
        return True

    def run(self, weights: CodebookWeights, options: CodebookOptions) -> None:
        """Learn from ``weights`` on."""
        self.offer(
            torch.from_numpy(weights.unpacked().astype(np.int64)),
            torch.from_numpy(weights.codebooks.astype(np.float32)),
            torch.from_numpy(weights.scales.astype(np.float32)),
        )
        joint = options.learn == "joint"
        if joint and options.assignment == "compensated":
            self.compensate()
            self.descend()
        elif not joint:
            self.refit()
        self.by_gradients(options)
        if joint and options.assignment == "compensated":
            self.descend()

    def by_gradients(self, options: CodebookOptions) -> None:
        """Take gradient steps, then solve for codebooks and scales."""
        *result, curve = learn_soft_assignments(
            self.error,
            self.regions,
            *self.current,
            batches=self.batches,
            joint=options.learn == "joint",
            proximal=options.proximal,
            steps=options.steps,
            batch_size=options.batch_size,
            rate=options.learning_rate,
            sharpness=options.sharpness,
            random=check_random_state(options.random_state),
        )
        self.losses += curve
        self.offer(*result)
        self.offer(*self.solved(*result))

    @property
    def current(self) -> tuple[Tensor, Tensor, Tensor]:
        """The best so far."""
        assert self.best is not None
        return self.best

    def solved(
        self, indices: Tensor, codebooks: Tensor, scales: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the same indices with codebooks and scales solved for."""
        codebooks = refit_codebooks(self.error, self.regions, indices, codebooks, scales)
        return (
            indices,
            codebooks,
            refit_scales(self.error, self.regions, indices, codebooks, scales),
        )

    def refit(self) -> None:
        """Solve for codebooks and scales until that hardly helps."""
        self._repeat(REFITS, lambda indices, tables: indices)

    def compensate(self) -> None:
        """Write the columns anew a few times."""
        self._repeat(
            COMPENSATIONS, lambda indices, tables: compensate(self.error, self.regions, tables)
        )

    def descend(self) -> None:
        """Improve one weight at a time until that hardly helps."""
        self._repeat(
            SWEEPS, lambda indices, tables: descend(self.error, self.regions, tables, indices)
        )

    def _repeat(self, times: int, assign: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Assign and solve in turn, as long as that helps."""
        for _ in range(times):
            before = self.lowest
            indices, codebooks, scales = self.current
            indices = assign(indices, self.regions.tables(codebooks, scales))
            self.offer(*self.solved(indices, codebooks, scales))
            if not self.lowest < before * (1 - SMALLEST_GAIN):
                return


def learn(
    weights: CodebookWeights,
    W: npt.NDArray[np.float32],
    X: npt.NDArray[np.float32],
    Y: npt.NDArray[np.float32] | None,
    bias: npt.NDArray[np.float32] | None,
    options: CodebookOptions,
) -> tuple[CodebookWeights, list[float]]:
    """Return ``weights`` with codebooks, scales and indices learnt, and the learning curve.

    Parameters
    ----------
    weights
        Where to start: the data-free initialisation of W.
    W
        (M, K) the exact weights.
    X
        (N, K) inputs of the layer, as the compressed model has them.
    Y
        (N, M) exact outputs before the activation; None: ``X @ W.T + bias``.
    bias
        (M,) or None.
    options
        ``learn``, ``proximal``, ``assignment``, ``activation``, ``steps``, ``batch_size``,
        ``learning_rate``, ``sharpness``, ``random_state``.

    Returns
    -------
    tuple
        The weights, and the objective (equation 6) in units of the error of weights that are all
        zero and inputs that are white.

    Notes
    -----
    Source: JLCM, equations 5 to 9. Indices that stay the same or get worse are not taken.
    """
    order = np.arange(len(W)) if weights.order is None else weights.order
    full = torch.from_numpy(np.asarray(W, np.float32)[order])
    exact = full
    if weights.outliers is not None:
        exact = full - torch.from_numpy(weights.outliers.dense(W.shape[1])[order])
    inputs = torch.from_numpy(np.ascontiguousarray(X, np.float32))
    shift = torch.zeros(len(W)) if bias is None else torch.from_numpy(np.float32(bias)[order])
    outputs = missed = batches = None
    if Y is not None:
        outputs = torch.from_numpy(np.asarray(Y, np.float32)[:, order])
        missed = (outputs - shift).addmm_(inputs, full.T, alpha=-1)
    error = OutputError.of(exact, inputs, missed)
    if options.activation is not None:
        base = torch.addmm(shift, inputs, full.T)
        activation = ACTIVATIONS[options.activation]
        target = activation(base if outputs is None else outputs)
        batches = Batches(inputs, base, target, activation, error.unit)
    learner = _Learner(error, Regions.of(weights), batches)
    learner.run(weights, options)
    indices, codebooks, scales = learner.current
    learnt = CodebookWeights.of(
        indices.numpy(),
        codebooks.numpy(),
        bits=weights.bits,
        scales=scales.numpy(),
        segment_size=weights.segment_size,
        order=weights.order,
        outliers=weights.outliers,
    )
    return learnt, learner.losses
