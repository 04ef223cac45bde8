"""Mixed models: torch and the built library agree, with weights kept apart from the code."""

from __future__ import annotations

import os

os.environ.setdefault("TVM_BIND_THREADS", "0")

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lutcc import ir
from lutcc.errors import FrontendError, TargetError
from lutcc.frontend import import_torch
from lutcc.frontend.relax import build_mixed
from lutcc.schedules.x86.isa import ISAS


class Sine(nn.Module):
    """What the IR has no op for."""

    def forward(self, x):
        return torch.sin(x)


@pytest.fixture
def assert_compiled(run_relax):
    """Build a mixed model with lutcc's own kernels and compare it with torch."""

    def check(model, *inputs, atol=2e-5, **options):
        model.eval()
        inputs = [i if isinstance(i, tuple) else (i,) for i in inputs]
        imported = import_torch(model, inputs[0])
        assert imported.kind == "mixed"
        isas = options.get("isas", ("avx2",))
        results = run_relax(imported, inputs, **options)
        with torch.no_grad():
            expected = [model(*i) for i in inputs] * len(isas)
        for result, reference in zip(results, expected, strict=True):
            reference = reference if isinstance(reference, tuple) else (reference,)
            assert len(result) == len(reference)
            for ours, theirs in zip(result, reference, strict=True):
                assert ours.shape == tuple(theirs.shape)
                np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=atol)
        return imported

    return check


def _sine_mlp(inputs=6, hidden=37, outputs=3):
    return nn.Sequential(nn.Linear(inputs, hidden), Sine(), nn.Linear(hidden, outputs))


def test_sine_mlp(assert_compiled):
    assert_compiled(_sine_mlp(), torch.randn(5, 6), torch.randn(1, 6), torch.randn(33, 6))


def test_sine_mlp_on_sequences(assert_compiled):
    assert_compiled(_sine_mlp(), torch.randn(2, 4, 6), torch.randn(1, 4, 6))


@pytest.mark.parametrize("isa", [pytest.param(name, marks=pytest.mark.isa(name)) for name in ISAS])
def test_every_isa_level(assert_compiled, isa):
    assert_compiled(_sine_mlp(), torch.randn(5, 6), isas=(isa,))


def test_frontend_alone(assert_compiled, te_region):
    class Plain(nn.Module):
        """A residual around ops that only Relax has."""

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(16, 32), nn.Linear(32, 16)

        def forward(self, x):
            h = x + self.b(torch.sin(self.a(x)))
            return torch.softmax(h, 1), h.mean(1)

    assert_compiled(Plain(), torch.randn(2, 5, 16), torch.randn(1, 5, 16), compile_region=te_region)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_encoder_layer(assert_compiled, norm_first):
    model = nn.TransformerEncoderLayer(
        16, 2, 32, batch_first=True, activation="gelu", norm_first=norm_first
    )
    assert_compiled(model, torch.randn(2, 5, 16), torch.randn(3, 5, 16))


class _Tokens(nn.Module):
    """Embedding, masked attention, class token, pooling: what a small text model needs."""

    def __init__(self):
        super().__init__()
        self.embed, self.position = nn.Embedding(11, 16), nn.Parameter(torch.randn(1, 6, 16))
        self.qkv, self.out, self.norm = nn.Linear(16, 48), nn.Linear(16, 16), nn.LayerNorm(16)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens):
        x = self.embed(tokens) + self.position
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = self.norm(x + self.out(attended.transpose(1, 2).flatten(2)))
        return self.head(x.mean(1)), torch.softmax(self.head(x[:, 0]), -1)


class _Masked(nn.Module):
    """Attention to what a mask of 0 and 1 lets through, as tokenizers return it."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x, mask):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        seen = mask[:, None, None, :]
        by_flags = F.scaled_dot_product_attention(q, k, v, attn_mask=seen > 0)
        return by_flags, F.scaled_dot_product_attention(q, k, v, attn_mask=(seen - 1) * 3.0)


def test_attention_masks_of_flags_and_of_addends(assert_compiled):
    masks = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]])
    assert_compiled(_Masked(), (torch.randn(2, 5, 8), masks[:2]), (torch.randn(4, 5, 8), masks))


def test_token_model(assert_compiled):
    assert_compiled(_Tokens(), torch.randint(0, 11, (3, 6)), torch.randint(0, 11, (1, 6)))


def test_indices_outside_an_embedding_are_clipped(run_relax, te_region):
    class Look(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(4, 3)

        def forward(self, tokens):
            return self.embed(tokens)

    model = Look().eval()
    imported = import_torch(model, torch.zeros(2, 3, dtype=torch.int64))
    wild = torch.tensor([[0, 3, 10**12], [-7, 1, 2]])
    ((result,),) = run_relax(imported, [(wild,)], compile_region=te_region)
    np.testing.assert_array_equal(result, model(wild.clamp(0, 3)).detach().numpy())


class _Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.point, self.head = nn.Conv2d(6, 5, 1), nn.Linear(5, 4)

    def forward(self, x):
        x = F.max_pool2d(torch.relu(self.bn(self.conv(x))), 2)
        x = F.silu(self.point(self.depthwise(x)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def test_cnn_with_pooling_and_depthwise_layers(assert_compiled):
    imported = assert_compiled(_Pooled(), torch.randn(2, 3, 8, 8), torch.randn(1, 3, 8, 8))
    assert len(imported.regions) == 2, "the max pooling is inside the first"


class _Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(7, 5)

    def forward(self, x, y):
        left, right = self.a(x), self.b(y)
        return torch.sin(left + right), left, torch.softmax(right, 0)


def test_several_inputs_and_outputs(assert_compiled):
    assert_compiled(
        _Two(), (torch.randn(3, 4), torch.randn(3, 7)), (torch.randn(1, 4), torch.randn(1, 7))
    )


def test_no_region_at_all(assert_compiled):
    class Plain(nn.Module):
        def forward(self, x):
            return torch.sin(x)

    imported = assert_compiled(Plain(), torch.randn(2, 9))
    assert imported.regions == ()


def test_static_batch(assert_compiled):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 4)

        def forward(self, x):
            return torch.softmax(self.linear(x.reshape(2, 3, 6)), 1)

    imported = assert_compiled(Fixed(), torch.randn(6, 6))
    assert "fixed at 6" in imported.notes[0]


@pytest.mark.thorough
def test_exported_with_two_open_sizes(assert_compiled, run_relax):
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    dims = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=1)}
    program = torch.export.export(model, (torch.randn(3, 5, 16),), dynamic_shapes=(dims,))
    imported = import_torch(program)
    symbols = [str(d) for d in imported.inputs[0].shape]
    assert symbols[0] == "n"
    assert symbols[1] != "5"
    inputs = [(torch.randn(2, 7, 16),), (torch.randn(1, 1, 16),)]
    for (result,), (x,) in zip(run_relax(imported, inputs), inputs, strict=True):
        np.testing.assert_allclose(result, model(x).detach().numpy(), rtol=1e-4, atol=2e-5)


def test_weights_are_parameters_and_not_code(tmp_path):
    layers = [nn.Linear(128, 2048), Sine(), nn.GroupNorm(8, 2048), nn.Linear(2048, 128)]
    imported = import_torch(nn.Sequential(*layers).eval(), torch.zeros(2, 128))
    build = build_mixed(imported, ["avx2"], tmp_path)
    blobs = {"region0.blob", "region1.blob"}
    assert blobs | {"_2.weight", "_2.bias", "@threads"} == set(build.params)
    assert build.param_order == tuple(build.params)
    weights = 2 * 128 * 2048 * 4
    assert sum(a.nbytes for a in build.params.values()) > weights
    assert build.so_paths["avx2"].stat().st_size < weights / 4
    kernels = build.kernels["avx2"]
    assert [k["stage"].split(".")[0] for k in kernels[:2]] == ["region0", "region1"]
    assert {k["ops"][0] for k in kernels[2:]} == {
        "tir_sin(nx2048) -> nx2048",
        "group_norm(nx2048, 2048, 2048) -> nx2048",
    }
    assert all(k["source"].startswith("default") for k in kernels)
    text = build.module_texts["region0"]
    assert ir.parse(text, constants=imported.regions[0].module.constants)


@pytest.mark.isa("avx512")
def test_libraries_of_all_levels_take_the_same_parameters(assert_compiled):
    model = nn.Sequential(nn.Linear(6, 40), Sine(), nn.GroupNorm(4, 40), nn.Linear(40, 3))
    assert_compiled(model, torch.randn(5, 6), isas=("avx2", "avx512"))


def test_errors():
    whole = import_torch(nn.Linear(4, 2), torch.zeros(2, 4))
    with pytest.raises(FrontendError, match="whole in the IR"):
        build_mixed(whole, ["avx2"], ".")
    mixed = import_torch(_sine_mlp(), torch.zeros(2, 6))
    with pytest.raises(TargetError, match="avx513"):
        build_mixed(mixed, ["avx513"], ".")


def test_op_that_nobody_has_names_the_layer():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.linalg.qr(x)[0]

    imported = import_torch(
        nn.Sequential(nn.Linear(4, 4), Odd()).eval(), torch.zeros(3, 4), dynamic_batch=False
    )
    with pytest.raises(FrontendError) as caught:
        build_mixed(imported, ["avx2"], ".")
    assert "layer '1' (Odd)" in str(caught.value)
    assert "linalg_qr" in caught.value.what
