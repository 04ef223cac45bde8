"""The estimator: goals met as stored, errors it leaves, forms it takes, and what it refuses."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

from lutcc import ir
from lutcc.codebook_options import CLUSTERINGS, CodebookOptions
from lutcc.errors import InputError, NotFittedError
from lutcc.fit import WeightCodebooks


def weights(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Return rows that differ in spread, with a few large values."""
    random = np.random.default_rng(seed)
    spread = np.exp(random.normal(scale=0.6, size=(rows, 1)))
    matrix = 0.05 * spread * random.standard_t(6, size=(rows, columns))
    return matrix.astype(np.float32)


def fitted(matrix: np.ndarray, alpha: float, X: Any = None, **options: Any) -> WeightCodebooks:
    estimator = WeightCodebooks(alpha, learn="none", random_state=0, **options)
    return estimator.fit(matrix, X)


SHAPES = ((64, 96), (37, 253), (5, 1100), (1, 700))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("mode", ["codebooks", "scales"])
@pytest.mark.parametrize("outliers", [0.0, 0.01])
def test_goals_are_met(mode: str, outliers: float) -> None:
    for shape in SHAPES[1:3] if outliers else SHAPES:
        matrix = weights(*shape)
        for alpha, limit in ((2.5, 0.015), (3.7, 0.05), (5.0, 0.2)):
            found = fitted(matrix, alpha, mode=mode, outliers=outliers)
            assert alpha <= found.alpha_ == found.weights_.footprint().alpha
            missed = np.square(found.weights_.dequantize() - matrix, dtype=np.float64).sum()
            assert found.error_ == pytest.approx(missed / np.square(matrix).sum(), rel=1e-4)
            assert found.error_ < limit, (shape, alpha)


def test_codebooks_are_means_of_what_points_at_them() -> None:
    """Without an order or scales, the start is a fixed point of Lloyd's iteration."""
    matrix = weights(8, 400)
    found = fitted(matrix, 3.0, reorder="never").weights_
    assert found.order is None
    assert len(found.codebooks) > 8
    segment = matrix[3, : found.segment_size]
    book = found.codebooks[3 * len(found.codebooks) // 8]
    indices = found.unpacked()[3, : found.segment_size]
    nearest = np.abs(segment[:, None] - book.astype(np.float32)).argmin(axis=1)
    np.testing.assert_array_equal(indices, nearest)
    for value in np.unique(indices):
        assert segment[indices == value].mean() == pytest.approx(float(book[value]), rel=0.02)


def test_orders_pay_where_they_are_free() -> None:
    matrix = weights(192, 96)
    never, free, auto = (fitted(matrix, 7.6, reorder=r) for r in ("never", "free", "auto"))
    assert free.error_ < 0.97 * never.error_
    assert auto.error_ <= never.error_
    assert free.weights_.order is not None
    assert free.footprint_.order == 0
    assert free.weights_.footprint().order == 32 * 192
    assert never.weights_.order is None
    scaled = [fitted(matrix, 7.8, reorder=r, mode="scales").error_ for r in ("never", "free")]
    assert scaled[1] < 0.97 * scaled[0]


def test_an_order_that_is_counted_fits_the_goal() -> None:
    random = np.random.default_rng(1)
    kinds = np.array([0.02, 1.0])[random.integers(2, size=64)]
    matrix = kinds[:, None] * random.standard_normal((64, 1024))
    auto = fitted(matrix, 3.9, reorder="auto")
    assert auto.weights_.order is not None
    assert auto.footprint_.order == 32 * 64
    assert auto.alpha_ >= 3.9


def test_clusterings_rank_as_in_the_paper() -> None:
    matrix = weights(96, 256)
    errors = {c: fitted(matrix, 3.9, clustering=c, reorder="free").error_ for c in CLUSTERINGS}
    assert errors["hierarchical"] < 1.02 * errors["kmeans"]
    assert errors["kmeans"] < errors["graph"] < errors["random"]
    assert errors["hierarchical"] < errors["bisecting"]


def test_outliers_are_worth_their_bits_where_there_are_some() -> None:
    matrix = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
    matrix.ravel()[::200] *= 30
    plain, with_outliers = fitted(matrix, 3.6), fitted(matrix, 3.6, outliers=0.006)
    assert with_outliers.weights_.outliers is not None
    assert with_outliers.weights_.outliers.values.size == round(0.006 * matrix.size)
    assert with_outliers.error_ < 0.8 * plain.error_


def test_activations_weigh_the_error() -> None:
    random = np.random.default_rng(0)
    matrix = weights(48, 128)
    X = random.standard_normal((500, 128)) * np.where(np.arange(128) < 8, 20, 0.2)
    exact = X @ matrix.T
    for mode in ("codebooks", "scales"):
        plain, weighted = (
            np.square(fitted(matrix, 5, X, mode=mode, weighting=w).predict(X) - exact).sum()
            for w in ("none", "activations")
        )
        assert weighted < 0.9 * plain


@pytest.mark.parametrize("mode", ["codebooks", "scales"])
def test_ir_and_predict_agree(mode: str) -> None:
    matrix, bias = weights(40, 130), np.arange(40.0)
    X = np.random.default_rng(2).standard_normal((7, 130)).astype(np.float32)
    for outliers, reorder in ((0.0, "never"), (0.01, "free")):
        found = WeightCodebooks(
            5, mode=mode, learn="none", outliers=outliers, reorder=reorder, random_state=0
        ).fit(matrix, bias=bias)
        expected = X.astype(np.float64) @ found.weights_.dequantize().T + bias
        np.testing.assert_allclose(found.predict(X), expected, rtol=1e-6, atol=1e-6)
        (y,) = ir.interpret(found.to_ir(), [X])
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
        (coarse,) = ir.interpret(found.to_ir("int8"), [X])
        assert np.abs(coarse - expected).max() < 0.1 * np.abs(expected - bias).max()


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6])
def test_weights_beyond_float16(scale: float) -> None:
    matrix = weights(32, 128)
    for mode in ("codebooks", "scales"):
        found = fitted(matrix * np.float32(scale), 4.2, mode=mode)
        assert found.alpha_ >= 4.2
        if scale > 1e-10:
            assert found.error_ < 0.1


def test_degenerate_matrices() -> None:
    for matrix in (np.zeros((8, 64)), np.full((8, 64), -3.0), np.tile(np.arange(8), (8, 8))):
        for mode in ("codebooks", "scales"):
            found = fitted(matrix, 2.5, mode=mode)
            np.testing.assert_allclose(found.weights_.dequantize(), matrix, rtol=1e-3)


def test_learning_starts_here() -> None:
    matrix = weights(16, 64)
    X = np.random.default_rng(0).standard_normal((200, 64)) @ np.diag(np.linspace(0.1, 3, 64))
    start = fitted(matrix, 4.0, X)
    learnt = WeightCodebooks(4.0, steps=5, random_state=0).fit(matrix, X)
    exact = X @ matrix.T
    before, after = (np.square(e.predict(X) - exact).sum() for e in (start, learnt))
    assert after < before
    assert len(learnt.losses_) > 0 == len(start.losses_)
    assert learnt.alpha_ >= 4.0


def refused(matrix: Any, message: str, /, *data: Any, alpha: float = 4.0, **options: Any) -> None:
    with pytest.raises(InputError) as caught:
        WeightCodebooks(alpha, **options).fit(matrix, *data)
    assert str(caught.value).startswith(message), str(caught.value)


def test_refusals() -> None:
    good = weights(32, 64)
    bad = good.copy()
    bad[3, 5] = np.nan
    refused(bad, "W: row 3, column 5 is NaN; 1 of 2048 values is NaN or infinity")
    refused(good, "X: has 32 columns, but W has 64 columns", np.ones((3, 32)))
    refused(good, "Y: has 64 columns, but W has 32 rows", np.ones((3, 64)), np.ones((3, 64)))
    refused(
        good, "WeightCodebooks.fit: Y has 2 rows, but X has 3", np.ones((3, 64)), np.ones((2, 32))
    )
    refused(good, "bias: the bias has shape (3,)", None, None, np.ones(3))
    refused(good, "WeightCodebooks.fit: weighting='activations' has no", weighting="activations")
    refused(good, "WeightCodebooks: alpha=9 is out of reach for 32 x 64 weights", alpha=9.0)
    refused(good, "WeightCodebooks: alpha=-1.0 is not a number above 0", alpha=-1.0)
    refused(good, "WeightCodebooks: mode='codebook' is not one of", mode="codebook")
    refused(good, "WeightCodebooks: outliers=0.5 is above 0.05", outliers=0.5)
    refused(np.ones((2, 2)), "WeightCodebooks: alpha=4 is out of reach for 2 x 2 weights")


def test_conventions() -> None:
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(WeightCodebooks).parameters.items()
        if name != "alpha"
    }
    fields = {f.name: f.default for f in dataclasses.fields(CodebookOptions) if f.name != "alpha"}
    assert defaults == fields
    estimator = WeightCodebooks(3.9, learn="none", random_state=1)
    for method in (estimator.predict, lambda _: estimator.to_ir()):
        with pytest.raises(NotFittedError, match="call fit"):
            method(np.ones((1, 4)))
    matrix = weights(32, 64)
    first, again = clone(estimator).fit(matrix), pickle.loads(pickle.dumps(estimator)).fit(matrix)
    np.testing.assert_array_equal(first.weights_.indices, again.weights_.indices)
    with pytest.raises(InputError, match="X has 5 features"):
        first.predict(np.ones((1, 5)))
