"""The error of a layer's outputs as a function of its weights.

Without an activation, and with X the inputs and R = Y - b - X W^T what is missed already, the mean
squared error of weights W + E is ``tr(E G E^T) - 2 tr(E C^T) + |R|^2 / N`` with G = X^T X / N and
C = R^T X / N: once these are there, nothing depends on the number of inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from lutcc.codebook_weights import CodebookWeights

#: Weight of the first regularisation of equation 6, |W~ - W|^2, in units of the mean square of an
#: input: what is left of a direction that the calibration data hardly has.
WEIGHT_PENALTY = 0.01
#: Inputs that are multiplied at a time.
ROW_BLOCK = 4096

F32Array = npt.NDArray[np.float32]

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def input_importance(outputs: Tensor) -> Tensor:
    """Return (N,) weights of inputs, of mean 1: less for those with large ``outputs`` (N, M).

    ``1 / (|y|^2 + median |y|^2)``. In equation 5 all are equal. But a transformer gives a few
    tokens outputs that are some hundred times larger than the others'; they then decide alone, the
    error of all other tokens multiplies (from 5% to 250% in a layer of all-MiniLM-L6-v2), and the
    normalisation that follows hides what is gained.

    Examples
    --------
    >>> [round(w, 2) for w in input_importance(torch.tensor([[1.0], [1.0], [3.0]])).tolist()]
    [1.36, 1.36, 0.27]
    """
    size = outputs.square().sum(1)
    floor = size.median()
    if not floor > 0:
        return torch.ones_like(size)
    importance = (floor + size).reciprocal()
    return importance.div_(importance.mean())


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
        >>> error.gram.tolist(), error.loss(-torch.ones(1, 2))[0]
        ([[1.0, 0.0], [0.0, 1.0]], 2.0)
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

    def loss(self, difference: Tensor) -> tuple[float, Tensor]:
        """Return the error of ``exact + difference`` (M, K), and its gradient."""
        gradient = difference @ self.gram
        if self.cross is None:
            return float((difference * gradient).sum()), gradient.mul_(2)
        value = (difference * (gradient - 2 * self.cross)).sum() + self.floor.sum()
        return float(value), gradient.sub_(self.cross).mul_(2)

    def half_gradient(self, weights: Tensor) -> Tensor:
        """Return half the gradient (M, K) of the error at ``weights`` (M, K)."""
        gradient = (weights - self.exact) @ self.gram
        return gradient if self.cross is None else gradient - self.cross

    def rows(self, start: int, stop: int) -> OutputError:
        """Return the error of the outputs ``start`` .. ``stop``."""
        cross = None if self.cross is None else self.cross[start:stop]
        return replace(
            self,
            exact=self.exact[start:stop],
            cross=cross,
            floor=self.floor[start:stop],
        )


@dataclass(frozen=True, slots=True, eq=False)
class ActivationError:
    """The mean squared error behind an activation, in units of an input's square.

    Attributes
    ----------
    X
        (N, K) inputs.
    base
        (N, M): outputs of the exact weights, before the activation.
    target
        (N, M): the outputs that are asked for, behind the activation.
    activation
        The activation, of tensors.
    importance
        (N,) weights of the inputs.
    unit
        The mean square of an input.
    """

    X: Tensor
    base: Tensor
    target: Tensor
    activation: Callable[[Tensor], Tensor]
    importance: Tensor
    unit: float

    def of(self, difference: Tensor, picked: Tensor | slice) -> Tensor:
        """Return the error of weights ``exact + difference`` (M, K) in the ``picked`` inputs."""
        outputs = torch.addmm(self.base[picked], self.X[picked], difference.T)
        missed = self.activation(outputs) - self.target[picked]
        return missed.square().sum(1) @ self.importance[picked] / (len(missed) * self.unit)

    def mean(self, difference: Tensor) -> float:
        """Return the error in all inputs."""
        total, count = 0.0, len(self.X)
        for start in range(0, count, ROW_BLOCK):
            picked = slice(start, min(start + ROW_BLOCK, count))
            total += float(self.of(difference, picked)) * (picked.stop - start) / count
        return total

    def rows(self, start: int, stop: int) -> ActivationError:
        """Return the error of the outputs ``start`` .. ``stop``."""
        base, target = self.base[:, start:stop], self.target[:, start:stop]
        return replace(self, base=base, target=target)


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What weights are learnt from: equation 6 without its last term.

    Attributes
    ----------
    quadratic
        The error before the activation, all that counts where there is none.
    behind
        The error behind the activation, or None.
    """

    quadratic: OutputError
    behind: ActivationError | None

    @classmethod
    def of(
        cls,
        weights: CodebookWeights,
        W: F32Array,
        X: F32Array,
        Y: F32Array | None,
        bias: F32Array | None,
        activation: str | None,
        penalty: float = WEIGHT_PENALTY,
    ) -> Self:
        """Return it for stored rows of ``weights``; arguments as in ``codebook_learning.learn``."""
        order = np.arange(len(W)) if weights.order is None else weights.order
        full = exact = torch.from_numpy(np.asarray(W, np.float32)[order])
        if weights.outliers is not None:
            exact = full - torch.from_numpy(weights.outliers.dense(W.shape[1])[order])
        inputs = torch.from_numpy(np.ascontiguousarray(X, np.float32))
        shift = torch.zeros(len(W))
        if bias is not None:
            shift = torch.from_numpy(np.asarray(bias, np.float32)[order])
        base = torch.addmm(shift, inputs, full.T)
        outputs = base if Y is None else torch.from_numpy(np.asarray(Y, np.float32)[:, order])
        importance = input_importance(outputs - shift)
        root = importance.sqrt()[:, None]
        missed = None if Y is None else (outputs - base) * root
        error = OutputError.of(exact, inputs * root, missed, penalty)
        if activation is None:
            return cls(error, None)
        function = ACTIVATIONS[activation]
        target = function(outputs)
        return cls(error, ActivationError(inputs, base, target, function, importance, error.unit))

    @property
    def exact(self) -> Tensor:
        """(M, K) the weights that are stood for, in stored order, without outliers."""
        return self.quadratic.exact

    def total(self, difference: Tensor) -> float:
        """Return the error of weights ``exact + difference`` (M, K) in all inputs."""
        if self.behind is None:
            return self.quadratic.loss(difference)[0]
        penalty = self.quadratic.penalty * float(difference.square().sum())
        return self.behind.mean(difference) + penalty

    def loss(
        self, difference: Tensor, random: np.random.RandomState, batch_size: int
    ) -> tuple[float, Tensor]:
        """Return the error and its gradient: in all inputs, or behind an activation in a batch."""
        if self.behind is None:
            return self.quadratic.loss(difference)
        picked = torch.from_numpy(random.randint(len(self.behind.X), size=batch_size))
        leaf = difference.detach().requires_grad_()
        value = self.behind.of(leaf, picked) + self.quadratic.penalty * leaf.square().sum()
        (gradient,) = torch.autograd.grad(value, [leaf])
        return float(value.detach()), gradient

    def rows(self, start: int, stop: int) -> Calibration:
        """Return what the outputs ``start`` .. ``stop`` are learnt from."""
        behind = None if self.behind is None else self.behind.rows(start, stop)
        return Calibration(self.quadratic.rows(start, stop), behind)
