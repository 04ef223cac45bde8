"""The estimator of weight codebooks: a trained matrix as short indices into codebooks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, validate_data

from lutcc.codebook_options import CodebookOptions
from lutcc.codebook_weights import CodebookWeights, Footprint
from lutcc.errors import InputError
from lutcc.fit.codebook_outliers import (
    largest_residuals,
    outlier_bits,
    outlier_count,
    outliers_of,
)
from lutcc.fit.codebook_plan import CodebookPlan, plan_codebooks
from lutcc.fit.inputs import as_weights, not_finite, to_float32
from lutcc.fit.maddness import EstimatorNotFittedError
from lutcc.fit.neuron_clustering import order_neurons
from lutcc.fit.region_codebooks import RegionCodebooks, fit_regions

if TYPE_CHECKING:
    from lutcc import ir

#: Rounds in which codebooks and outliers are fitted in turn.
_OUTLIER_ROUNDS = 2
_ORDER_BITS = 32
#: Magnitudes that float16 holds with full precision, with room for what learning changes.
_SMALLEST, _LARGEST = 2.0**-7, 2.0**14


class WeightCodebooks(BaseEstimator):
    """Write a trained weight matrix with 2- to 4-bit indices into codebooks.

    Parameters
    ----------
    alpha, mode, clustering, learn, proximal, assignment, outliers, reorder, activation
        See :class:`lutcc.codebook_options.CodebookOptions`.
    weighting, steps, batch_size, learning_rate, sharpness, random_state
        See there.

    Attributes
    ----------
    weights_
        The :class:`lutcc.codebook_weights.CodebookWeights`.
    bias_
        (M,) float32.
    footprint_
        Bits as stored. Without those of the order where ``reorder="free"``.
    alpha_
        The compression that is reached.
    error_
        |W - weights|^2 / |W|^2.
    losses_
        The learning curve; empty where nothing was learnt.
    note_
        How the goal was met, if not in the expected way; else None.
    options_
        The parameters of the last fit.

    Raises
    ------
    InputError
        If an option, a shape or a value does not fit, or the goal is out of reach.

    Notes
    -----
    Source: Yvinec et al., JLCM, section 3.2, and algorithm 1, lines 2 to 4.

    Examples
    --------
    >>> W = np.random.default_rng(0).normal(size=(128, 64))
    >>> fitted = WeightCodebooks(5, learn="none").fit(W)
    >>> fitted.weights_.bits, round(fitted.alpha_, 2)
    (3, 5.02)
    """

    def __init__(
        self,
        alpha: float = 5.33,
        *,
        mode: str = "codebooks",
        clustering: str = "hierarchical",
        learn: str = "joint",
        proximal: bool = True,
        assignment: str = "compensated",
        outliers: float = 0.0,
        reorder: str = "auto",
        activation: str | None = None,
        weighting: str = "none",
        steps: int = 150,
        batch_size: int = 256,
        learning_rate: float = 0.05,
        sharpness: float = 1.0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.alpha = alpha
        self.mode = mode
        self.clustering = clustering
        self.learn = learn
        self.proximal = proximal
        self.assignment = assignment
        self.outliers = outliers
        self.reorder = reorder
        self.activation = activation
        self.weighting = weighting
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.sharpness = sharpness
        self.random_state = random_state

    def fit(self, W: Any, X: Any = None, Y: Any = None, bias: Any = None) -> Self:
        """Compress W (M, K), the layout of ``torch.nn.Linear.weight``.

        Parameters
        ----------
        W
            (M, K) weights.
        X
            (N, K) inputs that the layer sees, of the compressed model so far if its earlier layers
            are compressed; None: nothing is learnt (the data-free start alone).
        Y
            (N, M) outputs that it should give, before the activation; None: X W^T + bias.
        bias
            (M,).

        Raises
        ------
        InputError
            If a value is NaN or infinite, shapes disagree, or W cannot be compressed so far.

        Examples
        --------
        >>> W, X = np.eye(64) + 1, np.ones((8, 64))
        >>> WeightCodebooks(4, learn="none").fit(W, X).predict(X).shape
        (8, 64)
        """
        options = CodebookOptions(**self.get_params(deep=False))
        exact = self._checked(W, reset=True)
        rows, columns = exact.shape
        inputs = None if X is None else _matrix(X, "X", columns, "columns")
        targets = None if Y is None else _matrix(Y, "Y", rows, "rows")
        shift = as_weights(None, bias, rows)[1].astype(np.float32)
        _check_together(options, inputs, targets)
        random = check_random_state(self.random_state)
        energy = None
        if options.weighting == "activations" and inputs is not None:
            energy = column_energy(inputs)
        weights, note = _first_weights(exact, options, energy, random)
        self.losses_ = np.zeros(0)
        if options.learn != "none" and inputs is not None:
            from lutcc.fit.codebook_learning import learn

            weights, losses = learn(weights, exact, inputs, targets, shift, options)
            self.losses_ = np.asarray(losses)
        self.weights_, self.bias_, self.note_ = weights, shift, note
        self.options_ = self.get_params(deep=False)
        self.footprint_ = _without_order(weights.footprint(), options)
        self.alpha_ = self.footprint_.alpha
        size = float(np.square(exact, dtype=np.float64).sum())
        missed = float(np.square(exact - weights.dequantize(), dtype=np.float64).sum())
        self.error_ = missed / size if size > 0 else 0.0
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return X W^T + bias (N, M) float32 with the compressed weights, before the activation.

        Raises
        ------
        InputError, EstimatorNotFittedError
            If X does not fit W, or before ``fit``.

        Examples
        --------
        >>> WeightCodebooks(4, learn="none").fit(np.ones((64, 64))).predict(np.ones((2, 64)))[0, :2]
        array([64., 64.], dtype=float32)
        """
        self._check_fitted("predict")
        rows = self._checked(X, reset=False).astype(np.float64)
        return (rows @ self.weights_.dequantize().T + self.bias_).astype(np.float32)

    def to_ir(self, compute: str = "float32") -> ir.Module:
        """Return the IR module ``main(x: (n, K) float32) -> (n, M) float32``, n symbolic.

        Parameters
        ----------
        compute
            "float32", "bfloat16" or "int8": the arithmetic of ``codebook_matmul``.

        Raises
        ------
        EstimatorNotFittedError
            Before ``fit``.

        Examples
        --------
        >>> module = WeightCodebooks(4, learn="none").fit(np.ones((64, 64))).to_ir()
        >>> [op.opcode for op in module.main.body if op.opcode != "constant"]
        ['codebook_matmul']
        """
        self._check_fitted("to_ir")
        from lutcc.fit.lowering import codebook_module

        return codebook_module(self.weights_, self.bias_, compute)

    def _check_fitted(self, method: str) -> None:
        if not hasattr(self, "weights_"):
            raise EstimatorNotFittedError(
                "this estimator has no weights yet",
                where=f"WeightCodebooks.{method}",
                fix="call fit(W) first",
            )

    def _checked(self, array: Any, *, reset: bool) -> np.ndarray:
        """Return W or X as float32 after scikit-learn's checks."""
        name = "W" if reset else "X"
        try:
            checked = validate_data(self, array, reset=reset, dtype=[np.float32, np.float64])
        except ValueError as error:
            raise _bad_matrix(array, name, error) from error
        return to_float32(checked, name)


def column_energy(inputs: np.ndarray) -> np.ndarray:
    """Return (K,) float64: the mean square of each column of inputs (N, K), at least a little.

    Examples
    --------
    >>> column_energy(np.array([[1.0, 0.0], [3.0, 0.0]])).round(3).tolist()
    [5.002, 0.002]
    """
    energy = np.square(inputs, dtype=np.float64).mean(axis=0)
    floor = 1e-3 * energy.mean()  # columns that are 0 in these inputs may not be in others
    return energy + floor if floor > 0 else np.ones_like(energy)


def _first_weights(
    exact: np.ndarray,
    options: CodebookOptions,
    energy: np.ndarray | None,
    random: np.random.RandomState,
) -> tuple[CodebookWeights, str | None]:
    """Return the weights that learning starts from, and a note."""
    rows, columns = exact.shape
    unit = _unit(exact)
    count = outlier_count(options.outliers, rows, columns)
    extra = outlier_bits(count, rows) + (16 if unit != 1 else 0)
    plan = plan_codebooks(options.alpha, rows, columns, options.mode, outlier_bits=extra)
    best = None
    for ordered, candidate in _candidates(plan, exact.shape, options, extra):
        order = None
        if ordered:
            order = order_neurons(exact, candidate.regions, options.clustering, random)
        weights, error = _compress(exact, candidate, order, options, unit, count, energy, random)
        if best is None or error < best[0]:
            best = error, weights, candidate.note
    assert best is not None
    return best[1], best[2]


def _candidates(
    plan: CodebookPlan, shape: tuple[int, int], options: CodebookOptions, extra: int
) -> list[tuple[bool, CodebookPlan]]:
    """Return which plans to try, and whether with rows in an order of their own."""
    rows, columns = shape
    if options.reorder == "never" or not 1 < plan.regions < rows:
        return [(False, plan)]
    if options.reorder == "free":
        return [(True, plan)]
    try:
        smaller = plan_codebooks(
            options.alpha,
            rows,
            columns,
            options.mode,
            order_bits=_ORDER_BITS * rows,
            outlier_bits=extra,
        )
    except InputError:
        return [(False, plan)]
    worth = smaller.bits == plan.bits and smaller.regions > 1
    return [(False, plan), (True, smaller)] if worth else [(False, plan)]


def _compress(
    exact: np.ndarray,
    plan: CodebookPlan,
    order: np.ndarray | None,
    options: CodebookOptions,
    unit: float,
    count: int,
    energy: np.ndarray | None,
    random: np.random.RandomState,
) -> tuple[CodebookWeights, float]:
    """Return the weights of a plan, and their squared error."""
    stored = exact if order is None else exact[order]

    def fit(target: np.ndarray) -> RegionCodebooks:
        return fit_regions(
            target, plan, options.clustering, unit=unit, column_weights=energy, random=random
        )

    target, outliers = stored, None
    if count:
        target = _without_largest(stored, largest_residuals(stored, count, energy))
    fitted = fit(target)
    for _ in range(_OUTLIER_ROUNDS if count else 0):
        # What the outliers add is taken off what the codebooks have to give, and so on in turn.
        positions = largest_residuals(stored - fitted.approximation, count, energy)
        target = stored.copy()
        target.ravel()[positions] = fitted.approximation.ravel()[positions]
        fitted = fit(target)
    missed = stored - fitted.approximation
    if count:
        of_outputs = missed
        if order is not None:
            of_outputs = np.empty_like(missed)
            of_outputs[order] = missed
        outliers = outliers_of(of_outputs, largest_residuals(of_outputs, count, energy))
        missed = of_outputs - outliers.dense(missed.shape[1])
    weights = CodebookWeights.of(
        fitted.indices,
        fitted.codebooks,
        bits=plan.bits,
        scales=fitted.scales,
        segment_size=plan.segment_size,
        order=order,
        outliers=outliers,
    )
    squares = np.square(missed, dtype=np.float64).sum(axis=0)
    return weights, float(squares.sum() if energy is None else squares @ energy)


def _without_largest(stored: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return a copy in which what is at flat ``positions`` is no larger than the smallest there."""
    target = stored.copy()
    limit = np.abs(stored.ravel()[positions]).min()
    target.ravel()[positions] = np.clip(stored.ravel()[positions], -limit, limit)
    return target


def _unit(exact: np.ndarray) -> float:
    """Return 1, or the power of two that brings weights into float16's range."""
    largest = float(np.abs(exact).max())
    if largest == 0 or _SMALLEST <= largest <= _LARGEST:
        return 1.0
    return 2.0 ** float(np.clip(np.floor(np.log2(largest)), -24, 15))


def _without_order(footprint: Footprint, options: CodebookOptions) -> Footprint:
    return replace(footprint, order=0) if options.reorder == "free" else footprint


def _check_together(
    options: CodebookOptions, inputs: np.ndarray | None, targets: np.ndarray | None
) -> None:
    """Check that what was passed is enough for the options."""
    if inputs is None:
        missing = "Y has no inputs X" if targets is not None else None
        if options.weighting == "activations":
            missing = "weighting='activations' has no inputs X"
        if missing:
            raise InputError(
                missing, where="WeightCodebooks.fit", fix="pass X, the rows that the layer sees"
            )
    elif targets is not None and len(targets) != len(inputs):
        raise InputError(
            f"Y has {len(targets)} rows, but X has {len(inputs)}",
            where="WeightCodebooks.fit",
            fix="pass the outputs of the rows of X",
        )


def _matrix(array: Any, name: str, columns: int, why: str) -> np.ndarray:
    """Return a finite float32 matrix of so many columns."""
    try:
        checked = check_array(array, dtype=[np.float32, np.float64], input_name=name)
    except ValueError as error:
        raise _bad_matrix(array, name, error) from error
    if checked.shape[1] != columns:
        raise InputError(
            f"has {checked.shape[1]} columns, but W has {columns} {why}",
            where=name,
            fix="W is (outputs, inputs), as torch.nn.Linear.weight",
        )
    return to_float32(checked, name)


def _bad_matrix(array: Any, name: str, error: ValueError) -> InputError:
    return InputError(
        not_finite(array) or str(error),
        where=name,
        fix="pass finite real numbers of shape (rows, columns)",
    )
