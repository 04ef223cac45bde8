"""Plans of an MLP and a small CNN: what is chosen, why, and that it holds."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tomllib

import numpy as np
import pytest
import torch

import lutcc
from lutcc import recipes
from lutcc.cli.plan import summary
from lutcc.convert_model import ConversionReport
from lutcc.errors import InputError
from lutcc.planning import LayerPlan, Option, choose_options, measuring
from lutcc.planning.calibration import read_calibration
from lutcc.planning.figure import draw
from lutcc.planning.layers import find_layers, look_ups_of
from lutcc.planning.options import EXACT
from lutcc.planning.reasons import why
from tests.plan.support import CANDIDATES, Made


def test_every_option_is_measured(made: Made):
    assert [layer.name for layer in made.plan.layers] == ["0", "2"]
    assert [layer.shape for layer in made.plan.layers] == ["64 x 64 x 24", "64 x 24 x 10"]
    for layer in made.plan.layers:
        assert [option.config for option in layer.options] == [EXACT, *CANDIDATES]
        for option in layer.options:
            assert option.problem == ""
            assert 0 < option.seconds < 1
            assert option.nbytes > 0
        assert layer.exact.error == layer.exact.drop == 0
        for option in layer.options[1:]:
            if option.skipped:
                assert option.skipped == "not smaller than the exact layer"
                assert option.nbytes >= 0.97 * layer.exact.nbytes
                assert option.to_dict()["error"] is None
            else:
                assert 0 < option.error < 0.8
                assert 0 <= option.drop < 0.9
                assert option.damage >= option.drop


def test_the_drop_is_that_of_held_out_rows(made: Made, mlp, rows):
    plan = made.plan
    data = read_calibration(mlp, rows)
    held_out = torch.cat([args[0] for args, _ in data.check.batches])
    assert len(held_out) == plan.checked_rows
    with torch.no_grad():
        changed = mlp(held_out).argmax(1) != plan.model(held_out).argmax(1)
    assert plan.measure == "agreement"
    assert plan.drop == pytest.approx(float(changed.double().mean()))
    assert plan.drop <= plan.max_drop == 0.3


def test_weights_get_smaller_as_predicted(made: Made):
    plan = made.plan
    assert all(isinstance(layer.chosen.config, recipes.Codebook) for layer in plan.layers)
    assert all("x smaller than exact" in layer.reason for layer in plan.layers)
    assert plan.measured_bytes == plan.predicted_bytes < plan.exact_bytes / 2
    assert plan.measured_seconds is not None
    assert plan.miss == pytest.approx(plan.predicted_seconds / plan.measured_seconds - 1)


def test_the_chosen_recipe_is_timed_whole(made: Made):
    plan, facts = made.plan, made.plan.to_dict()
    assert plan.timed_whole
    assert plan.scaled_seconds > 0
    assert facts["timed_whole"] is facts["tried"][-1]["timed_whole"] is True
    assert facts["scaled_seconds"] == plan.tried[-1].scaled_seconds
    assert facts["predicted_seconds"] == plan.tried[-1].seconds
    assert plan.toml().splitlines()[2].startswith("# timed ")
    assert "timed whole; layers promised" in summary(plan)[1]
    assert "timed whole" not in summary(dataclasses.replace(plan, timed_whole=False))[1]


def test_rounding_is_nothing_beside_the_layers(made: Made):
    layers = sum(layer.exact.seconds for layer in made.plan.layers)
    whole = dataclasses.replace(made.plan, exact_seconds=layers * (1 + 1e-12))
    assert whole.rest_seconds == 0
    whole = dataclasses.replace(made.plan, exact_seconds=layers * 1.5)
    assert whole.rest_seconds == pytest.approx(layers / 2)


def test_the_front_trades_error_for_size(made: Made):
    front = made.plan.front
    assert front[0].labels == ("exact", "exact")
    assert len(front) > 1
    for before, after in itertools.pairwise(front):
        assert after.damage > before.damage
        assert after.nbytes < before.nbytes


def test_the_recipe_is_read_back_and_converts(made: Made, mlp, rows, tmp_path):
    path = made.plan.write(tmp_path / "recipe.toml")
    assert recipes.read_recipe(path) == made.plan.recipe
    assert set(tomllib.loads(path.read_text())) == {"0", "2"}
    converted = lutcc.convert(mlp, path, rows)
    report = converted.conversion_report
    assert isinstance(report, ConversionReport)
    assert [layer.method for layer in report.layers] == ["codebook", "codebook"]


def test_names_and_texts_survive_toml(made: Made, tmp_path):
    config = recipes.Maddness(ncodebooks=3, ridge_lambda=0.5, encoder="tree", max_rows=9)
    odd = LayerPlan('a.b "c"', "", Option(config), (Option(EXACT),), "two\nlines")
    plan = dataclasses.replace(made.plan, layers=(odd, *made.plan.layers))
    assert recipes.read_recipe(plan.write(tmp_path / "r.toml")) == plan.recipe


def test_json_and_picture(made: Made, tmp_path):
    facts = json.loads(json.dumps(made.plan.to_dict()))
    assert facts["layers"][0]["choice"] == "codebook 4x"
    assert facts["tried"][-1]["drop"] == made.plan.drop
    draw(made.plan, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes()[1:4] == b"PNG"


def test_another_budget_measures_nothing_again(made: Made, mlp, rows, monkeypatch):
    """No budget: everything stays exact, and the file is all that is needed for the layers."""

    def refuse(*args, **kwargs):
        raise AssertionError("measured again")

    monkeypatch.setattr(measuring, "convert_model", refuse)
    compiled = []
    real = measuring.compiled
    monkeypatch.setattr(measuring, "compiled", lambda *a: compiled.append(a) or real(*a))
    plan = lutcc.plan(
        mlp, rows, max_drop=0, objective="size", candidates=CANDIDATES, cache=made.cache
    )
    assert len(compiled) == 2  # the converted model, and the exact one beside which it is timed
    assert plan.drop == 0
    assert [layer.chosen.config for layer in plan.layers] == [EXACT, EXACT]
    assert plan.predicted_seconds == plan.exact_seconds > 0
    for new, old in zip(plan.layers, made.plan.layers, strict=True):
        for one, other in zip(new.options, old.options, strict=True):
            paced = dataclasses.replace(one, seconds=other.seconds)
            assert paced == other
            assert one.seconds > 0
        assert "exact" in new.reason or "beyond the budget" in new.reason


@pytest.mark.thorough
def test_an_interrupted_plan_goes_on(rows, tmp_path, monkeypatch):
    """Stopped in its second candidate, it times nothing and fits no first one again."""
    model, cache = torch.nn.Linear(64, 40).eval(), tmp_path / "r.plan.json"
    lookups, codebook = CANDIDATES
    options = {"max_drop": 0.3, "objective": "size", "candidates": CANDIDATES, "cache": cache}
    real, told = measuring.convert_model, []

    def stop(*args, **kwargs):
        if "" in args[1] and told:
            raise KeyboardInterrupt
        told.extend(args[1].values() if "" in args[1] else ())
        return real(*args, **kwargs)

    monkeypatch.setattr(measuring, "convert_model", stop)
    with pytest.raises(KeyboardInterrupt):
        lutcc.plan(model, rows, **options)
    assert told == [codebook]
    kept = json.loads(cache.read_text())["found"]
    assert [key.split("\n")[0] for key in kept] == ["model", "speed", "effect"]

    def again(*args, **kwargs):
        told.append(args[1])
        return real(*args, **kwargs)

    told.clear()
    monkeypatch.setattr(measuring, "convert_model", again)
    plan = lutcc.plan(model, rows, **options)
    assert told[0] == {"": lookups}
    assert plan.recipe.keys() == {""}
    kept = json.loads(cache.read_text())["found"]
    assert [key.split("\n")[0] for key in kept][:4] == ["model", "speed", "effect", "effect"]


def test_measurements_of_another_plan_are_refused(made: Made, mlp, rows):
    with pytest.raises(InputError, match=r"another calibration\b(.|\n)*--fresh"):
        lutcc.plan(mlp, rows[:200], max_drop=0.3, candidates=CANDIDATES, cache=made.cache)
    changed = torch.nn.Sequential(*mlp[:2], torch.nn.Linear(24, 10))
    with pytest.raises(InputError, match="another model"):
        lutcc.plan(changed, rows, max_drop=0.3, candidates=CANDIDATES, cache=made.cache)
    made.cache.with_name("bad.json").write_text("{}")
    with pytest.raises(InputError, match="no measurements of a plan"):
        lutcc.plan(mlp, rows, max_drop=0.3, cache=made.cache.with_name("bad.json"))


def test_a_cnn_within_its_budget():
    """A grouped convolution cannot become look-ups, and a layer that is never called stays."""
    torch.manual_seed(0)

    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Conv2d(1, 8, 3, padding=1, stride=2)
            self.grouped = torch.nn.Conv2d(8, 8, 3, groups=8)
            self.head = torch.nn.Linear(32, 10)
            self.idle = torch.nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.grouped(self.first(x.unflatten(1, (1, 8, 8))).relu()).relu()
            return self.head(x.flatten(1))

    data = lutcc.data.digits.load()
    plan = lutcc.plan(
        Small().eval(),
        data.test_x,
        max_drop="5%",
        labels=data.test_y,
        candidates=[recipes.Maddness(ncodebooks=9)],
        rows=32,
    )
    first, grouped, head, idle = plan.layers
    assert plan.measure == "accuracy"
    assert plan.drop <= 0.05
    assert first.shape == "32x1x8x8, 3x3 to 8"
    assert first.options[1].error < 0.5
    assert "groups" in grouped.options[1].problem
    assert grouped.reason.startswith("nothing else is possible: maddness C=9")
    assert head.shape == "32 x 32 x 10"
    assert idle.reason == "the model never calls it on the calibration data"
    assert idle.chosen.config == grouped.chosen.config == EXACT
    assert plan.measured_seconds is not None


def test_look_ups_stay_as_they_are():
    ffn = lutcc.nn.LookupFFN(16, 16, num_tables=4, code_length=4, projection="dense")
    model = torch.nn.Sequential(ffn, torch.nn.Linear(16, 3))
    assert look_ups_of(model) == {"0": "LookupFFN"}
    [layer] = find_layers(model, ((torch.rand(5, 16),), {}))
    assert (layer.name, layer.calls, layer.shape) == ("1", 1, "5 x 16 x 3")


def test_reasons():
    exact = Option(EXACT, seconds=2e-6, nbytes=100)
    fast = Option(
        recipes.Maddness(ncodebooks=4), seconds=1e-6, nbytes=130, error=0.3, drop=0.02, damage=0.02
    )
    assert "1.30x larger than exact here" in why([exact, fast], exact, "size", 1.0, 1.0)
    assert why([exact, fast], fast, "time", 1.0, 1.0) == "2.00x faster than exact"
    facts = "maddness C=4 (error 0.3, drop 2.00%)"
    assert why([exact, fast], exact, "time", 0.01, 0.01) == f"{facts} is beyond the budget"
    assert "had to be tightened" in why([exact, fast], exact, "time", 0.01, 0.05)
    assert "goes further in other layers" in why([exact, fast], exact, "time", 0.05, 0.05)
    same = dataclasses.replace(fast, seconds=1.99e-6)
    assert "is hardly faster" in why([exact, same], exact, "time", 0.05, 0.05)


def test_the_plan_is_what_the_program_chooses(made: Made):
    """The numbers of the plan, put into the program again."""
    options = [layer.options for layer in made.plan.layers]
    places = choose_options(
        [[o.cost("size") for o in layer] for layer in options],
        [[o.damage for o in layer] for layer in options],
        0.3,
    )
    chosen = [layer[i] for layer, i in zip(options, places, strict=True)]
    if len(made.plan.tried) == 1:
        assert [layer.chosen for layer in made.plan.layers] == chosen
    assert np.isclose(sum(o.damage for o in chosen), made.plan.tried[0].damage)
