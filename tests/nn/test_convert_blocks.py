"""lutcc.convert with LookupFFN: which blocks it finds, what it leaves, distilled or afresh."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import lutcc
from lutcc.errors import ConvertError, InputError
from lutcc.nn import LookupFFN, MaddnessLinear
from lutcc.nn.conversion import ConversionReport, block_seed
from lutcc.nn.feed_forward import find_feed_forward
from lutcc.recipes import Exact, Maddness
from lutcc.recipes import LookupFFN as Recipe

SMALL = Recipe(num_tables=4, code_length=4, block_size=8, steps=6)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(16, 24, bias=False), nn.Linear(16, 24, bias=False)
        self.down = nn.Linear(24, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Residual(nn.Module):
    """Adds its input: only the block inside may be replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16), nn.Dropout(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.net(x)


class Mixer(nn.Module):
    """Two Linear layers, but tokens are mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x)).mean(-2, keepdim=True).expand(*x.shape[:-1], 32))


class Intermediate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.intermediate_act_fn = nn.Linear(16, 32), nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.intermediate_act_fn(self.dense(x))


class Output(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.dropout, self.norm = nn.Linear(32, 16), nn.Dropout(0.1), nn.LayerNorm(16)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.norm(self.dropout(self.dense(x)) + residual)


class BertLayer(nn.Module):
    """The names that the BERT family gives to its feed-forward block."""

    def __init__(self) -> None:
        super().__init__()
        self.intermediate, self.output = Intermediate(), Output()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.intermediate(x), x)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(8, 16)
        self.layers = nn.ModuleList([Residual(), Gated(), Mixer()])
        self.head = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def inputs(count: int = 60) -> torch.Tensor:
    return torch.randn(count, 5, 8, generator=torch.Generator().manual_seed(1))


def encoder(norm_first: bool = False, layers: int = 2) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        16, 2, 32, dropout=0.3, activation="gelu", batch_first=True, norm_first=norm_first
    )
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=not norm_first)


def report_of(model: nn.Module) -> ConversionReport:
    report = model.conversion_report
    assert isinstance(report, ConversionReport)
    return report


def at(model: nn.Module, name: str) -> Any:
    return model.get_submodule(name)


def test_what_is_a_feed_forward_block() -> None:
    linear, act = nn.Linear, nn.GELU
    yes = [
        nn.Sequential(linear(4, 8), act(), linear(8, 3)),
        nn.Sequential(linear(4, 8), act(), nn.Dropout(), linear(8, 4), nn.Dropout()),
        nn.Sequential(nn.Sequential(linear(4, 8), nn.ReLU()), linear(8, 4)),
        Gated(),
        BertLayer(),
        encoder().layers[0],
        nn.TransformerDecoderLayer(16, 2, 32),
    ]
    no = [
        linear(4, 4),
        nn.Sequential(linear(4, 8), act()),
        nn.Sequential(linear(4, 8), act(), linear(8, 8), act(), linear(8, 4)),
        nn.Sequential(nn.LayerNorm(4), linear(4, 8), act(), linear(8, 4)),
        nn.Sequential(linear(4, 8), act(), linear(8, 4), act()),
        nn.Sequential(act(), linear(4, 8), act(), linear(8, 4)),
        nn.Sequential(linear(4, 8), linear(7, 4)),
        Residual(),
        Mixer(),
        nn.MultiheadAttention(16, 2),
        nn.ModuleList([linear(4, 8), linear(8, 4)]),
    ]
    assert [find_feed_forward(m) is not None for m in yes] == [True] * len(yes)
    assert [find_feed_forward(m) is not None for m in no] == [False] * len(no)
    for module in (*yes, *no):
        assert module.training
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


@pytest.fixture
def same_bits() -> Iterator[None]:
    """Compute by torch alone: when a kernel takes over hangs on time, and its last bits differ."""
    before = lutcc.ops.get_compilation()
    lutcc.ops.set_compilation("never")
    yield
    lutcc.ops.set_compilation(before)


def test_blocks_are_distilled_and_the_rest_stays(same_bits: None) -> None:
    model, x = Model(), inputs()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen: list[tuple[int, int, str]] = []
    converted = lutcc.convert(
        model, {"layers.*": SMALL}, x, progress=lambda *args: seen.append(args)
    )
    assert seen == [(0, 2, "layers.0.net"), (1, 2, "layers.1"), (2, 2, "")]
    assert isinstance(at(converted, "layers.0.net"), LookupFFN)
    assert isinstance(at(converted, "layers.1"), LookupFFN)
    assert isinstance(at(converted, "layers.2"), Mixer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m.training for m in converted.modules())
    first, second = report_of(converted).layers
    assert (first.method, first.in_features, first.out_features) == ("lookup_ffn", 16, 16)
    assert (first.ncodebooks, first.nprototypes, first.rows) == (4, 16, 300)
    assert first.table_bytes == 4 * 16 * 16 * 4
    assert first.weight_bytes == 4 * (16 * 32 + 32 + 32 * 16 + 16)
    assert first.relative_error is not None
    assert 0 < first.relative_error < 1.1
    assert "mean output" in first.note
    # The second is distilled on what the converted first gives it.
    h = model.embed(x)
    h = (h + at(converted, "layers.0.net")(h)).detach()
    expected = LookupFFN.from_ffn(
        model.layers[1],
        h,
        seed=block_seed("layers.1", SMALL),
        **SMALL.layer_options(),
        **SMALL.distillation_options(),
    )
    assert expected.distillation is not None
    assert torch.equal(at(converted, "layers.1").tables, expected.tables)
    assert second.relative_error == expected.distillation.relative_error


def test_without_calibration_blocks_start_afresh_and_can_be_trained() -> None:
    recipe = {"layers.*": Recipe(num_tables=4, code_length=4, table_dtype="int8"), "head": Exact()}
    with pytest.raises(ConvertError, match="'head' matches only Sequential"):
        lutcc.convert(Model(), recipe)
    converted = lutcc.convert(Model(), {"layers.*": recipe["layers.*"]})
    again = lutcc.convert(Model(), {"layers.*": recipe["layers.*"]})
    block, twin = (at(m, "layers.1") for m in (converted, again))
    assert isinstance(block, LookupFFN)
    assert isinstance(twin, LookupFFN)
    assert torch.equal(block.tables, twin.tables)
    first = at(converted, "layers.0.net")
    assert not torch.equal(block.tables, first.get_parameter("tables"))
    report = report_of(converted).layers[0]
    assert (report.relative_error, report.rows) == (None, 0)
    assert "train it" in str(converted.conversion_report)
    assert json.loads(json.dumps(report.note)) == "starts afresh: train it"
    converted.train()
    converted(inputs()).square().sum().backward()
    assert block.tables.grad is not None
    with pytest.raises(ConvertError, match="calibration is None"):
        lutcc.convert(Model(), {"layers.*": SMALL, "embed": Maddness(ncodebooks=2)})


@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_layers_keep_working_without_their_fused_path(norm_first: bool) -> None:
    model = encoder(norm_first)
    x = torch.randn(12, 7, 16, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(12, 7, dtype=torch.bool)
    mask[:, 5:] = True
    converted = lutcc.convert(model, {"layers.*": SMALL}, x)
    assert torch.backends.mha.get_fastpath_enabled()
    for layer in at(converted, "layers"):
        assert isinstance(layer.linear1, LookupFFN)
        assert isinstance(layer.linear2, nn.Identity)

    def plain(layer: Any, h: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
        def attend(q: torch.Tensor) -> torch.Tensor:
            return layer.self_attn(q, q, q, key_padding_mask=padding, need_weights=False)[0]

        if norm_first:
            h = h + attend(layer.norm1(h))
            return h + layer.linear1(layer.norm2(h))
        h = layer.norm1(h + attend(h))
        return layer.norm2(h + layer.linear1(h))

    for padding in (None, mask):
        for context in (torch.no_grad(), torch.enable_grad()):
            with context:
                y = converted(x, src_key_padding_mask=padding)
                expected = x
                for layer in at(converted, "layers"):
                    expected = plain(layer, expected, padding)
                torch.testing.assert_close(y[:, :5], expected[:, :5], rtol=1e-4, atol=1e-5)
    converted.train()(x).sum().backward()
    loaded = lutcc.convert(encoder(norm_first), {"layers.*": SMALL})
    loaded.load_state_dict(converted.state_dict())
    torch.testing.assert_close(loaded(x), converted.eval()(x))


def test_decoder_and_bert_layers() -> None:
    decoder = nn.TransformerDecoderLayer(16, 2, 32, batch_first=True)
    converted = lutcc.convert(
        decoder, {"*": SMALL}, [(torch.randn(9, 4, 16), torch.randn(9, 3, 16))]
    )
    assert isinstance(at(converted, "linear1"), LookupFFN)
    assert converted(torch.randn(2, 4, 16), torch.randn(2, 3, 16)).shape == (2, 4, 16)
    torch.manual_seed(0)
    bert = nn.Sequential(BertLayer(), BertLayer())
    x = torch.randn(90, 16)
    converted = lutcc.convert(bert, {"1": SMALL}, x)
    exact = bert.eval()
    h, last = exact[0](x), at(converted, "1")
    expected = LookupFFN.from_ffn(
        lambda rows: at(exact, "1.output.dense")(at(exact, "1.intermediate")(rows)),
        h,
        seed=block_seed("1", SMALL),
        **SMALL.layer_options(),
        **SMALL.distillation_options(),
    )
    torch.testing.assert_close(converted(x), last.output.norm(h + expected(h)))
    assert not [m for m in last.modules() if type(m) is nn.Linear]
    assert isinstance(at(converted, "0.intermediate.dense"), nn.Linear)


def test_the_last_pattern_counts_for_blocks_and_their_layers() -> None:
    x = inputs()
    both = lutcc.convert(
        Model(), {"*": Maddness(ncodebooks=4), "layers.0.*": SMALL, "layers.2.*": Exact()}, x
    )
    assert isinstance(at(both, "embed"), MaddnessLinear)
    assert isinstance(at(both, "layers.0.net"), LookupFFN)
    assert isinstance(at(both, "layers.1.gate"), MaddnessLinear)
    assert isinstance(at(both, "layers.2.a"), nn.Linear)
    spared = lutcc.convert(Model(), {"layers.*": SMALL, "layers.1": Exact()}, x)
    assert isinstance(at(spared, "layers.1"), Gated)
    report = report_of(spared).layers[1]
    assert (report.name, report.method, report.in_features) == ("layers.1", "exact", 16)
    assert report.weight_bytes == 4 * 3 * 16 * 24
    one = lutcc.convert(Model(), {"layers.*": SMALL, "layers.1.up": Maddness(ncodebooks=4)}, x)
    assert isinstance(at(one, "layers.1.up"), MaddnessLinear)
    assert isinstance(at(one, "layers.1.down"), nn.Linear)


def test_patterns_that_match_no_block_are_explained() -> None:
    for pattern, message in [
        ("layers.2", "matches only Mixer, which is no feed-forward block"),
        ("embed", "matches only Linear, which is no feed-forward block"),
        ("layers.0", "matches only Residual"),
        ("layer.1", "no layer of the model is called"),
    ]:
        with pytest.raises(ConvertError, match=message) as caught:
            lutcc.convert(Model(), {pattern: SMALL}, inputs())
        assert caught.value.where == f"recipe[{pattern}]"
        assert "layers.1" in str(caught.value.fix)
    with pytest.raises(ConvertError, match="NaN") as caught:
        lutcc.convert(Model(), {"layers.1": SMALL}, torch.full((3, 5, 8), torch.nan))
    assert caught.value.where == "layer 'layers.1'"
    with pytest.raises(InputError, match=r"1\.\.16"):
        Recipe(code_length=20)


def test_recipe_file_and_shared_blocks(tmp_path: Any) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        '["layers.*"]\nmethod = "lookup_ffn"\nnum_tables = 3\ncode_length = 2\nsteps = 2\n'
        'projection = "dense"\ntable_dtype = "bfloat16"\n',
        encoding="utf-8",
    )
    model = Model()
    model.layers[2] = model.layers[1]
    converted = lutcc.convert(model, path, inputs())
    block = at(converted, "layers.1")
    assert block is at(converted, "layers.2")
    assert isinstance(block, LookupFFN)
    assert (block.num_tables, block.table_dtype) == (3, "bfloat16")
    assert len(report_of(converted).layers) == 2
    whole = lutcc.convert(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), {"*": SMALL})
    assert isinstance(whole, LookupFFN)
