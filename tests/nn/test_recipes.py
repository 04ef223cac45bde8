"""Recipes: whitelisted names, suggestions, TOML and JSON."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from lutcc import fit, nn, recipes
from lutcc.errors import InputError, RecipeError
from lutcc.recipes import (
    RECIPES,
    Codebook,
    Exact,
    LookupFFN,
    Maddness,
    Sampled,
    config_from_dict,
    config_to_dict,
    read_recipe,
)


def test_configs_are_frozen_and_round_trip() -> None:
    for config in (
        Maddness(ncodebooks=7, accumulate="mean", ridge_lambda=2.0),
        LookupFFN(num_tables=7, projection="dense", table_dtype="int8", learning_rate=0.5),
        Sampled(mode="crs", sample_ratio=0.3, where="backward"),
        Codebook(alpha=3.9, mode="scales", outliers=0.01, reorder="fold"),
        Exact(),
    ):
        assert config_from_dict(config_to_dict(config)) == config
        assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        Maddness().ncodebooks = 3  # pyright: ignore[reportAttributeAccessIssue]
    expected = {
        "maddness": Maddness,
        "lookup_ffn": LookupFFN,
        "sampled": Sampled,
        "codebook": Codebook,
        "exact": Exact,
    }
    assert expected == RECIPES


def test_recipe_has_the_options_and_defaults_of_the_estimator() -> None:
    parameters = inspect.signature(fit.Maddness).parameters
    ours = {f.name: f.default for f in dataclasses.fields(Maddness)}
    assert ours.pop("random_state") == 0  # a conversion is reproducible unless asked otherwise
    assert ours.pop("max_rows") == 65536
    assert ours.pop("target") == "layer"
    theirs = {
        name: p.default
        for name, p in parameters.items()
        if name not in ("activation", "random_state")
    }
    assert ours == theirs


@pytest.mark.parametrize(
    "options",
    [
        {"ncodebooks": 0},
        {"nprototypes": 20},
        {"encoder": "hash"},
        {"random_state": -1},
        {"max_rows": 0},
        {"target": "model"},
        {"ncodebooks": "4"},
    ],
)
def test_values_are_checked_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Maddness(**options)
    with pytest.raises(RecipeError, match="recipe"):
        config_from_dict({"method": "maddness", **options})


def test_lookup_recipe_has_the_options_and_defaults_of_the_layer() -> None:
    ours = {f.name: f.default for f in dataclasses.fields(LookupFFN)}
    assert ours.pop("random_state") == 0
    theirs = {
        **inspect.signature(nn.LookupFFN).parameters,
        **{
            name: p
            for name, p in inspect.signature(nn.LookupFFN.from_ffn).parameters.items()
            if p.default is not inspect.Parameter.empty
        },
    }
    assert {ours.pop("num_tables"), ours.pop("code_length")} == {128, 8}  # the paper's
    assert ours == {name: theirs[name].default for name in ours}
    config = LookupFFN(num_tables=3, steps=7, random_state=5)
    assert set(config.layer_options()) <= set(inspect.signature(nn.LookupFFN).parameters)
    arguments = set(inspect.signature(nn.LookupFFN.from_ffn).parameters)
    assert set(config.distillation_options()) <= arguments - {"seed"}
    assert config.distillation_options()["steps"] == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"code_length": 17}, "2\\*\\*code_length rows"),
        ({"code_length": 0}, "1..16"),
        ({"num_tables": 0}, "at least 1"),
        ({"num_tables": 2.0}, "at least 1"),
        ({"projection": "bh9"}, "use 'bh8'"),
        ({"projection": "hb4"}, "did you mean 'bh4'"),
        ({"projection": 4}, "use 'dense'"),
        ({"projection": "acdc8", "projection_dtype": "bfloat16"}, "no bfloat16 form"),
        ({"block_size": 48}, "use 32"),
        ({"table_dtype": "uint8"}, "did you mean 'int8'"),
        ({"variant": "relu"}, "'gelu', 'softmax', 'constant'"),
        ({"variant": "constant", "neighbors": 2}, "neighbors=1"),
        ({"neighbors": 10}, "1..9"),
        ({"score_dtype": "bfloat16"}, "table_dtype='bfloat16'"),
        ({"bias": "no"}, "neither true nor false"),
        ({"learning_rate": 0}, "positive"),
        ({"learning_rate": "fast"}, "positive"),
        ({"steps": -1}, "at least 0"),
        ({"synthetic": 1.5}, "between 0 and 1"),
        ({"random_state": -1}, "4294967295"),
    ],
)
def test_lookup_options_are_checked_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        LookupFFN(**options)
    assert caught.value.fix
    with pytest.raises(RecipeError, match="recipe"):
        config_from_dict({"method": "lookup_ffn", **options})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"ncodebooks": 4}, "no 'method'"),
        ({"method": "madness"}, "did you mean 'maddness'"),
        ({"method": 3}, "unknown method 3"),
        ({"method": "maddness", "ncodebook": 4}, "did you mean 'ncodebooks'"),
        ({"method": "exact", "ncodebooks": 4}, "no option 'ncodebooks'"),
        ({"method": "maddness", "__class__": 4}, "no option '__class__'"),
        (4, "config is 4"),
    ],
)
def test_malformed_entries_name_the_place(entry: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        read_recipe({"fc": entry})
    assert caught.value.where == "recipe[fc]"
    assert caught.value.fix


def test_malformed_recipes() -> None:
    for recipe, message in [({}, "empty"), ({3: Exact()}, "not a module name"), (7, "not int")]:
        with pytest.raises(RecipeError, match=message):
            read_recipe(recipe)  # pyright: ignore[reportArgumentType]


def test_files(tmp_path: Path) -> None:
    toml, as_json = tmp_path / "r.toml", tmp_path / "r.json"
    toml.write_text(
        '["encoder.*"]\nmethod = "maddness"\nncodebooks = 4\nridge_lambda = 1.5\n', encoding="utf-8"
    )
    as_json.write_text(
        json.dumps({"encoder.*": {"method": "maddness", "ncodebooks": 4, "ridge_lambda": 1.5}}),
        encoding="utf-8",
    )
    assert (
        read_recipe(toml)
        == read_recipe(str(as_json))
        == {"encoder.*": Maddness(ncodebooks=4, ridge_lambda=1.5)}
    )
    toml.write_text("[encoder.layer]\nmethod = 'exact'\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="quote a name") as caught:
        read_recipe(toml)
    assert '["encoder.layer"]' in str(caught.value)
    toml.write_text("[broken\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="not valid TOML"):
        read_recipe(toml)
    with pytest.raises(RecipeError, match="cannot read"):
        read_recipe(tmp_path / "missing.toml")


def test_module_docstring_shows_a_valid_recipe(tmp_path: Path) -> None:
    assert recipes.__doc__
    example = recipes.__doc__.split("\n\n", 2)[2].rpartition("\n\n")[0]
    (tmp_path / "r.toml").write_text(inspect.cleandoc(example), encoding="utf-8")
    assert read_recipe(tmp_path / "r.toml") == {
        "*": Maddness(ncodebooks=16),
        "layers.*": LookupFFN(num_tables=128),
        "blocks.*": Sampled(mode="topk", sample_ratio=0.5),
        "encoder.*": Codebook(alpha=5.33),
        "head": Exact(compute="int8"),
    }
