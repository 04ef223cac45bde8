"""scikit-learn's own estimator checks.

They call ``fit(X, y)`` with labels for y, whereas Maddness takes a weight matrix there. A subclass
that ignores y fits the identity product (it reconstructs X), so that all checks apply; the class
itself must pass those that never call ``fit``.
"""

from __future__ import annotations

from typing import Any, Self

import pytest
from sklearn.utils.estimator_checks import estimator_checks_generator, parametrize_with_checks

from lutcc.fit import Maddness


class Reconstruction(Maddness):
    def fit(self, X: Any, y: Any = None) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().fit(X)

    def score(self, X: Any, y: Any = None) -> float:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().score(X)


@parametrize_with_checks(
    [
        Reconstruction(1, 4),
        Reconstruction(1, 4, encoder="nearest"),
        Reconstruction(1, accumulate="mean"),
    ]
)
def test_estimator_checks(estimator: Any, check: Any) -> None:
    check(estimator)


WITHOUT_FIT = (
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_estimators_unfitted",
    "check_get_params_invariance",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_set_params",
    "check_valid_tag_types",
)


@pytest.mark.parametrize("name", WITHOUT_FIT)
def test_checks_of_the_class_itself(name: str) -> None:
    checks = [
        check
        for _, check in estimator_checks_generator(Maddness(1))
        if getattr(check, "func", check).__name__ == name
    ]
    assert len(checks) == 1
    estimator = Maddness(1)
    checks[0](estimator)
