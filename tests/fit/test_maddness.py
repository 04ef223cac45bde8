"""The estimator: shapes, options, refusals, degenerate data, and bit-equality with the
interpreter."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from lutcc import ir
from lutcc.errors import InputError, LutccError, NotFittedError
from lutcc.fit import Maddness


def correlated(nrows: int, ncolumns: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    rank = max(1, ncolumns // 3)
    mixed = random.normal(size=(nrows, rank)) @ random.normal(size=(rank, ncolumns))
    return (mixed + 0.3 * random.normal(size=(nrows, ncolumns))).astype(np.float32)


def weights(ncolumns: int, noutputs: int) -> np.ndarray:
    return np.random.default_rng(9).normal(size=(ncolumns, noutputs)) / np.sqrt(ncolumns)


CONFIGS: list[dict[str, Any]] = [
    {},
    {"nprototypes": 2},
    {"nprototypes": 32},
    {"nprototypes": 64},
    {"nprototypes": 128},
    {"prototypes": "kmeans"},
    {"hash_objective": "input"},
    {"lut_dtype": "float32"},
    {"lut_dtype": "float32", "activation": "relu"},
    {"activation": "relu"},
    {"accumulate": "mean", "upcast_every": 4},
    {"accumulate": "mean", "upcast_every": 64},
    {"encoder": "nearest"},
    {"encoder": "nearest", "nprototypes": 11, "prototypes": "kmeans"},
    {"encoder": "nearest", "nprototypes": 40, "lut_dtype": "float32"},
    {"ridge_lambda": 1.0},
    {"partition": "opq"},
    {"partition": "r2", "encoder": "nearest"},
    {"lut_objective": "mse", "lut_activation": "relu"},
    {"lut_objective": "kld", "lut_activation": "softmax", "partition": "r2"},
]


@pytest.mark.parametrize("options", CONFIGS, ids=str)
def test_predict_is_bit_for_bit_the_interpreter(options: dict[str, Any]) -> None:
    A = correlated(400, 13)
    estimator = Maddness(5, random_state=0, **options).fit(A, weights(13, 7), np.arange(7.0))
    module = estimator.to_ir()
    fresh = correlated(63, 13, seed=1)
    (expected,) = ir.interpret(module, [fresh])
    np.testing.assert_array_equal(estimator.predict(fresh), expected)
    assert estimator.predict(fresh).dtype == np.float32
    assert ir.parse(ir.to_text(module)) == module


@pytest.mark.parametrize("options", CONFIGS[1:], ids=str)
def test_every_option_approximates_the_product(options: dict[str, Any]) -> None:
    A, B, bias = correlated(2000, 24), weights(24, 6), np.linspace(-1, 1, 6)
    estimator = Maddness(12, random_state=0, **options).fit(A[:1500], B, bias)
    floor = 0.3 if options.get("nprototypes") == 2 else 0.7
    assert estimator.score(A[1500:], B, bias) > floor


def test_more_codebooks_and_prototypes_are_better() -> None:
    A, B = correlated(3000, 32), weights(32, 10)

    def score(**options: Any) -> float:
        return Maddness(random_state=0, **options).fit(A[:2000], B).score(A[2000:], B)

    assert score(ncodebooks=4) < score(ncodebooks=8) < score(ncodebooks=16) < score(ncodebooks=32)
    assert (
        score(ncodebooks=8, nprototypes=4)
        < score(ncodebooks=8)
        < score(ncodebooks=8, nprototypes=64)
    )


def test_ridge_beats_bucket_means_and_the_product_hash_the_input_hash() -> None:
    A, B = correlated(3000, 32), weights(32, 10)
    B[::2] *= 0.1  # columns that hardly matter to the product

    def score(**options: Any) -> float:
        return Maddness(8, random_state=0, **options).fit(A[:2000], B).score(A[2000:], B)

    assert score() > score(prototypes="kmeans") + 0.02
    assert score() > score(hash_objective="input") + 0.02


def test_tables_in_8_bits_lose_next_to_nothing() -> None:
    A, B = correlated(2000, 32), weights(32, 10)
    exact = Maddness(16, random_state=0, lut_dtype="float32").fit(A, B)
    short = Maddness(16, random_state=0).fit(A, B)
    np.testing.assert_array_equal(exact.encode(A), short.encode(A))
    assert short.score(A, B) > exact.score(A, B) - 0.001


@pytest.mark.parametrize("upcast_every", [2, 16, 128])
def test_averaged_products_are_unbiased(upcast_every: int) -> None:
    A, B = correlated(4000, 64), weights(64, 16)
    options: dict[str, Any] = {"upcast_every": upcast_every, "random_state": 0}
    mean = Maddness(40, accumulate="mean", **options).fit(A, B)
    exact = Maddness(40, **options).fit(A, B)
    step = exact.scale_
    difference = (mean.predict(A) - exact.predict(A)) / step  # in units of one level of the tables
    uncorrected = 40 * np.log2(min(upcast_every, 64)) / 4
    assert np.abs(difference.mean()) < 0.1 * uncorrected
    np.testing.assert_allclose(mean.scale_, exact.scale_ * upcast_every, rtol=1e-6)


def test_fitted_attributes() -> None:
    estimator = Maddness(5, random_state=0).fit(correlated(300, 13), weights(13, 7))
    expected = {
        "splitdims_": ((5, 4), np.int32),
        "splitvals_": ((5, 16), np.float32),
        "prototypes_": ((5, 16, 13), np.float32),
        "lut_": ((5, 16, 7), np.uint8),
        "scale_": ((7,), np.float32),
        "offset_": ((7,), np.float32),
    }
    for name, (shape, dtype) in expected.items():
        value = getattr(estimator, name)
        assert (value.shape, value.dtype) == (shape, dtype), name
    for dims, allowed in zip(estimator.splitdims_, np.array_split(np.arange(13), 5), strict=True):
        assert set(dims.tolist()) <= set(allowed.tolist())  # global column numbers
    assert 0 < estimator.acc_bound_ <= 5 * 255
    assert estimator.ridge_lambda_ is not None
    assert estimator.ridge_lambda_ > 0


def test_nearest_codes_are_nearest() -> None:
    A = correlated(500, 10)
    estimator = Maddness(3, 12, encoder="nearest", random_state=0).fit(A)
    codes = estimator.encode(A)
    for c, (low, high) in enumerate(zip(estimator.starts_, estimator.starts_[1:], strict=False)):
        distances = ((A[:, None, low:high] - estimator.centroids_[None, :, low:high]) ** 2).sum(-1)
        chosen = np.take_along_axis(distances, codes[:, c, None].astype(int), 1)[:, 0]
        np.testing.assert_allclose(chosen, distances.min(axis=1), rtol=1e-4, atol=1e-4)


def test_ties_and_near_ties_go_the_way_of_the_kernels() -> None:
    grid = np.round(correlated(300, 6) * 2) / 2  # many rows exactly between two centroids
    estimator = Maddness(2, 24, encoder="nearest", random_state=0).fit(grid)
    np.testing.assert_array_equal(
        estimator.predict(grid), ir.interpret(estimator.to_ir(), [grid])[0]
    )
    far = grid + np.float32(4096)  # scores of 10**7 whose differences drown in float32
    estimator.fit(far)
    np.testing.assert_array_equal(estimator.predict(far), ir.interpret(estimator.to_ir(), [far])[0])


def test_without_weights_rows_are_reconstructed() -> None:
    A = correlated(500, 8)
    estimator = Maddness(8, 64, random_state=0).fit(A)
    np.testing.assert_array_equal(
        estimator.predict(A), Maddness(8, 64, random_state=0).fit(A, np.eye(8)).predict(A)
    )
    assert estimator.score(A) > 0.99


@pytest.mark.parametrize("encoder", ["tree", "nearest"])
def test_same_seed_same_fit(encoder: str) -> None:
    A, B = correlated(300, 12), weights(12, 4)
    first, second = (Maddness(4, encoder=encoder, random_state=7).fit(A, B) for _ in range(2))
    for name in ("lut_", "scale_", "offset_"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_float64_input_is_rounded_to_float32() -> None:
    A, B = correlated(300, 12), weights(12, 4)
    double = Maddness(4, random_state=0).fit(A.astype(np.float64), B)
    single = Maddness(4, random_state=0).fit(A, B.astype(np.float64))
    np.testing.assert_array_equal(double.predict(A.astype(np.float64)), single.predict(A))


@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_order_does_not_matter(order: str) -> None:
    A = correlated(300, 12)
    expected = Maddness(4, random_state=0).fit(A).predict(A)
    B = np.array(A, order=order)  # pyright: ignore[reportCallIssue, reportArgumentType]
    np.testing.assert_array_equal(Maddness(4, random_state=0).fit(B).predict(B[::2]), expected[::2])


@pytest.mark.parametrize("encoder", ["tree", "nearest"])
@pytest.mark.parametrize("nrows", [1, 2, 3, 9, 15])
def test_fewer_rows_than_prototypes(encoder: str, nrows: int) -> None:
    A, B = correlated(nrows, 6), weights(6, 3)
    estimator = Maddness(
        3, encoder=encoder, random_state=0, prototypes="kmeans", lut_dtype="float32"
    ).fit(A, B)
    if encoder == "nearest" or nrows <= 3:  # every row has its own bucket
        np.testing.assert_allclose(estimator.predict(A), A @ B, atol=1e-4)
    assert nrows == 1 or estimator.score(A, B) > 0.5
    assert np.isfinite(estimator.predict(correlated(50, 6, seed=4))).all()


@pytest.mark.parametrize("encoder", ["tree", "nearest"])
@pytest.mark.parametrize("accumulate", ["exact", "mean"])
def test_constant_columns(encoder: str, accumulate: str) -> None:
    A = correlated(200, 8)
    A[:, :4] = 3.0
    B = weights(8, 3)
    estimator = Maddness(4, encoder=encoder, accumulate=accumulate, random_state=0).fit(A, B)
    assert estimator.score(A, B) > 0.7
    everything = np.full((50, 8), 2.5, np.float32)
    constant = Maddness(4, encoder=encoder, accumulate=accumulate, random_state=0).fit(
        everything, B
    )
    np.testing.assert_allclose(constant.predict(everything), everything @ B, rtol=1e-4, atol=1e-5)
    assert np.isfinite(constant.predict(A)).all()


def test_large_values_and_offsets() -> None:
    A = correlated(500, 8).astype(np.float64) * 1e15 + 1e16
    B = weights(8, 3)
    assert Maddness(8, 64, random_state=0).fit(A, B).score(A, B) > 0.8


@pytest.mark.parametrize(
    ("ncolumns", "ncodebooks"), [(1, 1), (2, 1), (7, 7), (7, 3), (17, 16), (31, 1)]
)
@pytest.mark.parametrize("noutputs", [1, 5])
def test_any_columns_and_codebooks(ncolumns: int, ncodebooks: int, noutputs: int) -> None:
    A, B = correlated(100, ncolumns), weights(ncolumns, noutputs)
    estimator = Maddness(ncodebooks, random_state=0).fit(A, B)
    assert estimator.predict(A).shape == (100, noutputs)
    assert estimator.encode(A).shape == (100, ncodebooks)
    assert estimator.predict(A[:1]).shape == (1, noutputs)


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"ncodebooks": 0}, "ncodebooks=0"),
    ({"ncodebooks": 2.0}, "ncodebooks=2.0"),
    ({"ncodebooks": 9}, "ncodebooks=9 exceeds the 8 feature"),
    ({"nprototypes": 24}, "power of two"),
    ({"nprototypes": 256}, "2..128"),
    ({"encoder": "nearest", "nprototypes": 257}, "2..256"),
    ({"encoder": "treee"}, "did you mean 'tree'"),
    ({"partition": "random"}, "'contiguous'"),
    ({"prototypes": "lstsq"}, "'ridge', 'kmeans'"),
    ({"lut_objective": "huber"}, "'ridge'"),
    ({"hash_objective": "output"}, "'product', 'input'"),
    ({"activation": "gelu"}, "None, 'relu'"),
    ({"lut_dtype": "int4"}, "'uint8', 'float32'"),
    ({"accumulate": "sum"}, "'exact', 'mean'"),
    ({"accumulate": "mean", "lut_dtype": "float32"}, "8-bit tables"),
    ({"upcast_every": 12}, "power of two"),
    ({"ridge_lambda": 0.0}, "positive"),
    ({"ridge_lambda": "big"}, "'auto'"),
    ({"split_candidates": 0}, "split_candidates"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=str)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")) as caught:
        Maddness(**{"ncodebooks": 4, **options}).fit(correlated(50, 8))
    assert caught.value.fix


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(bad: float) -> None:
    A, B, bias = correlated(50, 8), weights(8, 3), np.zeros(3)
    estimator = Maddness(4).fit(A, B)
    for array in (A, B, bias):
        spoiled = np.array(array, dtype=np.float64)
        spoiled.flat[1] = bad
        arguments = [spoiled if array is other else other for other in (A, B, bias)]
        with pytest.raises(InputError, match=r"NaN|infinity"):
            Maddness(4).fit(*arguments)
    with pytest.raises(InputError, match=r"NaN|infinity"):
        estimator.predict(np.where(np.arange(8) == 2, bad, A))


def test_numbers_beyond_float32_are_refused() -> None:
    with pytest.raises(InputError, match="float32"):
        Maddness(1).fit(np.array([[1e300], [0.0]]))


def test_shape_mistakes_are_explained() -> None:
    A = correlated(50, 8)
    with pytest.raises(InputError, match=r"pass B\.T"):
        Maddness(4).fit(A, weights(3, 8))
    with pytest.raises(InputError, match="has shape"):
        Maddness(4).fit(A, weights(7, 3))
    with pytest.raises(InputError, match="bias"):
        Maddness(4).fit(A, weights(8, 3), np.zeros(4))
    with pytest.raises(InputError, match="2D array"):
        Maddness(4).fit(A, np.ones(8))
    with pytest.raises(InputError, match="8 features"):
        Maddness(4).fit(A).predict(A[:, :7])
    with pytest.raises(InputError, match="B has 2 columns"):
        Maddness(4).fit(A, weights(8, 3)).score(A, weights(8, 2))


@pytest.mark.parametrize("method", ["predict", "encode", "to_ir"])
def test_unfitted_use_is_refused(method: str) -> None:
    with pytest.raises(NotFittedError, match="call fit") as caught:
        getattr(Maddness(4), method)(*([] if method == "to_ir" else [correlated(5, 8)]))
    assert isinstance(caught.value, LutccError)


def test_refit_with_the_other_encoder_leaves_nothing_behind() -> None:
    A = correlated(100, 8)
    estimator = Maddness(4, random_state=0).fit(A)
    estimator.set_params(encoder="nearest").fit(A)
    assert not hasattr(estimator, "splitdims_")
    np.testing.assert_array_equal(
        estimator.predict(A), Maddness(4, encoder="nearest", random_state=0).fit(A).predict(A)
    )


def test_parameters_changed_after_fit_wait_for_the_next_fit() -> None:
    A = correlated(100, 8)
    estimator = Maddness(4, random_state=0, lut_dtype="float32", activation="relu").fit(A)
    before = estimator.predict(A)
    estimator.set_params(lut_dtype="uint8", accumulate="mean", activation=None, encoder="nearest")
    np.testing.assert_array_equal(estimator.predict(A), before)
    np.testing.assert_array_equal(ir.interpret(estimator.to_ir(), [A])[0], before)


def test_state_survives_pickling() -> None:
    A = correlated(100, 8)
    estimator = Maddness(4, random_state=0).fit(A)
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(estimator)).predict(A), estimator.predict(A)
    )


@pytest.mark.parametrize("encoder", ["tree", "nearest"])
@pytest.mark.parametrize("partition", ["contiguous", "opq", "auto"])
def test_tables_fitted_anew_are_those_of_a_fit(partition: str, encoder: str) -> None:
    """Whatever the tables were before, and however often."""
    rng = np.random.default_rng(0)
    A, B, bias = rng.normal(size=(300, 12)), rng.normal(size=(12, 5)), rng.normal(size=5)
    codes = {"partition": partition, "encoder": encoder, "nprototypes": 8, "random_state": 3}
    settings: list[dict[str, Any]] = [
        {"lut_objective": "kld", "lut_activation": "softmax"},
        {"lut_objective": "ridge", "lut_activation": None, "lut_dtype": "float32"},
        {"lut_objective": "mse", "lut_activation": "relu", "lut_dtype": "uint8"},
        {"prototypes": "kmeans", "accumulate": "mean", "upcast_every": 4, "activation": "relu"},
    ]
    if partition == "auto":  # which partition it takes depends on what follows the product
        settings = [{"ridge_lambda": 1.0}, {"accumulate": "mean"}]
    kept = Maddness(3, **codes).fit(A, B, bias)
    for options in settings:
        kept.set_params(**options).fit_tables(A, B, bias, exact=A * 1.01)
        fresh = Maddness(3).set_params(**kept.get_params()).fit(A, B, bias, exact=A * 1.01)
        assert vars(kept).keys() == vars(fresh).keys()
        for name in ("lut_", "scale_", "offset_", "prototypes_", "acc_bound_", "ridge_lambda_"):
            np.testing.assert_array_equal(getattr(kept, name), getattr(fresh, name), err_msg=name)
        np.testing.assert_array_equal(kept.predict(A), fresh.predict(A))


def test_tables_are_not_fitted_to_codes_that_options_do_not_give() -> None:
    A = np.random.default_rng(0).normal(size=(100, 8))
    with pytest.raises(NotFittedError):
        Maddness(4).fit_tables(A)
    kept = Maddness(4).fit(A)
    with pytest.raises(InputError, match=r"codes depend on nprototypes.*changed since"):
        kept.set_params(nprototypes=8).fit_tables(A)
    kept.set_params(nprototypes=16)
    with pytest.raises(InputError, match="7 features"):
        kept.fit_tables(A[:, :7])
    kept.fit_tables(A, np.ones((8, 2)))
    assert kept.predict(A).shape == (100, 2)


def test_what_is_interrupted_gives_no_wrong_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables stay with the options that they were fitted with; a fit that broke off is none."""
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(300, 8)), rng.normal(size=(8, 3))
    kept = Maddness(4, random_state=0).fit(A, B)
    before = kept.predict(A)

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    kept.set_params(lut_objective="mse", lut_activation="relu", accumulate="mean")
    with monkeypatch.context() as patch:
        patch.setattr("lutcc.fit.maddness.learn_tables", interrupt)
        with pytest.raises(KeyboardInterrupt):
            kept.fit_tables(A, B)
        np.testing.assert_array_equal(kept.predict(A), before)
        with pytest.raises(KeyboardInterrupt):
            kept.fit(A, B)
        with pytest.raises(NotFittedError):
            kept.predict(A)
    fresh = Maddness(4).set_params(**kept.get_params()).fit(A, B)
    np.testing.assert_array_equal(kept.fit(A, B).predict(A), fresh.predict(A))
