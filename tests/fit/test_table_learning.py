"""Tables learnt behind an activation: equation 3, its gradient, its minimum, its stopping rule."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax

from lutcc.errors import InputError
from lutcc.fit import Maddness
from lutcc.fit.table_learning import Objective, _Problem, learn_tables

F32 = np.float32


def problem(nrows: int = 600, noutputs: int = 5) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(nrows, 4)) @ rng.normal(size=(4, 12))).astype(F32)
    return {"A": X, "B": rng.normal(size=(12, noutputs)) / 2, "bias": rng.normal(size=noutputs)}


def loss(
    T: np.ndarray,
    anchor: np.ndarray,
    codes: np.ndarray,
    exact: np.ndarray,
    shift: np.ndarray,
    objective: Objective,
    lam: float,
) -> float:
    """Equation 3 in NumPy."""
    z = sum(T[c][codes[:, c]] for c in range(codes.shape[1])) + shift
    if objective.name == "kld":
        p, q = softmax(exact, 1), softmax(z, 1)
        error = (p * np.log(p / q)).sum()
    else:
        sigma = {"relu": lambda v: np.maximum(v, 0), "softmax": lambda v: softmax(v, 1)}
        f = sigma[str(objective.activation)]
        error = np.square(f(exact) - f(z)).sum()
    return float(error + lam * np.square(T - anchor).sum())


OBJECTIVES = [Objective("mse", "relu"), Objective("mse", "softmax"), Objective("kld", "softmax")]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_error_falls_and_is_equation_3(objective: Objective) -> None:
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 4, (400, 3)).astype(np.uint8)
    anchor, shift = rng.normal(size=(3, 4, 6)), rng.normal(size=6)
    hidden = anchor + 0.5 * rng.normal(size=anchor.shape)
    exact = sum(hidden[c][codes[:, c]] for c in range(3)) + shift
    exact = (exact + 0.1 * rng.normal(size=exact.shape)).astype(F32)
    given = (anchor, codes, exact, shift, objective, 0.5)
    found = learn_tables(*given, np.random.RandomState(0), scaled=False)
    before, after = loss(anchor, *given), loss(found, *given)
    assert after < 0.5 * before
    if objective.name == "kld":  # convex: nothing near is better
        for _ in range(20):
            near = found + 0.02 * rng.normal(size=found.shape)
            assert loss(near, *given) > after * (1 - 1e-3)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_gradient(objective: Objective) -> None:
    outputs = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    wanted = objective.wanted(torch.randn(7, 4, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda z: objective(z, wanted), outputs)


def test_mse_without_activation_is_the_closed_solution() -> None:
    given = problem()
    ridge = Maddness(3, random_state=0).fit(**given)
    same = Maddness(3, lut_objective="mse", random_state=0).fit(**given)
    np.testing.assert_array_equal(ridge.lut_, same.lut_)


@pytest.mark.parametrize(
    ("objective", "activation"), [("mse", "relu"), ("mse", "gelu"), ("kld", "softmax")]
)
def test_better_behind_the_activation_on_other_rows(objective: str, activation: str) -> None:
    given = problem(1500)
    A, B, bias = given["A"], given["B"], given["bias"]
    train, test = A[:1000], A[1000:]
    measure = Objective(objective, activation)
    wanted = measure.wanted(torch.from_numpy((test @ B + bias).astype(F32)))
    errors = []
    learnt: dict[str, Any] = {"lut_objective": objective, "lut_activation": activation}
    for options in ({}, learnt):
        estimator = Maddness(2, random_state=0, **options).fit(train, B, bias)
        errors.append(float(measure(torch.from_numpy(estimator.predict(test)), wanted)))
    assert errors[1] < errors[0]


@pytest.mark.parametrize(("factor", "gain"), [(1e-3, 0.99), (1e3, 1.3)])
def test_lambda_is_searched_on_held_out_rows(factor: float, gain: float) -> None:
    """From a lambda that is far too large, other rows are told better; from a small one (where the
    held-out rows end the search of tables soon) as well as without."""
    given = problem(700)
    A, B, bias = given["A"], given["B"], given["bias"]
    estimator = Maddness(3, prototypes="kmeans", lut_dtype="float32", random_state=0)
    estimator.fit(A[:200], B, bias)
    anchor, codes = estimator.prototypes_.astype(np.float64) @ B, estimator.encode(A)
    exact = (A @ B + bias).astype(F32)
    objective = Objective("mse", "relu")
    start = factor * (1.0 / objective.curvature(torch.from_numpy(exact[:200])))
    errors = []
    for scaled in (False, True):
        behind = start if scaled else start * objective.curvature(torch.from_numpy(exact[:200]))
        tables = learn_tables(
            anchor,
            codes[:200],
            exact[:200],
            bias,
            objective,
            behind,
            np.random.RandomState(0),
            scaled=scaled,
        )
        errors.append(loss(tables, anchor, codes[200:], exact[200:], bias, objective, 0.0))
    assert errors[1] * gain < errors[0]


@pytest.mark.parametrize(("nrows", "count"), [(600, 5), (1300, 4), (9000, 1)])
def test_of_few_rows_each_is_held_out_once(nrows: int, count: int) -> None:
    """A row's number is its output, behind ReLU too, so that it is known where it went."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (nrows, 2)).astype(np.uint8)
    exact = np.arange(nrows, dtype=F32)[:, None]
    problem = _Problem(np.zeros((2, 4, 1)), np.zeros(1), Objective("mse", "relu"), 1.0, 1.0)
    folds = problem.folds((codes, exact), np.random.RandomState(0))
    assert len(folds) == count
    for fold in folds:
        both = np.concatenate([fold.rows[1], fold.wanted.numpy()])
        np.testing.assert_array_equal(np.sort(both, axis=0), exact)
    held = np.concatenate([fold.wanted.numpy() for fold in folds])
    assert len(np.unique(held)) == len(held) >= min(1000, nrows)


def test_the_exact_rows_are_what_look_ups_give_back() -> None:
    """Codes are those of distorted rows; the rows they stand for are the exact ones."""
    given = problem(900)
    A, B, bias = given["A"], given["B"], given["bias"]
    distorted = (0.5 * A + 0.3).astype(F32)
    train, test = slice(0, 600), slice(600, 900)
    told = A[test] @ B + bias
    plain, mended = (
        Maddness(3, random_state=0).fit(distorted[train], B, bias, exact=exact)
        for exact in (None, A[train])
    )
    np.testing.assert_array_equal(plain.splitdims_, mended.splitdims_)
    np.testing.assert_array_equal(plain.splitvals_, mended.splitvals_)
    errors = [float(np.square(e.predict(distorted[test]) - told).sum()) for e in (plain, mended)]
    assert errors[1] < 0.5 * errors[0]
    same = Maddness(3, random_state=0).fit(A, B, bias, exact=A)
    np.testing.assert_array_equal(same.lut_, Maddness(3, random_state=0).fit(A, B, bias).lut_)
    with pytest.raises(InputError, match=r"exact has shape \(600, 11\), but A has shape"):
        plain.fit(A[train], B, bias, exact=A[train, 1:])
    with pytest.raises(InputError, match="NaN"):
        plain.fit(A[train], B, bias, exact=A[train] * np.nan)


def test_few_rows_and_many_seeds_do_no_harm() -> None:
    """20 rows: no held-out part, and still finite tables near the anchor's."""
    given = problem(20)
    estimator = Maddness(2, lut_objective="mse", lut_activation="relu", random_state=0)
    assert np.isfinite(estimator.fit(**given).predict(given["A"])).all()


def test_refusals() -> None:
    with pytest.raises(InputError, match="compares the rows of a softmax"):
        Maddness(2, lut_objective="kld").fit(**problem())
    with pytest.raises(InputError, match="lut_activation='swish'"):
        Maddness(2, lut_objective="mse", lut_activation="swish").fit(**problem())


def test_later_layers_mend_what_look_ups_before_them_distort() -> None:
    import lutcc

    torch.manual_seed(0)
    widths = (16, 24, 24, 5)
    layers: list[torch.nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [torch.nn.Linear(before, after), torch.nn.ReLU()]
    exact = torch.nn.Sequential(*layers[:-1]).eval()
    hidden = torch.randn(4, 16)
    x, fresh = (torch.randn(n, 4) @ hidden for n in (1000, 500))
    errors = []
    for target in ("layer", "network"):
        config = lutcc.recipes.Maddness(ncodebooks=3, hash_objective="input", target=target)
        small = lutcc.convert(exact, {"*": config}, x)
        with torch.no_grad():
            errors.append(float((small(fresh) - exact(fresh)).square().mean()))
    assert errors[1] < errors[0]


def test_a_model_is_converted_though_gradients_are_off() -> None:
    """``lutcc.convert`` runs without gradients; tables are learnt by them."""
    import torch

    import lutcc

    torch.manual_seed(0)
    exact, x = torch.nn.Linear(8, 4).eval(), torch.randn(1000, 8)
    errors = []
    learnt: dict[str, Any] = {"lut_objective": "mse", "lut_activation": "relu"}
    for options in ({}, learnt):
        recipe = {"*": lutcc.recipes.Maddness(ncodebooks=2, lut_dtype="float32", **options)}
        small = lutcc.convert(exact, recipe, x)
        with torch.no_grad():
            errors.append(float((small(x).relu() - exact(x).relu()).square().mean()))
    assert errors[1] < errors[0]
