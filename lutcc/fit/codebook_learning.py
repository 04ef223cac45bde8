"""Codebooks and indices learnt from data: JLCM, section 3.3 and 3.4."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lutcc.codebook_options import CodebookOptions
from lutcc.codebook_weights import CodebookWeights
from lutcc.fit.codebook_regions import Regions
from lutcc.fit.error_compensation import compensate, descend, refit_codebooks, refit_scales
from lutcc.fit.output_error import Calibration
from lutcc.fit.soft_assignments import learn_soft_assignments

#: Rounds of writing all columns anew, and at most so many sweeps of coordinate descent after them.
COMPENSATIONS, SWEEPS = 4, 8
#: At most so many times codebooks and scales are solved for in turn.
REFITS = 4
#: Sweeps end when one lowers the error by less than this share.
SMALLEST_GAIN = 0.003

State = tuple[Tensor, Tensor, Tensor]


class _Learner:
    """Indices, codebooks and scales that are learnt: the best so far by the error that counts."""

    def __init__(self, data: Calibration, regions: Regions) -> None:
        self.data, self.error, self.regions = data, data.quadratic, regions
        self.losses: list[float] = []
        self.best: State | None = None
        self.lowest = float("inf")
        self.size = float(data.exact.square().sum().clamp_min(1e-30))

    def offer(self, indices: Tensor, codebooks: Tensor, scales: Tensor) -> bool:
        """Keep these, as float16 has them, if they are better; say whether they are."""
        rounded = codebooks.half().float(), scales.half().float()
        weights = self.regions.dequantize(indices, *rounded)
        value = self.data.total(weights - self.data.exact) / self.size
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
        if options.learn == "joint" and options.assignment == "compensated":
            # gradients from here on ended above this error on every layer that was tried, behind
            # an activation too
            self.compensate()
            self.descend()
            return
        if options.learn == "codebook":
            self.refit()
        self.by_gradients(options)

    def by_gradients(self, options: CodebookOptions) -> None:
        """Take gradient steps, then solve for codebooks and scales."""
        if not options.steps:
            return
        if options.learn == "codebook" and self.data.behind is None:
            return  # least squares are where gradients would end
        *result, curve = learn_soft_assignments(self.data, self.regions, *self.current, options)
        self.losses += curve
        self.offer(*result)
        self.offer(*self.solved(*result))

    @property
    def current(self) -> State:
        """The best so far."""
        assert self.best is not None
        return self.best

    def solved(self, indices: Tensor, codebooks: Tensor, scales: Tensor) -> State:
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
    data = Calibration.of(weights, W, X, Y, bias, options.activation)
    learner = _Learner(data, Regions.of(weights))
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
