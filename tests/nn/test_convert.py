"""lutcc.convert: order, calibration on the converted prefix, recipes, reports, refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import lutcc
from lutcc import recipes
from lutcc.convert_model import ConversionReport, convert
from lutcc.errors import ConvertError
from lutcc.nn import MaddnessConv2d, MaddnessLinear
from lutcc.recipes import Exact, Maddness


def mlp() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(12, 9),
        torch.nn.ReLU(),
        torch.nn.Linear(9, 8),
        torch.nn.ReLU(),
        torch.nn.Linear(8, 3),
    )


def rows(count: int = 400) -> torch.Tensor:
    return torch.rand(count, 12, generator=torch.Generator().manual_seed(1))


class Backwards(torch.nn.Module):
    """Registers its layers in another order than it runs them, and one that it never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.last = torch.nn.Linear(9, 2)
        self.idle = torch.nn.Linear(3, 3)
        self.first = torch.nn.Linear(12, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x)))


def at(model: torch.nn.Module, name: str) -> Any:
    return model.get_submodule(name)


def report_of(model: torch.nn.Module) -> ConversionReport:
    report = model.conversion_report
    assert isinstance(report, ConversionReport)
    return report


def test_each_layer_is_fitted_on_the_converted_layers_before_it() -> None:
    model, x = mlp(), rows()
    converted = lutcc.convert(model, {"*": Maddness(ncodebooks=6)}, x)
    first = MaddnessLinear.from_linear(at(model, "0"), x, ncodebooks=6, random_state=0)
    second = MaddnessLinear.from_linear(
        at(model, "2"), torch.relu(first(x)), ncodebooks=6, random_state=0
    )
    third = MaddnessLinear.from_linear(
        at(model, "4"), torch.relu(second(torch.relu(first(x)))), ncodebooks=6, random_state=0
    )
    for name, layer in (("0", first), ("2", second), ("4", third)):
        state = converted.get_submodule(name).state_dict()
        assert all(torch.equal(value, state[key]) for key, value in layer.state_dict().items())
    exact_prefix = MaddnessLinear.from_linear(
        at(model, "2"), torch.relu(at(model, "0")(x)), ncodebooks=6, random_state=0
    )
    assert not torch.equal(exact_prefix.lut, second.lut)


def test_model_is_not_changed_and_result_is_in_eval_mode() -> None:
    model = mlp().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    converted = convert(model, {"*": Maddness(ncodebooks=4)}, rows())
    assert [type(layer).__name__ for layer in model] == [
        "Linear",
        "ReLU",
        "Linear",
        "ReLU",
        "Linear",
    ]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not converted.training
    assert not hasattr(model, "conversion_report")
    assert not any(len(m._forward_pre_hooks) for m in converted.modules())


def test_layers_are_converted_in_the_order_of_execution() -> None:
    model, seen = Backwards(), []
    converted = convert(
        model,
        {"*": Maddness(ncodebooks=3), "idle": Exact()},
        rows(),
        progress=lambda done, total, name: seen.append((done, total, name)),
    )
    assert seen == [(0, 3, "first"), (1, 3, "last"), (2, 3, "idle"), (3, 3, "")]
    assert [r.name for r in report_of(converted).layers] == ["first", "last", "idle"]
    assert isinstance(converted.idle, torch.nn.Linear)
    with pytest.raises(ConvertError, match=r"'idle'.*does not call"):
        convert(model, {"*": Maddness(ncodebooks=3)}, rows())


def test_last_matching_pattern_counts() -> None:
    converted = convert(
        mlp(), {"*": Maddness(ncodebooks=4), "[04]": Maddness(ncodebooks=2), "4": Exact()}, rows()
    )
    assert at(converted, "0").ncodebooks == 2
    assert at(converted, "2").ncodebooks == 4
    assert isinstance(at(converted, "4"), torch.nn.Linear)


def test_report_states_size_and_error() -> None:
    model, x = mlp(), rows()
    converted = convert(model, {"*": Maddness(ncodebooks=10), "4": Exact()}, x)
    first, second, exact = report_of(converted).layers
    assert (first.in_features, first.out_features, first.ncodebooks, first.nprototypes) == (
        12,
        9,
        10,
        16,
    )
    assert (first.table_bytes, first.weight_bytes, first.rows) == (
        10 * 16 * 9,
        4 * (12 * 9 + 9),
        400,
    )
    expected = (at(converted, "0")(x) - at(model, "0")(x)).norm() / at(model, "0")(x).norm()
    assert first.relative_error == pytest.approx(expected.item(), rel=1e-4)
    assert first.note == ""
    assert (second.ncodebooks, second.note) == (
        9,
        "ncodebooks lowered from 10 to the layer's 9 columns",
    )
    assert (exact.method, exact.relative_error, exact.table_bytes) == ("exact", 0.0, 0)
    assert json.loads(json.dumps(report_of(converted).to_dict()))["layers"][0]["name"] == "0"
    assert "lowered" in str(report_of(converted))


def test_report_says_where_data_are_few() -> None:
    recipe = {"*": Exact(), "0": Maddness(ncodebooks=3)}
    first = report_of(convert(mlp(), recipe, rows()[:40])).layers[0]
    assert first.note == "40 rows for 48 table rows: calibrate with more data"


def test_report_names_the_partition_that_auto_took() -> None:
    recipe = {"*": Exact(), "0": Maddness(ncodebooks=3, nprototypes=4, partition="auto")}
    first = report_of(convert(mlp(), recipe, rows()[:60])).layers[0]
    assert first.note.removeprefix("partition ") in ("contiguous", "opq", "r2")


CALIBRATIONS: dict[str, Any] = {
    "array": lambda x: x.numpy(),
    "float64 array": lambda x: x.double().numpy(),
    "list of batches": lambda x: list(x.split(150)),
    "generator": lambda x: (batch for batch in x.split(64)),
    "tuples with labels": lambda x: [(batch, torch.zeros(len(batch))) for batch in x.split(100)],
    "keywords": lambda x: {"input": x},
    "loader": lambda x: torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, torch.zeros(len(x))), batch_size=90
    ),
}


@pytest.mark.parametrize("kind", CALIBRATIONS)
def test_calibration_comes_in_many_forms(kind: str) -> None:
    model, x = mlp(), rows()
    expected = convert(model, {"*": Maddness(ncodebooks=4)}, x)
    converted = convert(model, {"*": Maddness(ncodebooks=4)}, CALIBRATIONS[kind](x))
    assert torch.equal(converted(x), expected(x))


def test_convolutions_batch_norm_and_nested_names() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU()
        ),
        torch.nn.Conv2d(4, 4, 3, stride=2, groups=2),
        torch.nn.Flatten(),
        torch.nn.Linear(36, 5),
    )
    images = torch.rand(200, 1, 8, 8)
    model(images)  # fills the running statistics
    recipe = {"0.*": Maddness(ncodebooks=9, nprototypes=64), "3": Maddness(ncodebooks=18)}
    converted = convert(model, recipe, images.split(50))
    assert isinstance(converted.get_submodule("0.0"), MaddnessConv2d)
    assert isinstance(at(converted, "1"), torch.nn.Conv2d)
    exact = model.eval()(images)
    assert (converted(images) - exact).norm() < 0.4 * (exact - exact.mean(0)).norm()
    assert report_of(converted).layers[0].rows == 200 * 64
    thinned = convert(model, {"0.0": Maddness(ncodebooks=3, max_rows=1000)}, images.split(30))
    assert report_of(thinned).layers[0].rows == 1000
    with pytest.raises(ConvertError, match=r"layer '1': groups=2"):
        convert(model, {"1": Maddness(ncodebooks=3)}, images)


def test_a_layer_used_twice_is_fitted_on_both_and_replaced_everywhere() -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Linear(6, 6)
            self.b = self.a

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.tanh(self.a(x)))

    converted = convert(Twice(), {"*": Maddness(ncodebooks=3)}, torch.randn(100, 6))
    assert isinstance(converted.a, MaddnessLinear)
    assert converted.a is converted.b
    assert [r.rows for r in report_of(converted).layers] == [200]


def test_the_model_itself_may_be_the_layer() -> None:
    converted = convert(torch.nn.Linear(6, 2), {"*": Maddness(ncodebooks=3)}, torch.randn(100, 6))
    assert isinstance(converted, MaddnessLinear)
    assert report_of(converted).layers[0].name == ""


def test_exact_recipes_need_no_calibration() -> None:
    model = mlp()
    assert torch.equal(convert(model, {"*": Exact()})(rows()), model.eval()(rows()))


def test_unknown_layers_get_suggestions() -> None:
    model = Backwards()
    with pytest.raises(ConvertError, match="'frist'") as caught:
        convert(model, {"frist": Maddness(ncodebooks=3)}, rows())
    assert "did you mean 'first'" in str(caught.value)
    with pytest.raises(ConvertError, match="no layer of the model is called 'encoder"):
        convert(model, {"first": Maddness(ncodebooks=3), "encoder.*": Exact()}, rows())
    with pytest.raises(ConvertError, match="matches only ReLU"):
        convert(mlp(), {"1": Maddness(ncodebooks=3)}, rows())


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (None, "calibration is None"),
        ([], "no rows"),
        (torch.zeros(0, 12), "no rows"),
        (5, "type int"),
        (["text"], "batch is a str"),
        (torch.zeros(5, 11), r"fails on a calibration batch of shapes \[\(5, 11\)\]"),
        (torch.full((5, 12), torch.nan), r"layer '0': .*NaN"),
    ],
)
def test_bad_calibration_is_explained(calibration: Any, message: str) -> None:
    with pytest.raises(ConvertError, match=message) as caught:
        convert(mlp(), {"*": Maddness(ncodebooks=3)}, calibration)
    assert caught.value.fix


def test_recipe_file(tmp_path: Any) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        '["*"]\nmethod = "maddness"\nncodebooks = 4\n\n["4"]\nmethod = "exact"\n', encoding="utf-8"
    )
    converted = convert(mlp(), path, rows())
    assert at(converted, "0").ncodebooks == 4
    assert isinstance(at(converted, "4"), torch.nn.Linear)
    assert torch.isfinite(converted(rows())).all()
    assert recipes.read_recipe(str(path)) == {"*": Maddness(ncodebooks=4), "4": Exact()}
