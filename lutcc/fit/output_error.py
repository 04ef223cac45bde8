"""The error of a layer's outputs as a quadratic form of its weights.

Without an activation, and with X the inputs and R = Y - b - X W^T what is missed already, the mean
squared error of weights W + E is ``tr(E G E^T) - 2 tr(E C^T) + |R|^2 / N`` with G = X^T X / N and
C = R^T X / N: once these are there, nothing depends on the number of inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

#: Weight of the first regularisation of equation 6, |W~ - W|^2, in units of the mean square of an
#: input: what is left of a direction that the calibration data hardly has.
WEIGHT_PENALTY = 0.01
#: Inputs that are multiplied at a time.
ROW_BLOCK = 4096


@dataclass(frozen=True, slots=True, eq=False)
class OutputError:
    """Equation 6 without its last term, of weights ``exact + E``; in units of an input's square.

    Attributes
    ----------
    exact
        (M, K) float32: the weights W.
    gram
        (K, K): G with the weight penalty on its diagonal.
    cross
        (M, K): C, or None where the outputs are those of W.
    floor
        (M,): the error at E = 0 without the penalty.
    unit
        The mean square of an input, that the others are divided by.
    penalty
        What is added to the diagonal of G.
    """

    exact: Tensor
    gram: Tensor
    cross: Tensor | None
    floor: Tensor
    unit: float
    penalty: float

    @classmethod
    def of(
        cls,
        exact: Tensor,
        X: Tensor,
        missed: Tensor | None = None,
        penalty: float = WEIGHT_PENALTY,
    ) -> Self:
        """Return the error of weights that stand for ``exact`` (M, K), of inputs ``X`` (N, K).

        ``missed`` (N, M) is R: what the outputs lack at ``exact``; None: nothing.

        Examples
        --------
        >>> error = OutputError.of(torch.ones(1, 2), torch.eye(2), penalty=0.0)
        >>> error.gram.tolist(), error.of_rows(torch.zeros(1, 2)).tolist()
        ([[1.0, 0.0], [0.0, 1.0]], [2.0])
        """
        gram = torch.zeros(X.shape[1], X.shape[1])
        cross = None if missed is None else torch.zeros_like(exact)
        for start in range(0, len(X), ROW_BLOCK):
            block = X[start : start + ROW_BLOCK]
            gram.addmm_(block.T, block)
            if missed is not None and cross is not None:
                cross.addmm_(missed[start : start + ROW_BLOCK].T, block)
        total = float(gram.diagonal().mean().clamp_min(1e-30))
        gram /= total
        gram.diagonal().add_(penalty)
        floor = torch.zeros(len(exact))
        if missed is not None and cross is not None:
            floor, cross = missed.square().sum(0) / total, cross / total
        return cls(exact, gram, cross, floor, total / len(X), penalty)

    def half_gradient(self, weights: Tensor) -> Tensor:
        """Return half the gradient (M, K) of the error at ``weights`` (M, K)."""
        gradient = (weights - self.exact) @ self.gram
        return gradient if self.cross is None else gradient - self.cross

    def of_rows(self, weights: Tensor) -> Tensor:
        """Return the error (M,) of each output of ``weights`` (M, K)."""
        difference = weights - self.exact
        inner = difference @ self.gram
        if self.cross is not None:
            inner -= 2 * self.cross
        return (difference * inner).sum(1) + self.floor

    def rows(self, start: int, stop: int) -> OutputError:
        """Return the error of the outputs ``start`` .. ``stop``."""
        cross = None if self.cross is None else self.cross[start:stop]
        return replace(
            self,
            exact=self.exact[start:stop],
            cross=cross,
            floor=self.floor[start:stop],
        )
