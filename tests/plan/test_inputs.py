"""What plans refuse, before anything is compiled; how the calibration is cut and drops are told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import lutcc
from lutcc import recipes
from lutcc.errors import ConvertError, InputError, TargetError
from lutcc.planning import default_candidates, read_max_drop
from lutcc.planning.calibration import read_calibration
from lutcc.planning.candidates import label, settings
from lutcc.planning.drop import Judge

MODEL = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3)).eval()
X = np.random.default_rng(0).normal(size=(100, 6)).astype(np.float32)
NAN = np.where(np.arange(600).reshape(100, 6) == 7, np.nan, X).astype(np.float32)


@pytest.mark.parametrize(
    ("model", "data", "options", "error", "message"),
    [
        (MODEL, X, {"max_drop": "1"}, InputError, "'1' is no percentage"),
        (MODEL, X, {"max_drop": "nan%"}, InputError, "is no percentage"),
        (MODEL, X, {"max_drop": "101%"}, InputError, "is no percentage"),
        (MODEL, X, {"max_drop": -0.1}, InputError, "is no percentage"),
        (MODEL, X, {"max_drop": True}, InputError, "is no percentage"),
        (MODEL, X, {"objective": "speed"}, InputError, "objective='speed' is unknown"),
        (MODEL, X, {"target": "z80"}, TargetError, "no target 'z80'"),
        (MODEL, X, {"target": "avx2,avx512"}, TargetError, "names 2 targets"),
        (MODEL, X, {"measure": "loss"}, InputError, "measure='loss' is unknown"),
        (MODEL, X, {"measure": "accuracy"}, InputError, "there are no labels"),
        (MODEL, X, {"rows": 0}, InputError, "rows=0 is not a number above 0"),
        (MODEL, X, {"labels": np.zeros(99, int)}, InputError, r"not \(100,\) integers"),
        (MODEL, X, {"labels": np.zeros(100)}, InputError, "dtype float64"),
        (MODEL, X, {"labels": np.full(100, 3)}, InputError, "tells 3 classes apart"),
        (MODEL, X, {"candidates": [recipes.LookupFFN()]}, InputError, "no config of single layers"),
        (MODEL, X[:7], {}, InputError, "7 rows cannot be cut"),
        (MODEL, X[:, :5], {}, InputError, r"the model fails on .*\(64, 5\)"),
        (MODEL, NAN, {}, InputError, "NaN or infinite"),
        (MODEL, None, {}, InputError, "it is missing"),
        (MODEL, 5, {}, ConvertError, "calibration of type int"),
        (torch.nn.ReLU(), X, {}, InputError, "no layer to plan for: it consists of ReLU"),
        ("model", X, {}, InputError, "the model is a str"),
    ],
)
def test_bad_input_is_named(model: Any, data: Any, options: dict[str, Any], error, message: str):
    with pytest.raises(error, match=message) as raised:
        lutcc.plan(model, data, **{"max_drop": "1%", **options})
    assert "To mend it" in str(raised.value)


def test_a_target_that_does_not_run_here_is_refused(monkeypatch):
    monkeypatch.setattr("lutcc.runtime.cpu.supported_isas", lambda: ("avx2",))
    with pytest.raises(TargetError, match="level avx512 do not run on this processor"):
        lutcc.plan(MODEL, X, max_drop=0.1, target="avx512")


def test_outputs_that_are_not_finite_are_refused():
    layer = torch.nn.Linear(6, 2)
    torch.nn.init.constant_(layer.weight, float("nan"))
    model = torch.nn.Sequential(layer, torch.nn.LayerNorm(2))
    with pytest.raises(InputError, match=r"output is NaN .*: so is its weight 0\.weight"):
        lutcc.plan(model, X, max_drop="1%")


@pytest.mark.parametrize(
    ("text", "part"), [("1%", 0.01), (" 0.5 % ", 0.005), (".5%", 0.005), ("100%", 1.0), (0, 0.0)]
)
def test_percentages(text, part):
    assert read_max_drop(text) == pytest.approx(part)


def test_rows_go_to_one_part_each_with_their_labels():
    labels = np.arange(100)
    data = read_calibration(MODEL, X, labels)
    parts = (data.fit, data.choose, data.check)
    assert sorted(np.concatenate([p.labels for p in parts if p.labels is not None])) == list(labels)
    for part in parts:
        rows = torch.cat([args[0] for args, _ in part.batches]).numpy()
        np.testing.assert_array_equal(rows, X[part.labels])
    assert 40 <= data.fit.rows <= 60
    assert data.check.rows >= 20
    assert data.rows == len(data.example[0][0]) == 64


def test_batches_are_kept_and_the_timed_one_can_be_another():
    batches = [(X[i : i + 10], i) for i in range(0, 100, 10)]
    data = read_calibration(MODEL, batches, rows=25)
    assert [len(args[0]) for args, _ in data.fit.batches] == [10] * 6
    np.testing.assert_array_equal(data.example[0][0][10:20].numpy(), X[:10])
    assert len(data.example[0][0]) == 25
    assert read_calibration(MODEL, batches).rows == 10


class Shifted(torch.nn.Module):
    """Gives scores whose greatest is where the input says, but for some rows."""

    def __init__(self, wrong: int) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        place = x[:, 0].long() + (x[:, 1] < self.wrong)
        return torch.nn.functional.one_hot(place % 3, 3).float()


def test_drops_are_those_of_their_definition():
    """Row i has class i % 3; of every part's rows, those below 10 go wrong."""
    x = np.stack([np.arange(100) % 3, np.arange(100)], 1).astype(np.float32)
    labels = np.arange(100) % 3
    exact, wrong = Shifted(0), Shifted(10)
    data = read_calibration(MODEL, x, labels)
    assert data.check.labels is not None
    rows = torch.cat([args[0] for args, _ in data.check.batches])
    expected = float((rows[:, 1] < 10).float().mean())
    assert expected > 0
    for measure in ("auto", "accuracy", "agreement"):
        drop = Judge(exact, data, measure).drop(wrong, "check")
        assert drop.drop == pytest.approx(expected)
        assert drop.change == pytest.approx((2 * expected) ** 0.5)
        assert drop.cosine == pytest.approx(1 - expected)
    assert Judge(wrong, data, "accuracy").drop(exact, "check").drop == pytest.approx(-expected)
    rising = Judge(wrong, data, "accuracy")
    assert rising.damage(rising.drop(exact, "check")) > 0
    judge = Judge(exact, data, "error")
    error = judge.drop(wrong, "check")
    assert error.drop == error.change
    assert judge.damage(judge.drop(exact, "check")) == 0
    assert judge.expected(2 * judge.damage(error)) == pytest.approx(2**0.5 * error.drop)
    assert judge.expected(judge.limit(0.25)) == 0.25


def test_other_outputs_are_judged_by_their_error():
    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, Any]:
            return {"a": x[:, :1], "b": (x[:, None], x.long())}

    data = read_calibration(MODEL, X)
    judge = Judge(Two(), data)
    assert judge.measure == "error"
    assert judge.drop(Two(), "choose").drop == 0
    with pytest.raises(InputError, match=r"measure='agreement' is for models"):
        Judge(Two(), data, "agreement")
    with pytest.raises(InputError, match="labels are for models"):
        Judge(Two(), read_calibration(MODEL, X, np.zeros(100, int)))


def test_default_candidates_fit_any_layer():
    for columns in (1, 2, 9, 64, 1000):
        found = default_candidates(columns)
        assert len({label(config) for config in found}) == len(found)
        lookups = [config for config in found if isinstance(config, recipes.Maddness)]
        assert lookups
        assert all(1 <= config.ncodebooks <= columns for config in lookups)
        for config in found:
            assert recipes.config_from_dict(settings(config)) == config
