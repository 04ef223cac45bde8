"""lutcc.convert with recipes.Sampled: what is switched, what stays, what is reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import lutcc
from lutcc import recipes
from lutcc.errors import ConvertError, RecipeError
from lutcc.nn import MaddnessLinear, SampledConv2d, SampledLinear
from lutcc.recipes import Exact, LookupFFN, Maddness, Sampled

nn = torch.nn


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.Flatten(),
        nn.Linear(8 * 16, 10),
        nn.Linear(10, 4),
    )


def at(model: nn.Module, name: str) -> Any:
    return model.get_submodule(name)


def test_one_call_without_calibration_and_every_module_keeps_its_mode() -> None:
    model = network()
    model[1].eval()  # frozen statistics
    converted = lutcc.convert(model, {"*": Sampled(sample_ratio=0.5), "6": Exact()})
    kinds = [type(layer).__name__ for layer in converted.children()]
    assert kinds[0] == kinds[3] == "SampledConv2d"
    assert kinds[5:] == ["SampledLinear", "Linear"]
    assert converted.training
    assert at(converted, "0").training
    assert not at(converted, "1").training
    assert not any(isinstance(layer, SampledLinear) for layer in model)
    assert not lutcc.convert(model.eval(), {"5": Sampled()}).training
    x = torch.randn(3, 2, 6, 6)
    assert torch.equal(converted.eval()(x), model(x))
    converted.train()(x).sum().backward()
    assert all(p.grad is not None for p in converted.parameters())


def test_report_says_k_of_how_many_and_what_is_saved() -> None:
    recipe = {
        "*": Sampled(sample_ratio=0.25),
        "5": Sampled(mode="crs", sample_ratio=0.5, where="backward"),
        "6": Sampled(mode="crs", sample_ratio=0.1, where="weight_gradient"),
    }
    converted = lutcc.convert(network(), recipe)
    report: Any = converted.conversion_report
    found = [(r.name, r.sampled_pairs, r.pairs, round(r.macs_saved, 3)) for r in report.layers]
    assert found == [
        ("0", 1, 2, 0.5), ("3", 1, 4, 0.75), ("5", 5, 10, 0.333), ("6", 0, 0, 0.3),
    ]  # fmt: skip
    assert "topk, forward_backward: 1 of 4, 75% of the multiply-adds saved" in str(report)
    assert "crs, weight_gradient: 0.1 of the rows, 30%" in str(report)
    json.dumps(report.to_dict())


def test_sampled_layers_change_options_and_exact_leaves_them() -> None:
    sampled = lutcc.convert(network(), {"*": Sampled()})
    again = lutcc.convert(sampled, {"5": Sampled(mode="crs"), "0": Exact()})
    assert at(again, "5").options.mode == "crs"
    assert isinstance(at(again, "0"), SampledConv2d)
    assert isinstance(at(again, "6"), SampledLinear)
    assert at(again, "6").options.mode == "topk"


def test_look_ups_and_sampling_in_one_recipe() -> None:
    model = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3))
    recipe = {"*": Maddness(ncodebooks=4), "2": Sampled(), "4": Exact()}
    with pytest.raises(ConvertError, match="calibration is None"):
        lutcc.convert(model, recipe)
    converted = lutcc.convert(model, recipe, torch.rand(200, 12))
    assert isinstance(at(converted, "0"), MaddnessLinear)
    assert isinstance(at(converted, "2"), SampledLinear)
    assert not converted.training  # something was fitted
    # and sampled layers are fitted like any when training is over
    trained = lutcc.convert(converted, {"2": Maddness(ncodebooks=3)}, torch.rand(200, 12))
    assert isinstance(at(trained, "2"), MaddnessLinear)
    block = nn.Sequential(
        nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)), nn.Linear(8, 2)
    )
    afresh = lutcc.convert(block, {"0": LookupFFN(num_tables=2, code_length=3), "1": Sampled()})
    assert [type(layer).__name__ for layer in afresh.children()] == ["LookupFFN", "SampledLinear"]


def test_sampled_blocks_become_look_ups_when_they_are_trained() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    block = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
    sampled = lutcc.convert(nn.ModuleList([block, layer]), {"*": Sampled()})
    recipe = {"*": LookupFFN(num_tables=2, code_length=3)}
    converted = lutcc.convert(sampled, recipe)
    assert type(at(converted, "0")).__name__ == "LookupFFN"
    assert type(at(converted, "1.linear1")).__name__ == "LookupFFN"


def test_toml_files(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('["*"]\nmethod = "sampled"\nmode = "topk_weights"\nsample_ratio = 0.25\n')
    options = at(lutcc.convert(network(), path), "5").options
    assert (options.mode, options.sample_ratio) == ("topk_weights", 0.25)
    config = recipes.config_from_dict({"method": "sampled", "mode": "crs", "where": "backward"})
    assert recipes.config_from_dict(recipes.config_to_dict(config)) == config
    with pytest.raises(RecipeError, match="did you mean 'sample_ratio'"):
        recipes.config_from_dict({"method": "sampled", "ratio": 0.5})
    with pytest.raises(RecipeError, match="above 0"):
        recipes.config_from_dict({"method": "sampled", "sample_ratio": 0})


def test_what_cannot_be_sampled_is_refused_with_its_name() -> None:
    attention = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "last": nn.Linear(8, 8)})
    with pytest.raises(ConvertError, match="attention multiplies by that weight"):
        lutcc.convert(attention, {"attention.out_proj": Sampled()})
    converted = lutcc.convert(attention, {"*": Sampled()})
    assert type(at(converted, "attention.out_proj")).__name__ == "NonDynamicallyQuantizableLinear"
    assert isinstance(at(converted, "last"), SampledLinear)
    with pytest.raises(ConvertError, match="layer '0': group_size=16"):
        lutcc.convert(network(), {"*": Sampled(group_size=16)})
    with pytest.raises(ConvertError, match="run the model once"):
        lutcc.convert(nn.Sequential(nn.LazyLinear(3)), {"*": Sampled()})
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(ConvertError, match="after the conversion"):
        lutcc.convert(normed, {"0": Sampled()})
    with pytest.raises(ConvertError, match="cannot be converted"):
        lutcc.convert(nn.Sequential(nn.ConvTranspose2d(2, 2, 1)), {"*": Sampled()})


def test_a_layer_under_two_names_stays_one_and_tied_weights_stay_tied() -> None:
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict(
        {"a": shared, "b": shared, "e": nn.Embedding(6, 4), "head": nn.Linear(4, 6)}
    )
    at(model, "head").weight = at(model, "e").weight
    converted = lutcc.convert(model, {"*": Sampled()})
    assert at(converted, "a") is at(converted, "b")
    assert at(converted, "head").weight is at(converted, "e").weight


@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_layers_train_sampled_and_evaluate_on_torchs_fused_path(
    norm_first: bool,
) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.0, batch_first=True, norm_first=norm_first
    )
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    converted = lutcc.convert(model, {"*.linear?": Sampled(sample_ratio=0.5)})
    x = torch.randn(3, 5, 8)
    assert not torch.allclose(converted(x), model(x))
    converted(x).sum().backward()
    assert at(converted, "layers.0.linear1").weight.grad is not None
    with torch.no_grad():
        torch.testing.assert_close(converted.eval()(x), model.eval()(x))
