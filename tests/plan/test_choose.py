"""The integer program against every combination."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutcc.planning import choose_options

Layers = list[list[tuple[int, int]]]
OPTION = st.tuples(st.integers(0, 50), st.integers(0, 30))
LAYERS = st.lists(st.lists(OPTION, max_size=4), min_size=1, max_size=5)


def cheapest(costs: list[list[float]], damages: list[list[float]], budget: float) -> float:
    """Try every combination; return the least cost."""
    places = itertools.product(*(range(len(c)) for c in costs))
    return min(
        sum(c[i] for c, i in zip(costs, at, strict=True))
        for at in places
        if sum(d[i] for d, i in zip(damages, at, strict=True)) <= budget
    )


@settings(max_examples=60, deadline=None)
@given(layers=LAYERS, exact=st.integers(0, 60), budget=st.integers(0, 70))
def test_the_choice_is_the_best_of_all(layers: Layers, exact: int, budget: int):
    """Costs are whole numbers and damages quarters, so that sums are exact."""
    costs = [[float(exact), *(float(c) for c, _ in layer)] for layer in layers]
    damages = [[0.0, *(d / 4 for _, d in layer)] for layer in layers]
    chosen = choose_options(costs, damages, budget / 4)
    assert len(chosen) == len(layers)
    assert sum(d[i] for d, i in zip(damages, chosen, strict=True)) <= budget / 4
    assert sum(c[i] for c, i in zip(costs, chosen, strict=True)) == cheapest(
        costs, damages, budget / 4
    )


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_units_do_not_matter(scale: float):
    costs = [[9.0 * scale, 2.0 * scale], [9.0 * scale, 4.0 * scale, 1.0 * scale]]
    assert choose_options(costs, [[0, 0.5], [0, 0.4, 2.0]], 1.0) == [1, 1]


def test_ties_go_to_the_gentler():
    assert choose_options([[5.0, 3.0, 3.0]], [[0, 0.4, 0.2]], 1.0) == [2]
    assert choose_options([[5.0, 5.0]], [[0, 0.1]], 1.0) == [0]


def test_many_layers_and_a_budget_that_is_used_up():
    costs = [[10.0, 10.0 - i % 7] for i in range(200)]
    damages = [[0.0, 1.0]] * 200
    chosen = choose_options(costs, damages, 57.0)
    gained = sorted((i % 7 for i in range(200)), reverse=True)
    saved = sum(10.0 - c[i] for c, i in zip(costs, chosen, strict=True))
    assert saved == sum(gained[:57])


@pytest.mark.parametrize(
    ("costs", "damages"),
    [([[1.0, 2.0]], [[0.1, 0.2]]), ([[1.0]], [[0.0, 1.0]]), ([[float("nan")]], [[0.0]])],
)
def test_layers_without_a_harmless_option_are_refused(costs, damages):
    with pytest.raises(ValueError, match="must be"):
        choose_options(costs, damages, 1.0)
