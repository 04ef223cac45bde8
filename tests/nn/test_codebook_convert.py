"""lutcc.convert with recipes.Codebook: what is fitted on what, ties, folding, what stays exact."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lutcc
from lutcc import recipes
from lutcc.errors import ConvertError, RecipeError
from lutcc.fit import WeightCodebooks
from lutcc.nn import CodebookConv2d, CodebookEmbedding, CodebookLinear, MaddnessLinear
from lutcc.nn.conversion import ConversionReport
from lutcc.nn.paired_rows import RowSample, record_inputs
from lutcc.recipes import Codebook, Exact, Maddness

nn = torch.nn


def at(model: nn.Module, name: str) -> Any:
    return model.get_submodule(name)


def report_of(model: nn.Module) -> ConversionReport:
    report = model.conversion_report
    assert isinstance(report, ConversionReport)
    return report


def notes_of(model: nn.Module) -> dict[str, str]:
    return {layer.name: layer.note for layer in report_of(model).layers}


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Dropout(), nn.Linear(48, 40))


def test_inputs_are_the_compressed_models_and_targets_the_exact_ones() -> None:
    model, x = mlp().train(), torch.randn(100, 32)
    config = Codebook(alpha=5, steps=3, batch_size=8, clustering="kmeans")
    converted = lutcc.convert(model, {"*": config}, x.split(30))
    assert model.training
    assert not converted.training
    options = config.estimator_options("codebooks")

    def fit(layer: Any, inputs: torch.Tensor, outputs: torch.Tensor) -> CodebookLinear:
        arrays = [t.detach().numpy() for t in (layer.weight, inputs, outputs, layer.bias)]
        fitted = WeightCodebooks(**options).fit(*arrays)
        return CodebookLinear.from_weights(fitted.weights_, layer.bias, compute="float32")

    first = fit(model[0], x, at(model, "0")(x))
    hidden, exact = torch.relu(first(x)), torch.relu(at(model, "0")(x))
    second = fit(model[3], hidden, at(model, "3")(exact))
    assert torch.equal(at(converted, "0").weight, first.weight)
    assert torch.equal(at(converted, "3").weight, second.weight)
    itself = fit(model[3], hidden, at(model, "3")(hidden))
    assert not torch.equal(itself.weight, second.weight)
    report = report_of(converted).layers[1]
    wanted = at(model, "3")(exact)
    error = (second(hidden) - wanted).norm() / wanted.norm()
    assert report.relative_error == pytest.approx(error.item(), rel=1e-4)
    assert (report.rows, report.note) == (100, "")


def test_samples_of_rows_are_alike_where_streams_are() -> None:
    rows = np.arange(200, dtype=np.float32)[:, None]
    samples = [RowSample(50, seed=3), RowSample(50, seed=3)]
    for sign, sample in zip((1, -1), samples, strict=True):
        for part in np.split(sign * rows, [20, 90, 90]):
            sample.add(len(part), part.__getitem__)
    np.testing.assert_array_equal(samples[0].rows, -samples[1].rows)
    found = samples[0].rows[:, 0]
    assert len(set(found)) == 50
    assert (np.diff(found) > 0).all()
    assert 60 < found.mean() < 140


def test_report_counts_every_bit(tmp_path: Path) -> None:
    model = mlp()
    path = tmp_path / "r.toml"
    path.write_text('["*"]\nmethod = "codebook"\nalpha = 4.0\nlearn = "none"\n')
    converted = lutcc.convert(model, path)
    report = report_of(converted)
    first, second = (at(converted, name).footprint() for name in "03")
    assert [layer.footprint for layer in report.layers] == [first, second]
    assert report.exact_weights == 48 + 40
    bits = first.bits + second.bits + 16 * 88
    assert report.alpha == pytest.approx(16 * (32 * 48 + 48 * 40 + 88) / bits)
    assert f"{first.alpha:6.2f}" in str(report)
    assert f"alpha {report.alpha:.2f} in all" in str(report)
    facts = json.loads(json.dumps(report.to_dict()))
    assert facts["layers"][0]["bits_per_weight"] == pytest.approx(first.bits_per_weight)
    x = torch.randn(20, 32)
    exact = model.eval()(x)
    assert (converted(x) - exact).norm() < 0.2 * exact.norm()
    error = (at(converted, "0").weight - at(model, "0").weight).norm() / at(
        model, "0"
    ).weight.norm()
    assert report.layers[0].relative_error == pytest.approx(error.item(), rel=1e-4)
    assert report.layers[0].rows == 0
    assert "without data" in report.layers[0].note


def test_convolutions_share_scales_and_groups_are_fitted_without_data() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 16, 3, padding="same", padding_mode="circular", bias=False),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 16, 3, groups=2),
        nn.Conv2d(16, 40, 3, stride=2),
        nn.Flatten(),
        nn.Linear(360, 20),
    )
    images = torch.randn(12, 4, 9, 9)
    model(images)
    options: dict[str, Any] = {"learn": "none", "max_rows": 30, "weighting": "activations"}
    books = Codebook(alpha=4, mode="codebooks", **options)
    recipe = {"*": Codebook(alpha=4, **options), "3": books}
    converted = lutcc.convert(model, recipe, images.split(5))
    assert all(isinstance(at(converted, name), CodebookConv2d) for name in "023")
    forms = {name: at(converted, name).form for name in "0235"}
    assert forms["0"]["num_scales"] > 1 == forms["0"]["num_codebooks"]
    assert forms["3"]["num_codebooks"] > 1 == forms["3"]["num_scales"]
    assert forms["5"]["num_codebooks"] > 1
    assert [layer.rows for layer in report_of(converted).layers] == [30, 0, 30, 12]
    exact = model.eval()(images)
    assert (converted(images) - exact).norm() < 0.3 * exact.norm()


class Tied(nn.Module):
    """An embedding and a head that share their weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, 32, padding_idx=0)
        self.between = nn.Linear(32, 32)
        self.head = nn.Linear(32, 50)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.between(self.embedding(ids))))


def test_tied_weights_are_compressed_once_or_not_at_all() -> None:
    model, ids = Tied(), torch.randint(0, 50, (6, 9))
    config = Codebook(alpha=4.5, learn="none", compute="float32")
    converted = lutcc.convert(model, {"*": config}, ids)
    embedding, head = at(converted, "embedding"), at(converted, "head")
    assert isinstance(embedding, CodebookEmbedding)
    assert isinstance(head, CodebookLinear)
    assert head.holder is embedding
    assert notes_of(converted)["head"] == "uses the matrix of 'embedding'"
    assert report_of(converted).exact_weights == 32 + 50
    x = torch.randn(3, 32)
    assert torch.equal(at(copy.deepcopy(converted), "head")(x), head(x))
    dense = torch.nn.functional.linear(x, embedding.weight, head.bias)
    torch.testing.assert_close(head(x), dense, rtol=1e-4, atol=1e-4)
    exact = model(ids)
    assert (converted(ids) - exact).norm() < 0.4 * exact.norm()
    for recipe, left in (
        ({"*": config, "head": Exact()}, "embedding"),
        ({"head": config}, "head"),
    ):
        partly = lutcc.convert(model, recipe, ids)
        assert at(partly, "head").weight is at(partly, "embedding").weight
        assert "left exact: its weights are those of" in notes_of(partly)[left]


def test_orders_are_folded_where_nothing_forbids_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.LayerNorm(256), nn.GELU(), nn.Linear(256, 64))
    with torch.no_grad():
        at(model, "0").weight.mul_(torch.exp(torch.randn(256, 1)))
    x = torch.randn(60, 64)
    errors: dict[str, Any] = {}
    exact, converted = model(x), model
    for reorder in ("never", "fold"):
        config = Codebook(alpha=5, learn="none", reorder=reorder, compute="float32")
        converted = lutcc.convert(model, {"*": config}, x)
        errors[reorder] = report_of(converted).layers[0].relative_error
        assert (converted(x) - exact).norm() < 0.4 * exact.norm()
    assert errors["fold"] < 0.9 * errors["never"]
    assert at(converted, "0").order is None
    notes = notes_of(converted)
    assert notes["0"] == ""
    assert notes["3"] == "rows not folded: the model returns its output"
    untraced = lutcc.convert(model, {"0": Codebook(alpha=5, reorder="fold")})
    assert "no inputs to trace the model with" in notes_of(untraced)["0"]


def test_transformer_layers_leave_torchs_fused_path() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 1).eval()
    x = torch.randn(3, 5, 32)
    config = Codebook(alpha=4.5, learn="none", compute="float32")
    converted = lutcc.convert(model, {"*": config}, x)
    with torch.no_grad():
        exact = model(x)
        assert (converted(x) - exact).norm() < 0.2 * exact.norm()
        mask = torch.zeros(3, 5, dtype=torch.bool)
        mask[0, 3:] = True
        found = converted(x, src_key_padding_mask=mask)
        unmasked = converted(x[:1, :3])
    torch.testing.assert_close(found[:1, :3], unmasked, rtol=1e-4, atol=1e-4)
    notes = notes_of(converted)
    assert "MultiheadAttention is of no kind that is compressed" in notes["layers.0.self_attn"]
    assert "left exact" in notes["layers.0.self_attn.out_proj"]


class Rare(nn.Module):
    """Layers that are too small, never called, or of a kind of their own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.tiny = nn.Linear(32, 32), nn.Linear(32, 1)
        self.idle, self.up = nn.Linear(32, 32), nn.ConvTranspose1d(1, 1, 3)
        self.normed = nn.Embedding(40, 32, max_norm=1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tiny(self.first(x))


def test_what_cannot_be_compressed_stays_exact_or_is_an_error() -> None:
    model, x = Rare(), torch.randn(10, 32)
    converted = lutcc.convert(model, {"*": Codebook(alpha=6, learn="none")}, x)
    assert isinstance(at(converted, "first"), CodebookLinear)
    assert isinstance(at(converted, "idle"), CodebookLinear)
    notes = notes_of(converted)
    assert "left exact: alpha=6 is out of reach for 1 x 32 weights" in notes["tiny"]
    assert "without data" in notes["idle"]
    assert "left exact: max_norm=1.0" in notes["normed"]
    assert "ConvTranspose1d is of no kind" in notes["up"]
    for pattern, alpha, message in (
        ("tiny", 6, r"layer 'tiny': alpha=6 is out of reach"),
        ("normed", 4, r"layer 'normed': max_norm=1.0"),
        ("up", 4, "name Linear, Conv2d or Embedding layers"),
    ):
        with pytest.raises(ConvertError, match=message) as caught:
            lutcc.convert(model, {pattern: Codebook(alpha=alpha)}, x)
        assert caught.value.fix
    with torch.no_grad():
        at(model, "first").weight[3, 4] = torch.nan
    with pytest.raises(ConvertError, match="layer 'first': 1 of the weights are NaN or infinite"):
        lutcc.convert(model, {"*": Codebook(alpha=5)}, None)
    with pytest.raises(ConvertError, match="attention multiplies by that weight"):
        lutcc.convert(nn.MultiheadAttention(8, 2), {"out_proj": Codebook(alpha=4)})


def test_recipes_of_several_methods() -> None:
    model, x = mlp(), torch.randn(100, 32)
    config = Codebook(alpha=4, learn="none")
    mixed = lutcc.convert(model, {"0": Maddness(ncodebooks=8), "3": config}, x)
    kinds = [type(at(mixed, name)) for name in "03"]
    assert kinds == [MaddnessLinear, CodebookLinear]
    with pytest.raises(ConvertError, match="calibration is None"):
        lutcc.convert(model, {"0": Maddness(ncodebooks=8), "3": config})
    whole = lutcc.convert(nn.Linear(32, 32), {"*": config})
    assert isinstance(whole, CodebookLinear)
    for options, message in (
        ({"alpha": 0}, "alpha=0"),
        ({"reorder": "free"}, "'fold'"),
        ({"compute": "int4"}, "'int8'"),
        ({"mode": "both"}, "'codebooks'"),
        ({"beta": 1}, "no option 'beta'"),
    ):
        with pytest.raises(RecipeError, match=message):
            recipes.config_from_dict({"method": "codebook", **options})


@pytest.mark.parametrize("kind", ["linear", "conv", "embedding"])
def test_single_layers(kind: str) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"alpha": 4.5, "learn": "none", "compute": "float32"}
    exact: Any
    layer: Any
    if kind == "linear":
        exact, x = nn.Linear(32, 40), torch.randn(3, 10, 32)
        layer = CodebookLinear.from_linear(exact, x, max_rows=20, **options)
    elif kind == "conv":
        exact, x = nn.Conv2d(4, 24, 3, padding=1), torch.randn(3, 4, 6, 6)
        layer = CodebookConv2d.from_conv(exact, x, max_rows=20, **options)
    else:
        exact, x = nn.Embedding(40, 32, padding_idx=3), torch.randint(0, 40, (50,))
        layer = CodebookEmbedding.from_embedding(exact, **options)
        assert layer.zero_padding
    assert layer.footprint().alpha >= 4.5
    assert (layer(x) - exact(x)).norm() < 0.3 * exact(x).norm()


def test_nothing_after_a_layer_runs_once_its_calls_are_counted() -> None:
    first, last = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    later: list[int] = []
    last.register_forward_hook(lambda *_: later.append(1))
    batches = torch.randn(5, 3, 4)
    run = [partial(lambda x: last(first(first(x))), x) for x in batches]
    sample = record_inputs(first, run, 100, 0)
    assert sample.counts == [3] * 10, "both calls of each batch"
    assert len(later) == 1, "the first batch tells how many there are"
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(sample.rows[:3]), batches[0])
        torch.testing.assert_close(torch.from_numpy(sample.rows[-3:]), first(batches[-1]))
