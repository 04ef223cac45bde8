"""The MADDNESS estimator: approximates A @ B by look-ups."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError as SklearnNotFittedError
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data
from threadpoolctl import threadpool_limits

from lutcc.errors import InputError, NotFittedError
from lutcc.fit import lookup
from lutcc.fit.inputs import (
    as_rows,
    as_weights,
    code_frequencies,
    exact_product,
    not_finite,
    to_float32,
)
from lutcc.fit.nearest import fit_nearest
from lutcc.fit.options import check_maddness_options
from lutcc.fit.partition import partition_of
from lutcc.fit.partition_choice import choose_partition
from lutcc.fit.prototypes import bucket_means, ridge_correction
from lutcc.fit.table_learning import Objective, learn_tables
from lutcc.fit.tables import stored_tables
from lutcc.fit.tree import fit_trees

if TYPE_CHECKING:
    from lutcc import ir

_ENCODER_ATTRIBUTES = (
    "splitdims_",
    "splitvals_",
    "centroids_",
    "half_norms_",
    "columns_",
    "starts_",
)
#: Options that codes depend on.
_OF_CODES = (
    "ncodebooks",
    "nprototypes",
    "encoder",
    "partition",
    "hash_objective",
    "split_candidates",
    "kmeans_rows",
    "random_state",
)


_Given: TypeAlias = tuple[np.ndarray, np.ndarray | None, np.ndarray, np.ndarray]


class EstimatorNotFittedError(NotFittedError, SklearnNotFittedError):
    """An estimator is used before ``fit``; code that knows only scikit-learn can catch it too."""


class Maddness(BaseEstimator):
    """Approximate the product ``A @ B + bias`` by look-ups in tables.

    Each row of A is cut into ``ncodebooks`` runs of columns; each run is encoded as one of
    ``nprototypes`` codes; the product is the sum of one table entry per codebook. Nothing is
    multiplied at run time but one scale per output.

    Parameters
    ----------
    ncodebooks
        C, the number of codebooks (table look-ups per output), at most the number of columns D.
    nprototypes
        K, codes per codebook: 2, 4, ... 128 for the tree; 2..256 for ``encoder="nearest"``.
    encoder
        "tree": balanced regression trees, log2(K) comparisons per code. "nearest": the nearest
        k-means centroid.
    partition
        "contiguous": neighbouring columns, lengths that differ by at most one. "r2": columns that
        are correlated, by hierarchical clustering, cut into shares of like standard deviation;
        "opq": an order of columns that is close to the rotation of OPQ. Either costs nothing at run
        time. ITLUMM, section 2.1. "auto": the one of these whose product, behind what
        ``lut_activation`` names, errs least on held-out rows; it is then fitted on all rows.
    prototypes
        "ridge": ITLUMM eq. 2, jointly over all codebooks. "kmeans": the mean of each bucket in its
        own subspace.
    lut_objective
        "ridge": the tables are T = P B. "mse", "kld": they are learnt from there, by the squared
        error behind ``lut_activation``, or the divergence of a softmax's rows: ITLUMM, eq. 3. Its
        lambda starts at that of eq. 2, scaled, and is searched by the same on held-out rows.
    lut_activation
        What follows the product, for ``lut_objective``: None, "relu", "gelu", "gelu_tanh", "silu",
        "tanh", "sigmoid", "softmax". It is not applied. "mse" with None is "ridge".
    activation
        None or "relu": applied to the product.
    lut_dtype
        "uint8" (an offset per codebook and column and a scale per column, see
        :func:`lutcc.fit.tables.quantize_tables`) or "float32".
    accumulate
        "exact" integer sums, or "mean": rounding averages over groups, see
        :func:`lutcc.fit.tables.averaging_bias`.
    upcast_every
        U, the group size of "mean": a power of two in 2..256.
    hash_objective
        "product": each tree groups rows whose share of the *product* is alike, (A - G P) B in its
        own columns, which is what ITLUMM section 4 suggests trying. "input": rows that are alike
        themselves, as MADDNESS does. Trees only.
    ridge_lambda
        lambda of eq. 2 and 3; "auto" takes those with the smallest held-out errors.
    split_candidates
        How many columns each level of a tree tries: those that explain most within the buckets.
    kmeans_rows
        ``encoder="nearest"``: k-means sees at most this many rows, drawn at random.
    random_state
        Seed for k-means and for the rows held out.

    Attributes
    ----------
    splitdims_, splitvals_
        Tree: (C, L) int32 columns of A; (C, K) float32 thresholds in heap order.
    centroids_, half_norms_, columns_, starts_
        Nearest: (K, D) float32; (C, K) float32; (D,) int32; C + 1 ints.
    prototypes_
        (C, K, D) float32.
    partition_used_
        The partition, which "auto" has chosen.
    lut_, scale_, offset_
        (C, K, M) uint8 or float32; (M,) float32; (M,) float32. The product is ``scale_ * sum +
        offset_``; the bias, the table offsets and the averaging bias are folded into ``offset_``.
        Float tables carry the bias in codebook 0, so that their scale is 1 and their offset 0.
    acc_bound_
        Proven bound of the integer sums (exact: below 2**24); 0 for float tables.
    ridge_lambda_
        The lambda used (None with ``prototypes="kmeans"``).
    options_
        The parameters of the last fit; changing a parameter has no effect before the next.

    Raises
    ------
    InputError
        If an option, a shape or a value does not fit; NaN and infinity are refused.

    Notes
    -----
    float64 input is rounded to float32 first, which is what the kernels compare. Source: Blalock &
    Guttag, "Multiplying Matrices Without Multiplying"; ITLUMM, sections 1 and 2 and eq. 2.

    Examples
    --------
    >>> A, B = np.random.default_rng(0).normal(size=(1000, 64)), np.eye(64, 10)
    >>> Maddness(ncodebooks=16, random_state=0).fit(A, B).predict(A).shape
    (1000, 10)
    """

    def __init__(
        self,
        ncodebooks: int = 16,
        nprototypes: int = 16,
        encoder: str = "tree",
        partition: str = "contiguous",
        prototypes: str = "ridge",
        lut_objective: str = "ridge",
        lut_activation: str | None = None,
        activation: str | None = None,
        lut_dtype: str = "uint8",
        accumulate: str = "exact",
        upcast_every: int = 16,
        hash_objective: str = "product",
        ridge_lambda: float | str = "auto",
        split_candidates: int = 4,
        kmeans_rows: int = 16384,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.ncodebooks = ncodebooks
        self.nprototypes = nprototypes
        self.encoder = encoder
        self.partition = partition
        self.prototypes = prototypes
        self.lut_objective = lut_objective
        self.lut_activation = lut_activation
        self.activation = activation
        self.lut_dtype = lut_dtype
        self.accumulate = accumulate
        self.upcast_every = upcast_every
        self.hash_objective = hash_objective
        self.ridge_lambda = ridge_lambda
        self.split_candidates = split_candidates
        self.kmeans_rows = kmeans_rows
        self.random_state = random_state

    def fit(self, A: Any, B: Any = None, bias: Any = None, *, exact: Any = None) -> Self:
        """Learn codes from the rows of A (N, D) and tables for B (D, M) and bias (M,).

        B=None stands for the identity: rows are reconstructed. ``exact`` (N, D), where rows of A
        come through look-ups before, is what they would be without: codes are those of A, but what
        prototypes and tables give back is ``exact``, times B. None: A itself.

        Raises
        ------
        InputError
            If shapes disagree, C exceeds D, or a value is NaN or infinite.

        Examples
        --------
        >>> A = np.random.default_rng(0).normal(size=(500, 8))
        >>> Maddness(ncodebooks=4).fit(A).lut_.shape  # B=None: reconstruct A
        (4, 16, 8)
        """
        # Many small factorisations: BLAS threads that spin for each other would only slow them.
        with threadpool_limits(limits=1, user_api="blas"):
            given = self._given("fit", A, B, bias, exact, reset=True)
            random = check_random_state(self.random_state)
            codes = self._fit_codes(*given, random)
            self._drawn = random.get_state()
            self._fit_tables(*given[1:], codes, random)
        return self

    def fit_tables(self, A: Any, B: Any = None, bias: Any = None, *, exact: Any = None) -> Self:
        """Learn prototypes and tables anew, as the options now say, for the codes that there are.

        With the rows and products of the last ``fit``, the result is what ``fit`` would give with
        these options, to the bit, without growing trees again: for several objectives in turn. A
        partition that "auto" took stays.

        Parameters
        ----------
        A, B, bias, exact
            As for :meth:`fit`.

        Raises
        ------
        InputError
            If shapes disagree, a value is NaN or infinite, or an option that codes depend on has
            changed since.
        EstimatorNotFittedError
            Before ``fit``.

        Examples
        --------
        >>> A, B = np.random.default_rng(0).normal(size=(500, 8)), np.eye(8, 3)
        >>> plain = Maddness(4, random_state=0).fit(A, B)
        >>> dims = plain.splitdims_
        >>> learnt = plain.set_params(lut_objective="mse", lut_activation="relu").fit_tables(A, B)
        >>> learnt.splitdims_ is dims
        True
        """
        self._check_fitted("fit_tables")
        changed = [n for n in _OF_CODES if self.options_[n] != getattr(self, n)]
        if changed:
            raise InputError(
                f"codes depend on {', '.join(changed)}, which changed since they were fitted",
                where="Maddness.fit_tables",
                fix="call fit, or set what it was",
            )
        with threadpool_limits(limits=1, user_api="blas"):
            given = self._given("fit_tables", A, B, bias, exact, reset=False)
            random = np.random.RandomState()
            random.set_state(self._drawn)
            self._fit_tables(*given[1:], self._codes(given[0]), random)
        return self

    def _given(self, method: str, A: Any, B: Any, bias: Any, exact: Any, *, reset: bool) -> _Given:
        """Return rows, B or None, the bias, and the rows to be given back, all checked."""
        check_maddness_options(**self.get_params(deep=False))
        X = self._rows(A, reset=reset)
        ncolumns = X.shape[1]
        if self.ncodebooks > ncolumns:
            raise InputError(
                f"ncodebooks={self.ncodebooks} exceeds the {ncolumns} feature(s) of A: "
                "each codebook needs a column",
                where=f"Maddness.{method}",
                fix=f"use ncodebooks <= {ncolumns}",
            )
        weights, shift = as_weights(B, bias, ncolumns)
        wanted = X if exact is None else as_rows(exact, X.shape)
        return X, weights, shift, wanted

    def _fit_codes(
        self,
        X: np.ndarray,
        weights: np.ndarray | None,
        shift: np.ndarray,
        wanted: np.ndarray,
        random: np.random.RandomState,
    ) -> np.ndarray:
        """Fit the partition and the encoder; return the codes (N, C) of the rows."""
        # A fit before this one may have used the other encoder, and its tables are of other codes.
        for name in (*_ENCODER_ATTRIBUTES, "lut_"):
            self.__dict__.pop(name, None)
        self.partition_used_ = self.partition
        if self.partition == "auto":  # its draws are its own: the fit is that of the one it takes
            self.partition_used_ = choose_partition(
                self, X, weights, shift, wanted, copy.deepcopy(random)
            )
        self._parts = partition_of(
            self.partition_used_, X, self.ncodebooks, self.nprototypes, random
        )
        if self.encoder == "nearest":
            found = fit_nearest(X, self._parts, self.nprototypes, self.kmeans_rows, random)
            self.centroids_, self.half_norms_, self.columns_, self.starts_ = found
            return self._codes(X)
        depth = self.nprototypes.bit_length() - 1
        aware = weights if self.hash_objective == "product" else None
        self.splitdims_, self.splitvals_, leaves = fit_trees(
            X, self._parts, depth, self.split_candidates, aware
        )
        return leaves

    def _fit_tables(
        self,
        weights: np.ndarray | None,
        shift: np.ndarray,
        wanted: np.ndarray,
        codes: np.ndarray,
        random: np.random.RandomState,
    ) -> None:
        """Fit prototypes and tables to the codes (N, C) of the rows."""
        parts, tree = self._parts, self.encoder == "tree"
        base = bucket_means(wanted, codes, parts, self.nprototypes, tree=tree)
        prototypes = np.zeros((self.ncodebooks, self.nprototypes, wanted.shape[1]))
        for c, columns in enumerate(parts):
            prototypes[c][:, columns] = base[:, columns]
        anchor = prototypes.copy() if weights is None else prototypes @ weights
        self.ridge_lambda_: float | None = None
        if self.prototypes == "ridge":
            chosen = None if self.ridge_lambda == "auto" else float(self.ridge_lambda)
            self.ridge_lambda_, correction = ridge_correction(
                wanted, codes, base, parts, weights, chosen, random
            )
            prototypes += correction.reshape(prototypes.shape)
        tables = prototypes if weights is None else prototypes @ weights
        if self.lut_objective != "ridge" and self.lut_activation is not None:
            tables = self._learnt(wanted, codes, weights, shift, anchor, random)
        self.prototypes_ = prototypes.astype(np.float32)
        group = self.upcast_every if self.accumulate == "mean" else 1
        self.lut_, self.scale_, self.offset_, self.acc_bound_ = stored_tables(
            tables, shift, code_frequencies(codes, self.nprototypes), self.lut_dtype, group
        )
        self.options_ = self.get_params(deep=False)

    def _learnt(
        self,
        X: np.ndarray,
        codes: np.ndarray,
        weights: np.ndarray | None,
        shift: np.ndarray,
        anchor: np.ndarray,
        random: np.random.RandomState,
    ) -> np.ndarray:
        """Return the tables of eq. 3."""
        exact = exact_product(X, weights, shift)
        given = self.ridge_lambda_ if self.ridge_lambda == "auto" else float(self.ridge_lambda)
        return learn_tables(
            anchor,
            codes,
            exact.astype(np.float32),
            shift,
            Objective(self.lut_objective, self.lut_activation),
            1.0 if given is None else given,
            random,
            scaled=self.ridge_lambda == "auto",
        )

    def encode(self, A: Any) -> np.ndarray:
        """Return the codes (N, C) uint8 of the rows of A (N, D).

        Raises
        ------
        InputError, EstimatorNotFittedError
            If A does not fit the training data, or before ``fit``.

        Examples
        --------
        >>> A = np.random.default_rng(0).normal(size=(500, 8))
        >>> Maddness(ncodebooks=4).fit(A).encode(A).shape
        (500, 4)
        """
        self._check_fitted("encode")
        return self._codes(self._rows(A, reset=False))

    def _codes(self, X: np.ndarray) -> np.ndarray:
        """Return the codes of checked rows."""
        if hasattr(self, "splitdims_"):
            return lookup.tree_encode(X, self.splitdims_, self.splitvals_)
        return lookup.nearest_encode(
            X, self.centroids_, self.half_norms_, self.columns_, self.starts_
        )

    def predict(self, A: Any) -> np.ndarray:
        """Return the approximate products (N, M) float32 of A (N, D).

        They are bit for bit what the kernels compute.

        Raises
        ------
        InputError, EstimatorNotFittedError
            If A does not fit the training data, or before ``fit``.

        Examples
        --------
        >>> A = np.random.default_rng(0).normal(size=(500, 8))
        >>> Maddness(ncodebooks=4).fit(A, np.ones((8, 3))).predict(A).shape
        (500, 3)
        """
        codes, options = self.encode(A), self.options_
        sums = lookup.lut_accumulate(
            codes, self.lut_, options["accumulate"], options["upcast_every"]
        )
        return lookup.lut_dequantize(sums, self.scale_, self.offset_, options["activation"])

    def score(self, A: Any, B: Any = None, bias: Any = None) -> float:
        """Return R^2: 1 - |error|^2 / |deviation of exact products from their column means|^2.

        Parameters
        ----------
        A
            (N, D) rows.
        B, bias
            What was passed to ``fit``: the exact products are ``activation(A @ B + bias)``.

        Examples
        --------
        >>> A = np.random.default_rng(0).normal(size=(500, 8))
        >>> Maddness(ncodebooks=8).fit(A).score(A) > 0.95
        True
        """
        products = self.predict(A).astype(np.float64)
        X = self._rows(A, reset=False).astype(np.float64)
        weights, shift = as_weights(B, bias, X.shape[1])
        exact = exact_product(X, weights, shift)
        if exact.shape != products.shape:
            raise InputError(
                f"B has {exact.shape[1]} columns, but the fitted tables have {products.shape[1]}",
                where="Maddness.score",
                fix="pass the B and bias that were passed to fit",
            )
        if self.options_["activation"] == "relu":
            exact = np.maximum(exact, 0)
        error = np.square(products - exact).sum()
        deviation = np.square(exact - exact.mean(axis=0)).sum()
        return float(1.0 - error / deviation) if deviation > 0 else float(error == 0.0)

    def to_ir(self) -> ir.Module:
        """Return the IR module ``main(x: (n, D) float32) -> (n, M) float32``, n symbolic.

        Raises
        ------
        EstimatorNotFittedError
            Before ``fit``.

        Examples
        --------
        >>> A = np.random.default_rng(0).normal(size=(500, 8))
        >>> module = Maddness(ncodebooks=4).fit(A).to_ir()
        >>> [op.opcode for op in module.main.body if op.opcode != "constant"]
        ['tree_encode', 'lut_accumulate', 'lut_dequantize']
        """
        self._check_fitted("to_ir")
        from lutcc.fit.lowering import maddness_module

        return maddness_module(self)

    def _check_fitted(self, method: str) -> None:
        if not hasattr(self, "lut_"):
            raise EstimatorNotFittedError(
                "this estimator has no tables yet",
                where=f"Maddness.{method}",
                fix="call fit(A, B) first",
            )

    def _rows(self, A: Any, *, reset: bool) -> np.ndarray:
        """Return A as (N, D) float32 after scikit-learn's checks."""
        try:
            X = validate_data(self, A, reset=reset, dtype=[np.float32, np.float64])
        except ValueError as error:
            raise InputError(
                not_finite(A) or str(error),
                where="A",
                fix="pass finite real numbers of shape (rows, columns)",
            ) from error
        return to_float32(X, "A")
