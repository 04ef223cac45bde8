"""The chosen recipe is timed with the whole model, and that decides."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import pytest
import torch

from lutcc import recipes
from lutcc.planning.options import EXACT
from lutcc.planning.speed import Speed
from tests.plan.test_search import HALF, INT8, LAYERS, alone, search_of

WHOLE, BYTES = 300e-6, 4321


def mixed(seconds: dict[int, float]) -> Any:
    """A model's time by how many of its layers are int8; else as layers promise."""

    def time_whole(recipe: dict[str, recipes.Config], model: torch.nn.Module) -> Speed:
        gains: dict[Any, float] = {EXACT: 0.0, HALF: 4e-6, INT8: 8e-6}
        count = sum(config == INT8 for config in recipe.values())
        promised = WHOLE - sum(gains[config] for config in recipe.values())
        return Speed(seconds.get(count, promised), BYTES)

    return time_whole


def test_the_prediction_is_the_time_of_the_whole_model(monkeypatch):
    """Near enough: no other recipe is looked for, and the estimate is kept beside it."""
    made = search_of(monkeypatch, 1.0, alone, time_whole=mixed({LAYERS: 150e-6}))
    made.run(1.0, lambda what: None)
    found = made.predicted(made.chosen)
    assert [o.config for o in made.chosen] == [INT8] * LAYERS
    assert (found.seconds, found.timed_whole) == (150e-6, True)
    assert found.scaled_seconds == pytest.approx(140e-6)
    assert not made.again
    assert not made.slower
    front = made.front()[-1]
    assert (front.seconds, front.timed_whole) == (pytest.approx(140e-6), False)
    made.pace = 2.0
    assert made.predicted(made.chosen).seconds == 300e-6


def test_another_recipe_is_looked_for_where_layers_promise_too_much(monkeypatch):
    """int8 gains nothing in truth: then bfloat16 is tried, timed and taken."""
    made = search_of(monkeypatch, 1.0, alone, time_whole=mixed({LAYERS: 290e-6}))
    made.run(1.0, lambda what: None)
    assert [o.config for o in made.chosen] == [HALF] * LAYERS
    [first] = made.again
    assert (first.seconds, first.scaled) == (290e-6, pytest.approx(140e-6))
    found = made.predicted(made.chosen)
    assert found.seconds == pytest.approx(220e-6)
    assert made.scales[INT8] == pytest.approx(1 / 16)
    assert made.attempts[-1] == (made.chosen, made.drop.drop)
    assert len(made.timed) == len(made.attempts) == 2
    assert all(o in options for o, options in zip(made.chosen, made.found, strict=True))


def test_the_first_recipe_stays_if_the_second_is_slower(monkeypatch):
    seconds = {LAYERS: 270e-6, 0: 280e-6}
    made = search_of(monkeypatch, 1.0, lambda *_: None, time_whole=mixed(seconds))
    made.run(1.0, lambda what: None)
    assert len(made.timed) == 2
    assert [o.config for o in made.chosen] == [INT8] * LAYERS
    assert made.predicted(made.chosen).seconds == 270e-6


def test_no_recipe_that_is_slower_than_the_exact_model(monkeypatch):
    slow = mixed(dict.fromkeys(range(LAYERS + 1), 310e-6))
    made = search_of(monkeypatch, 1.0, alone, time_whole=slow)
    made.run(1.0, lambda what: None)
    assert made.slower
    assert [o.config for o in made.chosen] == [EXACT] * LAYERS
    assert made.drop.drop == 0
    assert made.predicted(made.chosen).seconds == WHOLE
    assert made.attempts[-1] == (made.chosen, 0.0)


def test_a_recipe_of_one_config_is_taken_where_it_was_timed_faster(monkeypatch):
    """Layers promise most by a mixture, but all in bfloat16 was and is faster."""

    def everywhere(config: recipes.Config, names: list[str]) -> float:
        return 200e-6 if config == HALF else cast(float, alone(config, names))

    slow = mixed({count: 210e-6 for count in range(1, LAYERS + 1)} | {0: 205e-6})
    made = search_of(monkeypatch, 1.0, everywhere, time_whole=slow)
    made.run(0.01, lambda what: None)
    assert made.attempts[0][0] != made.chosen
    assert [o.config for o in made.chosen] == [HALF] * LAYERS
    assert made.drop.drop <= 0.01
    assert made.predicted(made.chosen).seconds == 205e-6


def test_a_recipe_of_one_config_leaves_out_layers_where_it_does_not_pay(monkeypatch):
    """Its effect was not measured there: such layers stay exact."""

    def everywhere(config: recipes.Config, names: list[str]) -> float:
        return 100e-6 if config == INT8 else cast(float, alone(config, names))

    def time_whole(recipe: dict[str, recipes.Config], model: torch.nn.Module) -> Speed:
        return Speed(90e-6 if [*recipe.values()][-1] == EXACT else 200e-6, BYTES)

    made = search_of(monkeypatch, 1.0, everywhere, time_whole=time_whole)
    last = made.alone[-1]
    last[2] = dataclasses.replace(last[2], seconds=10e-6, skipped="not faster", damage=0.0)
    made.run(1.0, lambda what: None)
    assert [o.config for o in made.chosen] == [*[INT8] * (LAYERS - 1), EXACT]


def test_searches_end(monkeypatch):
    """Every recipe is far from what layers promise: none is timed twice."""
    calls = []

    def time_whole(recipe: dict[str, recipes.Config], model: torch.nn.Module) -> Speed:
        calls.append(tuple(recipe.values()))
        return Speed(299e-6 - len(calls) * 1e-9, BYTES)

    made = search_of(monkeypatch, 1.0, lambda *_: None, time_whole=time_whole)
    made.run(1.0, lambda what: None)
    assert len(calls) == len(set(calls)) == 2
    least = min(timed.seconds for timed in made.timed.values())
    assert made.predicted(made.chosen).seconds == least


def test_sizes_are_not_searched_again(monkeypatch):
    """Bytes decide, also where the model gets slower; its time is told all the same."""
    slow = mixed(dict.fromkeys(range(LAYERS + 1), 310e-6))
    made = search_of(monkeypatch, 1.0, alone, time_whole=slow)
    made.objective = "size"
    made.run(1.0, lambda what: None)
    assert len(made.attempts) == 1
    assert made.predicted(made.chosen).seconds == 310e-6
    assert made.predicted(made.chosen).nbytes == BYTES  # of the whole model, as compiled
