"""Tables learnt from what a layer gives behind its activation: ITLUMM, equation 3.

    argmin_T  E(sigma(A B + b), sigma(G T + b)) + lambda ||T - P0 B||^2

G (N, C*K) are the one-hot codes, sigma the activation. E is the squared error, or, behind softmax,
the Kullback-Leibler divergence of the rows, which is convex in T. Without an activation the squared
error has the closed solution that equation 2 gives, times B.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.sparse import csr_array
from torch import Tensor, nn

from lutcc.fit.output_error import ACTIVATIONS
from lutcc.fit.prototypes import NormalEquations

#: Rows that tables are learnt from, at most.
ROWS = 16384
#: One in so many rows is held out, in turn, until so many have been.
PARTS, HELD_OUT = 5, 1000
#: Steps of L-BFGS at most; those without a gain of this much on held-out rows end the search.
STEPS, PATIENCE, LEAST_GAIN = 200, 6, 1e-3
#: Where lambda may be chosen, it is multiplied with powers of this, from -FARTHEST to FARTHEST.
LAMBDA_STEP, FARTHEST = 4.0, 6
#: Below so many rows none are held out, and this many steps are made.
FEW_ROWS, FEW_STEPS = 50, 20

SOFTMAX = "softmax"

Rows: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Codes (N, C) and outputs (N, M)."""


@dataclass(frozen=True)
class Objective:
    """The error of a layer's outputs, before lambda comes in.

    Attributes
    ----------
    name
        "mse" or "kld".
    activation
        A name of :data:`lutcc.fit.output_error.ACTIVATIONS`, "softmax", or None.
    """

    name: str
    activation: str | None

    def wanted(self, exact: Tensor) -> Tensor:
        """Return what ``exact`` (N, M), before the activation, asks of outputs: for all steps."""
        return torch.log_softmax(exact, 1) if self.name == "kld" else self._sigma()(exact)

    def __call__(self, outputs: Tensor, wanted: Tensor) -> Tensor:
        """Return the error, summed over rows, of ``outputs`` (N, M) before the activation."""
        if self.name == "kld":
            found = torch.log_softmax(outputs, 1)
            return nn.functional.kl_div(found, wanted, reduction="sum", log_target=True)
        return (self._sigma()(outputs) - wanted).square().sum()

    def _sigma(self) -> Callable[[Tensor], Tensor]:
        if self.activation == SOFTMAX:
            return lambda z: torch.softmax(z, 1)
        return ACTIVATIONS[self.activation] if self.activation else lambda z: z

    def curvature(self, exact: Tensor) -> float:
        """Return how much an output's error weighs on average, beside that of ``|G T - A B|^2``."""
        if self.name == "kld" or self.activation == SOFTMAX:
            p = torch.softmax(exact, 1)
            slope = p * (1 - p)
            found = slope / 2 if self.name == "kld" else slope.square()
        else:
            leaf = exact.detach().requires_grad_()
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(self._sigma()(leaf).sum(), [leaf])
            found = slope.square()
        return float(found.mean())


def learn_tables(
    anchor: np.ndarray,
    codes: np.ndarray,
    exact: np.ndarray,
    shift: np.ndarray,
    objective: Objective,
    ridge_lambda: float,
    random: np.random.RandomState,
    *,
    scaled: bool,
) -> np.ndarray:
    """Return tables (C, K, M) float64 that minimise equation 3.

    Parameters
    ----------
    anchor
        (C, K, M): P0 B.
    codes, exact
        (N, C) uint8 codes of rows of A, and (N, M) float32: A B + b.
    shift
        (M,): b.
    objective
        E and sigma.
    ridge_lambda
        lambda. ``scaled``: it was chosen for the plain squared error, and is multiplied with the
        mean curvature of E, so that it weighs as much beside it. From there on lambda is searched
        in factors of :data:`LAMBDA_STEP`, as long as the error E of the held-out rows falls.
    random
        Draws rows.

    Notes
    -----
    L-BFGS from the solution of equation 2, times B. One fifth of the rows is held out, of that
    solution too, and of few rows each fifth in turn (:data:`HELD_OUT`); when its error has not
    fallen for some steps, the search ends. As many steps as were best, by the errors of all that
    was held out, are made again with all rows, with the lambda that was best.
    """
    if len(codes) > ROWS:
        kept = np.sort(random.choice(len(codes), ROWS, replace=False))
        codes, exact = codes[kept], exact[kept]
    behind = ridge_lambda
    if scaled:
        behind *= objective.curvature(torch.from_numpy(exact))
    problem = _Problem(anchor, shift, objective, ridge_lambda, behind)
    steps = FEW_STEPS
    if len(codes) >= FEW_ROWS:
        folds = problem.folds((codes, exact), random)
        problem, steps = problem.best(folds) if scaled else (problem, problem.held_out(folds)[1])
    return problem.minimised((codes, exact), steps)


def held_out_rows(
    nrows: int, random: np.random.RandomState
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Hold out each fifth of the rows in turn, until :data:`HELD_OUT` rows have been.

    Yields the numbers of the rows that are kept, ascending, and of those held out.

    Examples
    --------
    >>> [(len(k), len(h)) for k, h in held_out_rows(10_000, np.random.RandomState(0))]
    [(8000, 2000)]
    """
    parts = np.array_split(random.permutation(nrows), PARTS)
    for number, held in enumerate(parts):
        if number * len(held) >= HELD_OUT:
            return
        yield np.sort(np.concatenate(parts[:number] + parts[number + 1 :])), held


@dataclass(frozen=True)
class _Fold:
    """Rows that are learnt from, where that starts, and G and the aim of those that are not."""

    rows: Rows
    start: np.ndarray
    onehot: csr_array
    wanted: Tensor


@dataclass(frozen=True)
class _Problem:
    """Equation 3 without rows; ``behind`` is lambda beside E, ``ridge_lambda`` in equation 2."""

    anchor: np.ndarray
    shift: np.ndarray
    objective: Objective
    ridge_lambda: float
    behind: float

    def folds(self, rows: Rows, random: np.random.RandomState) -> list[_Fold]:
        """Hold out rows, several times if they are few."""
        codes, exact = rows
        found: list[_Fold] = []
        for kept, held in held_out_rows(len(codes), random):
            learnt = codes[kept], exact[kept]
            wanted = self.objective.wanted(torch.from_numpy(exact[held]))
            found.append(_Fold(learnt, self.closed(learnt), self._onehot(codes[held]), wanted))
        return found

    def best(self, folds: list[_Fold]) -> tuple[_Problem, int]:
        """Return the problem with the lambda, and the steps, that err least on held-out rows."""
        found: dict[int, tuple[float, int]] = {}

        def times(power: int) -> _Problem:
            return replace(self, behind=self.behind * LAMBDA_STEP**power)

        def error(power: int) -> float:
            if power not in found:
                found[power] = times(power).held_out(folds)
            return found[power][0]

        power = 0
        step = 1 if error(1) < error(0) else -1
        while abs(power + step) <= FARTHEST and error(power + step) < error(power):
            power += step
        return times(power), found[power][1]

    def held_out(self, folds: list[_Fold]) -> tuple[float, int]:
        """Return the least error of all held-out rows together, and after how many steps."""
        total = np.zeros(STEPS + 1)
        for fold in folds:
            found = self._watched(fold)
            total += np.pad(found, (0, len(total) - len(found)), mode="edge")
        return float(total.min()), int(np.argmin(total))

    def _watched(self, fold: _Fold) -> np.ndarray:
        """Return the errors of a fold's held-out rows after each step, until they fall no more."""
        losses: list[float] = []

        def watch(tables: np.ndarray) -> None:
            outputs = self._outputs(tables.reshape(self.anchor.shape), fold.onehot)
            losses.append(float(self.objective(outputs, fold.wanted)))
            recent = losses[-PATIENCE - 1 :]
            if len(recent) > PATIENCE and min(recent[1:]) > recent[0] * (1 - LEAST_GAIN):
                raise StopIteration

        watch(fold.start)
        self._descend(fold.start, fold.rows, STEPS, watch)
        return np.array(losses[: STEPS + 1])

    def closed(self, rows: Rows) -> np.ndarray:
        """Return the solution of equation 2, times B."""
        codes, exact = rows
        flat = self.anchor.reshape(-1, self.anchor.shape[2])
        onehot = self._onehot(codes)
        cross = onehot.T @ (exact - self.shift - onehot @ flat)
        equations = NormalEquations((onehot.T @ onehot).toarray(), cross)
        return (flat + equations.solve(self.ridge_lambda)).reshape(self.anchor.shape)

    def minimised(self, rows: Rows, steps: int) -> np.ndarray:
        """Return the tables after so many steps of L-BFGS."""
        return self._descend(self.closed(rows), rows, steps)

    def _descend(
        self,
        start: np.ndarray,
        rows: Rows,
        steps: int,
        watch: Callable[[np.ndarray], None] | None = None,
    ) -> np.ndarray:
        """Return the tables after so many steps from ``start``; ``watch`` sees each."""
        if not steps:
            return start
        onehot = self._onehot(rows[0])
        transposed = onehot.T.tocsr()
        wanted = self.objective.wanted(torch.from_numpy(rows[1]))

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            tables = flat.reshape(start.shape)
            value, slope = self._error(self._outputs(tables, onehot), wanted)
            gradient = (transposed @ slope).reshape(tables.shape)
            away = tables - self.anchor
            value += self.behind * float(np.square(away).sum())
            return value, (gradient + 2 * self.behind * away).ravel()

        options = {"maxiter": steps, "maxcor": 10}
        found = minimize(
            loss, start.ravel(), jac=True, method="L-BFGS-B", callback=watch, options=options
        )
        return found.x.reshape(start.shape)

    def _onehot(self, codes: np.ndarray) -> csr_array:
        """Return G (N, C*K)."""
        rows, ncodebooks = codes.shape
        nprototypes = self.anchor.shape[1]
        columns = codes + np.arange(ncodebooks, dtype=np.int32) * nprototypes
        ends = np.arange(0, rows * ncodebooks + 1, ncodebooks)
        ones = np.ones(rows * ncodebooks, np.float32)
        return csr_array((ones, columns.ravel(), ends), (rows, ncodebooks * nprototypes))

    def _outputs(self, tables: np.ndarray, onehot: csr_array) -> Tensor:
        """Return G T + b (N, M) float32."""
        flat = tables.reshape(-1, tables.shape[2]).astype(np.float32)
        return torch.from_numpy(onehot @ flat + self.shift.astype(np.float32))

    def _error(self, outputs: Tensor, wanted: Tensor) -> tuple[float, np.ndarray]:
        """Return E and its gradient at the outputs (N, M)."""
        outputs.requires_grad_()
        with torch.enable_grad():  # whoever converts a model may have switched it off
            value = self.objective(outputs, wanted)
            (gradient,) = torch.autograd.grad(value, [outputs])
        return float(value.detach()), gradient.numpy()
