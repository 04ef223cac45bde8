"""Chains of look-ups: found in models, weighed as one choice, with their own time and effect."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lutcc
from lutcc import recipes
from lutcc.planning.candidates import look_ups
from lutcc.planning.chains import Joint, apart, find_runs, parts_of
from lutcc.planning.choose import Group, choose_options
from lutcc.planning.drop import Judge
from lutcc.planning.joining import measure_joints
from lutcc.planning.layers import Layer
from lutcc.planning.options import EXACT, Option
from lutcc.planning.skipping import Skipping
from lutcc.planning.speed import Speed
from tests.plan.test_search import search_of

LOOK_UP = recipes.Maddness(ncodebooks=4, prototypes="kmeans")


class Branches(nn.Module):
    """A chain of three, one cut off by a norm, one whose sums are added to, one read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(16, 12), nn.BatchNorm1d(12)
        self.second, self.third = nn.Linear(12, 12), nn.Linear(12, 12)
        self.middle, self.fourth = nn.LayerNorm(12), nn.Linear(12, 12)
        self.fifth, self.left, self.right = (nn.Linear(12, 12) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.first(x)))
        y = self.third(nn.functional.gelu(self.second(y)))
        y = self.fourth(self.middle(y)) + y
        y = torch.relu(self.fifth(y))
        return self.left(y) + self.right(y)


def test_chains_are_found_where_integers_are_passed_on():
    torch.manual_seed(0)
    model, x = Branches().eval(), torch.randn(400, 16)
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    assert names == ["first", "second", "third", "fourth", "fifth", "left", "right"]
    converted = lutcc.convert(model, dict.fromkeys(names, LOOK_UP), x)
    assert find_runs(converted, (x[:4],), names) == [(0, 1, 2), (4, 5, 6)]
    assert find_runs(converted, (x[:4],), names[1:]) == [(0, 1), (3, 4, 5)]
    alone = lutcc.convert(model, {"second": LOOK_UP}, x)
    assert find_runs(alone, (x[:4],), names) == []


def test_chains_of_convolutions_are_found():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 5, 3), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(5, 4, 2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)),
    ).eval()
    x = torch.randn(60, 2, 12, 12)
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    converted = lutcc.convert(model, dict.fromkeys(names, LOOK_UP), x)
    assert find_runs(converted, (x[:4],), names) == [(0, 1, 2), (3, 4)]
    assert find_runs(converted, (x[:4],), names[1:]) == [(0, 1), (2, 3)]


def test_names_apart():
    assert apart(list("abcdef"), [("a", "b", "c"), ("e", "f")]) == ["a", "c", "d", "e"]
    assert parts_of((1, 2)) == [(1, 2)]


OPTION = st.tuples(st.integers(0, 40), st.integers(0, 20))


@settings(max_examples=60, deadline=None)
@given(
    layers=st.lists(st.lists(OPTION, min_size=1, max_size=3), min_size=3, max_size=4),
    of_groups=st.lists(OPTION, min_size=2, max_size=2),
    budget=st.integers(0, 50),
)
def test_groups_and_layers_are_chosen_best_of_all(layers, of_groups, budget):
    """Against every combination; the first options of three layers are what a group stands for."""
    costs = [[60.0, *(float(c) for c, _ in layer)] for layer in layers]
    damages = [[0.0, *(float(d) for _, d in layer)] for layer in layers]
    kinds = [((0, 1, 2), (1, 1, 1)), ((1, 2), (1, 1))]
    groups = [
        Group(at, options, float(c), float(d))
        for (at, options), (c, d) in zip(kinds, of_groups, strict=True)
    ]

    def allowed(chosen: tuple[int, ...], taken: Group | None) -> tuple[float, float] | None:
        inside = taken.layers if taken else ()
        if any(
            all(
                at not in inside and chosen[at] == o
                for at, o in zip(g.layers, g.options, strict=True)
            )
            for g in groups
        ):
            return None
        rest = [i for i in range(len(layers)) if i not in inside]
        cost = sum(costs[i][chosen[i]] for i in rest) + (taken.cost if taken else 0)
        damage = sum(damages[i][chosen[i]] for i in rest) + (taken.damage if taken else 0)
        return (cost, damage) if damage <= budget else None

    found = choose_options(costs, damages, float(budget), groups)
    taken = next((groups[-1 - i] for i in found if i < 0), None)
    got = allowed(tuple(max(i, 0) for i in found), taken)
    assert got is not None
    every = itertools.product(itertools.product(*map(range, map(len, costs))), [None, *groups])
    assert got[0] == min(made[0] for at, group in every if (made := allowed(at, group)))


def joint(places: tuple[int, ...], gain: float, damage: float) -> Joint:
    option = Option(recipes.Exact(compute="bfloat16"), seconds=6e-6, nbytes=50, damage=1e-6)
    names = tuple(map(str, places))
    made = Joint(places, names, (option,) * len(places), gain, damage=damage)
    return dataclasses.replace(made, drop=damage**0.5, change=damage**0.5)


def test_a_recipe_takes_a_chain_as_one(monkeypatch):
    """Five layers gain more together than the rest of the budget gives one by one."""
    made = search_of(monkeypatch, 1.0, lambda config, names: 300e-6 - 1e-6 * len(names))
    made.joints = [joint((3, 4, 5, 6, 7), 45e-6, 20e-6)]
    made.joint_scales = dict.fromkeys(made.joints, 1.0)
    made.run(0.005, lambda what: None)
    [chain] = made.joints
    assert made.taken(chain, made.chosen)
    assert {o.chain for o in made.chosen[3:8]} == {"3 to 7"}
    assert all(not o.chain for o in (*made.chosen[:3], *made.chosen[8:]))
    exact = [options[0] for options in made.found]
    assert sum(o.seconds for o in made.chosen[3:8]) == pytest.approx(chain.seconds(exact))
    whole = made.scaled([*exact[:3], *made.shared(chain), *exact[8:]])
    assert whole == pytest.approx(300e-6 - 45e-6)


class Clock:
    """A measurer whose model is faster by 3 us for each pair of look-ups."""

    def __init__(self, model: nn.Module, x: torch.Tensor) -> None:
        self.model, self.x, self.fitted = model, x, []
        self.example = (x[:4],)

    def whole(self) -> Speed:
        return Speed(40e-6, 1)

    def stand_in(self, recipe: Any) -> nn.Module:
        return lutcc.convert(self.model, dict.fromkeys(recipe, LOOK_UP), self.x)

    def in_place(self, recipe: Any) -> float:
        return 40e-6 - 3e-6 * (len(recipe) - 1)

    def effect_together(self, layers: Any, configs: Any) -> dict[str, Any]:
        self.fitted.append((tuple(layer.name for layer in layers), configs))
        return {"drop": 0.1, "change": 0.2, "damage": 0.04, "errors": [0.1] * len(layers)}


def test_chains_are_measured_where_they_may_be_taken():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 16)).eval()
    x = torch.randn(300, 16)
    layers = [Layer(n, m, 1, x[:4]) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    slow = [Option(c, seconds=12e-6, skipped="not faster") for c in look_ups(16)]
    found = [[Option(EXACT, seconds=10e-6), *slow] for _ in layers]
    found[2][4] = Option(found[2][4].config, problem="no")
    clock: Any = Clock(model, x)
    skipping = Skipping("time", 0.2, "error")
    made = measure_joints(clock, layers, found, look_ups, skipping, lambda what: None)
    at = [(j.names, j.label) for j in made]
    assert at.count((("0", "2", "3"), "maddness C=2")) == 1
    assert (("0", "2"), "maddness C=2 K=64") in at
    assert (("2", "3"), "maddness C=2 K=64") not in at
    assert all(j.gain == pytest.approx(3e-6 * (len(j.names) - 1)) for j in made)
    assert all(j.measured for j in made)
    assert len(clock.fitted) == len(made) == 3 * 3 + 1
    strict, clock.fitted = Skipping("time", 0.02, "error"), []
    made = measure_joints(clock, layers, found, look_ups, strict, lambda what: None)
    assert len(clock.fitted) == 2  # the coarsest of each shape: all others are hopeless, too
    assert [j.skipped for j in made].count("") == 2
    assert all("far beyond" in j.skipped for j in made if not j.measured)
    far = Option(look_ups(16)[0], seconds=12e-6, drop=5.0, damage=25.0)
    found[1][1] = far  # what is coarser still than a measured look-up that is far too coarse
    assert measure_joints(clock, layers, found, look_ups, skipping, lambda what: None) == []


def test_a_plan_weighs_chains(monkeypatch, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    x = torch.randn(200, 3) @ torch.randn(3, 24)
    monkeypatch.setattr("lutcc.planning.speed.TOTAL", 0.3)
    monkeypatch.setattr("lutcc.planning.joining.GAIN", 1e9)  # whatever the clock says of so little
    one = recipes.Maddness(ncodebooks=6, prototypes="kmeans")
    options = {"measure": "error", "rows": 16, "target": "avx2", "cache": tmp_path / "kept.json"}
    plan = lutcc.plan(model, x, max_drop="90%", candidates=[one], **options)
    [chain] = plan.chains
    assert (chain.names, chain.choice) == (("0", "2"), "maddness C=6")
    assert chain.drop is not None
    data = lutcc.planning.calibration.read_calibration(model, x, rows=16)  # pyright: ignore[reportAttributeAccessIssue]
    converted = lutcc.convert(model, {"*": one}, data.given)
    assert chain.drop == Judge(model, data, "error").drop(converted, "choose").drop
    assert plan.to_dict()["chains"][0]["seconds"] == chain.seconds
    together = all(layer.chosen.config == one for layer in plan.layers)
    assert chain.taken == together
    if chain.taken:
        assert all("stay integers" in layer.reason for layer in plan.layers)
    again = lutcc.plan(model, x, max_drop="90%", candidates=[one], **options)  # of what is kept
    assert [chain.drop for chain in again.chains] == [chain.drop]
