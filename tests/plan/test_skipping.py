"""What is not fitted because it cannot end up in the recipe."""

from __future__ import annotations

from typing import Any

import pytest

from lutcc import recipes
from lutcc.planning.options import EXACT, Option
from lutcc.planning.skipping import LAYERS, Skipping, in_order

AS_IS = Option(EXACT, seconds=9e-6, nbytes=900)
COARSE, FINE = recipes.Maddness(ncodebooks=4), recipes.Maddness(ncodebooks=16)
INT8 = recipes.Exact(compute="int8")


def option(config: Any, seconds: float, drop: float = 0.0, nbytes: int = 100) -> Option:
    return Option(config, seconds=seconds, nbytes=nbytes, drop=drop, damage=drop)


def test_exact_ones_come_first_then_coarse_ones():
    small, large = recipes.Codebook(alpha=8.0), recipes.Codebook(alpha=4.0)
    given = [FINE, large, INT8, COARSE, small]
    assert in_order(given) == [INT8, small, large, COARSE, FINE]


@pytest.mark.parametrize(
    ("given", "found", "reason"),
    [
        (option(COARSE, 1e-6), [], ""),
        (option(COARSE, 8.9e-6), [], "not faster than the exact layer"),
        (option(INT8, 1e-6), [], ""),
        (option(FINE, 2e-6), [option(COARSE, 1e-6, 0.05)], ""),
        (option(FINE, 2e-6), [option(COARSE, 1e-6, 0.3)], "maddness C=4 is far beyond the budget"),
        (
            option(COARSE, 2e-6),
            [option(INT8, 2e-6)],
            "exact int8 is as cheap, and gentler as a rule",
        ),
        (option(COARSE, 1e-6), [option(INT8, 2e-6)], ""),
        (
            option(COARSE, 1e-6),
            [option(INT8, 2e-6, 0.02)],
            "exact int8, gentler as a rule, is beyond the budget",
        ),
    ],
)
def test_reasons(given: Option, found: list[Option], reason: str):
    assert Skipping("time", 0.01, "agreement").reason(given, AS_IS, found, "a") == reason


def test_size_is_what_counts_where_it_is_asked_for():
    large = option(COARSE, 1e-6, nbytes=901)
    told = Skipping("size", 0.01, "error").reason(large, AS_IS, [], "a")
    assert told == "not smaller than the exact layer"


def test_a_family_is_given_up_for_layers_of_a_shape():
    skipping, given = Skipping("time", 0.01, "error"), option(FINE, 1e-6)
    for _ in range(LAYERS):
        assert skipping.reason(given, AS_IS, [], "a") == ""
        skipping.note(option(COARSE, 1e-6, 0.09), "a")
    assert "in 3 layers of this shape" in skipping.reason(given, AS_IS, [], "a")
    assert skipping.reason(given, AS_IS, [], "b") == ""
    assert skipping.reason(option(recipes.Codebook(), 1e-6), AS_IS, [], "a") == ""


def test_look_ups_are_not_fitted_for_what_hardly_counts():
    skipping = Skipping("time", 0.01, "error", total=1e-3)
    assert skipping.reason(option(INT8, 1e-6), AS_IS, [], "a") == ""
    assert "less than 1% of the model" in skipping.reason(option(FINE, 1e-6), AS_IS, [], "a")
