"""Tables learnt behind an activation: equation 3, its gradient, its minimum, its stopping rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax

from lutcc.errors import InputError
from lutcc.fit import Maddness
from lutcc.fit.table_learning import Objective, learn_tables

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
    exact = torch.randn(7, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: objective(z, exact), outputs)


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
    exact = torch.from_numpy((test @ B + bias).astype(F32))
    measure = Objective(objective, activation)
    errors = []
    learnt: dict[str, Any] = {"lut_objective": objective, "lut_activation": activation}
    for options in ({}, learnt):
        estimator = Maddness(2, random_state=0, **options).fit(train, B, bias)
        errors.append(float(measure(torch.from_numpy(estimator.predict(test)), exact)))
    assert errors[1] < errors[0]


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


def test_a_model_is_converted_though_gradients_are_off() -> None:
    """``lutcc.convert`` runs without gradients; tables are learnt by them."""
    import torch

    import lutcc

    torch.manual_seed(0)
    exact, x = torch.nn.Linear(8, 4).eval(), torch.randn(200, 8)
    errors = []
    learnt: dict[str, Any] = {"lut_objective": "mse", "lut_activation": "relu"}
    for options in ({}, learnt):
        recipe = {"*": lutcc.recipes.Maddness(ncodebooks=2, lut_dtype="float32", **options)}
        small = lutcc.convert(exact, recipe, x)
        with torch.no_grad():
            errors.append(float((small(x).relu() - exact(x).relu()).square().mean()))
    assert errors[1] < errors[0]
