"""Recipes are found by made-up layers: the budget is widened, tightened, and times corrected."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch

from lutcc import recipes
from lutcc.planning import search as searching
from lutcc.planning.calibration import read_calibration
from lutcc.planning.drop import Drop, Judge
from lutcc.planning.options import EXACT, Option
from lutcc.planning.search import Search
from lutcc.planning.speed import Speed

HALF, INT8 = recipes.Exact(compute="bfloat16"), recipes.Exact(compute="int8")
LAYERS = 20


def options(damages: tuple[float, float]) -> list[Option]:
    """A layer of 10 us, or of 6 or 2 us with an error."""
    found = [Option(EXACT, seconds=10e-6, nbytes=100)]
    for config, seconds, damage in zip((HALF, INT8), (6e-6, 2e-6), damages, strict=True):
        found.append(Option(config, seconds, 50, damage=damage, change=damage**0.5))
    return found


def search_of(
    monkeypatch: pytest.MonkeyPatch,
    part: float,
    everywhere: Any,
    measure: str = "error",
    time_whole: Any = lambda recipe, model: None,
) -> Search:
    """A search in which recipes err by a part of what their layers promise."""
    model = torch.nn.Linear(4, 3).eval()
    rows = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    data = read_calibration(model, rows)
    judge = Judge(model, data, measure)
    taken: list[dict[str, recipes.Config]] = []
    found = [options((1e-6, 16e-6)) for _ in range(LAYERS)]

    def convert(model: Any, recipe: dict[str, recipes.Config], given: Any) -> Any:
        taken.append(recipe)
        return model

    def drop(model: Any, part_of: str) -> Drop:
        damage: dict[Any, float] = {EXACT: 0.0, HALF: 1e-6, INT8: 16e-6}
        value = part * judge.expected(sum(damage[c] for c in taken[-1].values()))
        return Drop(value, value, 1.0)

    monkeypatch.setattr(searching, "convert_model", convert)
    monkeypatch.setattr(judge, "drop", drop)
    names = [str(i) for i in range(LAYERS)]
    whole = Speed(300e-6, 5000)
    return Search(model, data, judge, found, names, "time", whole, everywhere, time_whole)


def alone(config: recipes.Config, names: list[str]) -> float:
    """What layers gain alone they gain in the model."""
    return 300e-6 - LAYERS * {HALF: 4e-6, INT8: 8e-6}[cast(Any, config)]


@pytest.mark.parametrize("part", [0.3, 1.0, 2.5])
def test_the_measured_drop_is_near_what_is_allowed(monkeypatch, part: float):
    made = search_of(monkeypatch, part, alone)
    made.run(0.01, lambda what: None)
    assert made.drop.drop <= 0.01
    everything = all(o.config == INT8 for o in made.chosen)
    assert everything == (part == 0.3)
    assert everything or made.drop.drop > 0.008, "the budget is used"
    assert made.attempts[-1] == (made.chosen, made.drop.drop)


def test_shares_of_rows_are_not_widened(monkeypatch):
    made = search_of(monkeypatch, 0.1, alone, "agreement")
    made.run(1e-4, lambda what: None)
    assert len(made.attempts) == 1


def test_nothing_may_change(monkeypatch):
    made = search_of(monkeypatch, 1.0, alone)
    made.run(0.0, lambda what: None)
    assert [o.config for o in made.chosen] == [EXACT] * LAYERS
    assert made.predicted(made.chosen).seconds == 300e-6


def test_times_are_those_in_the_whole_model(monkeypatch):
    """int8 gains 12 us a layer there, bfloat16 nothing."""
    told = []

    def everywhere(config: recipes.Config, names: list[str]) -> float:
        told.append((config, len(names)))
        return 300e-6 - (0 if config == HALF else LAYERS * 12e-6)

    made = search_of(monkeypatch, 1.0, everywhere)
    made.run(1.0, lambda what: None)
    assert told == [(HALF, LAYERS), (INT8, LAYERS)]
    assert [o.config for o in made.chosen] == [INT8] * LAYERS
    exact, half, int8 = made.found[0]
    assert exact.seconds == pytest.approx(15e-6), "all layers together take the whole"
    assert half.seconds == pytest.approx(15e-6)
    assert int8.seconds == pytest.approx(3e-6)
    assert made.predicted(made.chosen).seconds == pytest.approx(60e-6)
    assert not any(HALF in {o.config for o in layer} for layer in made.usable)


def test_a_model_that_cannot_be_timed_is_the_sum_of_its_layers(monkeypatch):
    made = search_of(monkeypatch, 1.0, lambda config, names: None)
    made.whole = "it cannot be compiled"
    made.run(1.0, lambda what: None)
    assert made.predicted(made.chosen).seconds == pytest.approx(LAYERS * 2e-6)
    assert len(made.front()) > 2
