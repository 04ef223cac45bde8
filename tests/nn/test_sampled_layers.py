"""Sampled layers: what they compute, what they share with dense ones, what they refuse."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch

import lutcc
from lutcc.errors import FrontendError, InputError
from lutcc.nn import SampledConv2d, SampledLinear, exact_layers, sampled_layers

F = torch.nn.functional


def mean_over_draws(call: Any, draws: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard error of what ``call`` gives."""
    values = torch.stack([call() for _ in range(draws)])
    return values.mean(0), values.std(0) / draws**0.5


@pytest.mark.parametrize("mode", ["crs", "bernoulli", "wta_crs"])
@pytest.mark.parametrize("where", ["forward_backward", "backward", "weight_gradient"])
def test_unbiased_modes_give_the_dense_gradients_on_average(mode: str, where: str) -> None:
    torch.manual_seed(0)
    layer = SampledLinear(12, 5, mode=mode, sample_ratio=0.5, where=where)
    x, dy = torch.randn(16, 12, requires_grad=True), torch.randn(16, 5)
    dense = torch.autograd.grad((F.linear(x, layer.weight) * dy).sum(), (x, layer.weight))

    def gradients() -> torch.Tensor:
        return torch.cat(
            [g.flatten() for g in torch.autograd.grad((layer(x) * dy).sum(), (x, layer.weight))]
        )

    mean, error = mean_over_draws(gradients, 100)
    exact = torch.cat([g.flatten() for g in dense])
    # the largest of 250 deviations, whose scale is an estimate
    assert ((mean - exact).abs() <= 6 * error + 1e-5).all()


def test_topk_keeps_the_columns_of_the_largest_products_of_norms() -> None:
    layer = SampledLinear(8, 4, sample_ratio=0.25)
    x = torch.randn(6, 8, requires_grad=True)
    scores = x.norm(dim=0) * layer.weight.norm(dim=0)
    kept = torch.zeros(8)
    kept[scores.topk(2).indices] = 1
    y = layer(x)
    torch.testing.assert_close(y, F.linear(x * kept, layer.weight, layer.bias))
    dx, dw = torch.autograd.grad(y.square().sum(), (x, layer.weight))
    assert (dx[:, kept == 0] == 0).all()
    assert (dw[:, kept == 0] == 0).all()
    assert (dx[:, kept == 1] != 0).all()


def test_forward_only_has_the_gradients_of_an_exact_layer() -> None:
    layer = SampledLinear(8, 4, sample_ratio=0.25, where="forward", bias=False)
    x, dy = torch.randn(6, 8, requires_grad=True), torch.randn(6, 4)
    y = layer(x)
    assert not torch.allclose(y, F.linear(x, layer.weight))
    dx, dw = torch.autograd.grad(y, (x, layer.weight), dy)
    torch.testing.assert_close(dx, dy @ layer.weight)
    torch.testing.assert_close(dw, dy.T @ x)


@pytest.mark.parametrize(
    "geometry",
    [
        {},
        {"stride": 2, "padding": 1},
        {"padding": "same", "dilation": 2},
        {"padding": "same"},
        {"padding": "valid"},
        {"groups": 2, "padding": (1, 2)},
        {"padding": 1, "padding_mode": "reflect"},
        {"padding": "same", "padding_mode": "circular"},
    ],
)
@pytest.mark.parametrize("where", ["forward_backward", "backward"])
def test_convolutions_sample_channels(geometry: dict[str, Any], where: str) -> None:
    torch.manual_seed(1)
    # an even kernel, so that "same" pads the sides differently
    layer = SampledConv2d(8, 6, (3, 2), sample_ratio=0.5, where=where, **geometry)
    dense = layer.to_conv()
    x = torch.randn(3, 8, 7, 9)
    if where == "backward":
        torch.testing.assert_close(layer(x), dense(x))
        layer(x).square().sum().backward()
        assert layer.weight.grad is not None
        assert layer.weight.grad.shape == layer.weight.shape
        return
    layer.observe()
    y = layer(x)
    scores = layer.last_scores
    assert scores is not None
    kept = torch.zeros(8)
    for part in torch.arange(8).chunk(layer.groups):
        kept[part[scores[part].topk(len(part) // 2).indices]] = 1
    torch.testing.assert_close(y, dense(x * kept[:, None, None]))
    assert torch.equal(layer.eval()(x), dense(x))


def test_scores_of_a_1x1_convolution_are_those_of_a_linear_layer() -> None:
    conv, x = SampledConv2d(8, 4, 1), torch.randn(2, 8, 3, 3)
    linear = SampledLinear(8, 4)
    with torch.no_grad():
        linear.weight.copy_(conv.weight[:, :, 0, 0])
    conv.observe()
    linear.observe()
    conv(x)
    linear(x.permute(0, 2, 3, 1))
    assert conv.last_scores is not None
    assert linear.last_scores is not None
    torch.testing.assert_close(conv.last_scores, linear.last_scores)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_state_dict_goes_both_ways_and_evaluation_is_exact_to_the_bit(kind: str) -> None:
    linear = kind == "linear"
    dense: Any = torch.nn.Linear(8, 4) if linear else torch.nn.Conv2d(8, 4, 3)
    layer: Any = SampledLinear(8, 4) if linear else SampledConv2d(8, 4, 3)
    x = torch.randn(5, 8) if linear else torch.randn(2, 8, 5, 5)
    assert list(layer.state_dict()) == list(dense.state_dict())
    layer.load_state_dict(dense.state_dict())
    assert torch.equal(layer.eval()(x), dense(x))
    torch.nn.init.normal_(layer.weight)
    dense.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), dense(x))


def test_all_pairs_are_computed_exactly() -> None:
    x = torch.randn(5, 8)
    for layer in (
        SampledLinear(8, 4, mode="crs", sample_ratio=1),
        SampledLinear(8, 4, sample_ratio=0.1, minimal_k=8),
        SampledLinear(8, 4, sample_ratio=0.5, group_size=8),
    ):
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("where", ["forward_backward", "backward"])
@pytest.mark.parametrize("shape", [(8,), (0, 8), (2, 3, 8), (2, 0, 8), (1, 8)])
def test_any_leading_dimensions(shape: tuple[int, ...], where: str) -> None:
    layer = SampledLinear(8, 4, mode="bernoulli", where=where, seed=3)
    x = torch.randn(shape, requires_grad=True)
    y = layer(x)
    assert y.shape == (*shape[:-1], 4)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert layer.bias.grad is not None
    flat = layer(x.reshape(-1, 8)).reshape(y.shape)
    torch.testing.assert_close(flat, y)


def test_unbatched_and_empty_images() -> None:
    layer = SampledConv2d(8, 4, 3)
    x = torch.randn(8, 5, 5)
    torch.testing.assert_close(layer(x), layer(x[None])[0])
    assert layer(torch.empty(0, 8, 5, 5)).shape == (0, 4, 3, 3)


def test_from_linear_shares_parameters_mode_and_hooks() -> None:
    dense = torch.nn.Linear(8, 4).eval()
    dense.weight.requires_grad_(False)
    seen: list[int] = []
    dense.register_forward_hook(lambda *_: seen.append(1))
    layer = SampledLinear.from_linear(dense, sample_ratio=0.25, seed=4)
    assert layer.weight is dense.weight
    assert layer.bias is dense.bias
    assert not layer.training
    assert layer.seed == 4
    assert not layer.weight.requires_grad
    layer(torch.ones(8))
    assert seen == [1]
    layer.extra = torch.nn.Parameter(torch.ones(1))  # and yet two modules
    assert "extra" not in dict(dense.named_parameters())
    back = layer.to_linear()
    assert type(back) is torch.nn.Linear
    assert back.weight is dense.weight
    assert not hasattr(back, "_options")
    again = SampledLinear.from_linear(layer, mode="crs")
    assert again.options.mode == "crs"
    assert again.weight is dense.weight


def test_optimizer_that_exists_goes_on_working() -> None:
    dense = torch.nn.Conv2d(4, 3, 3)
    optimizer = torch.optim.SGD(dense.parameters(), 0.1)
    before = dense.weight.detach().clone()
    SampledConv2d.from_conv(dense)(torch.randn(2, 4, 5, 5)).sum().backward()
    optimizer.step()
    assert not torch.equal(before, dense.weight)


def test_layers_of_other_classes_are_refused_with_a_way_out() -> None:
    with pytest.raises(InputError, match="run the model once"):
        SampledLinear.from_linear(torch.nn.LazyLinear(4))
    parametrised = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 4))
    with pytest.raises(InputError, match="parametrise it then"):
        SampledLinear.from_linear(parametrised)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="attention"):
        SampledLinear.from_linear(torch.nn.MultiheadAttention(4, 2).out_proj)
    with pytest.raises(InputError, match="SampledConv2d, not a torch"):
        SampledLinear.from_linear(SampledConv2d(4, 4, 1))  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="group_size"):
        SampledConv2d(4, 4, 1, group_size=2)
    with pytest.raises(InputError, match="seed"):
        SampledLinear(4, 4, seed=1.5)  # pyright: ignore[reportArgumentType]


def test_parametrised_and_tied_weights() -> None:
    layer: Any = torch.nn.utils.parametrizations.weight_norm(SampledLinear(8, 4))
    layer(torch.randn(3, 8)).sum().backward()
    assert layer.parametrizations.weight.original1.grad is not None
    embedding = torch.nn.Embedding(10, 8)
    head = SampledLinear(8, 10, bias=False)
    head.weight = embedding.weight
    head(embedding(torch.tensor([1, 2]))).sum().backward()
    assert embedding.weight.grad is not None


def test_double_use_adds_both_gradients() -> None:
    layer = SampledLinear(6, 6, mode="crs", sample_ratio=0.5)
    x = torch.randn(4, 6)
    torch.manual_seed(0)
    layer(layer(x)).sum().backward()
    assert layer.weight.grad is not None
    both = layer.weight.grad.clone()
    torch.manual_seed(0)
    hidden = layer(x).detach().requires_grad_()
    layer.weight.grad = None
    layer(hidden).sum().backward()
    second: Any = layer.weight.grad
    layer.weight.grad = None
    torch.manual_seed(0)
    layer(x).backward(hidden.grad)
    torch.testing.assert_close(both, second + layer.weight.grad)


def test_seed_and_torchs_generator() -> None:
    x = torch.randn(4, 32)
    layer = SampledLinear(32, 4, mode="crs")
    torch.manual_seed(5)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(layer(x), first)
    fixed = SampledLinear(32, 4, mode="crs", seed=1)
    assert torch.equal(fixed(x), fixed(x))


def test_copies_pickles_and_print() -> None:
    layer = SampledLinear(8, 4, mode="crs", sample_ratio=0.25, where="backward", seed=2)
    assert repr(layer) == (
        "SampledLinear(in_features=8, out_features=4, bias=True, mode=crs, sample_ratio=0.25, "
        "where=backward, seed=2)"
    )
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for twin in (copy.deepcopy(layer), loaded):
        assert repr(twin) == repr(layer)
        assert twin.weight is not layer.weight
        assert torch.equal(twin.weight, layer.weight)
        twin.sample_ratio = 0.5
    assert layer.sample_ratio == 0.25
    with pytest.raises(InputError, match="sample_ratio"):
        layer.sample_ratio = 0.0


def test_devices_and_dtypes() -> None:
    layer = SampledLinear(8, 4, dtype=torch.float64, device="cpu")
    assert layer(torch.randn(2, 8, dtype=torch.float64)).dtype is torch.float64
    meta = SampledConv2d(8, 4, 3, device="meta")
    assert meta.weight.is_meta
    meta(torch.empty(2, 8, 5, 5, device="meta")).sum().backward()  # sizes only
    assert meta.weight.grad is not None
    assert meta.weight.grad.is_meta
    half = SampledLinear(8, 4, dtype=torch.bfloat16)
    assert half(torch.randn(2, 8).bfloat16()).dtype is torch.bfloat16


def test_multiply_adds() -> None:
    def macs(**options: Any) -> tuple[int, int]:
        return SampledLinear(64, 10, sample_ratio=0.25, **options).macs(100)

    product = 100 * 64 * 10
    assert macs() == (3 * product // 4, 3 * product)
    assert macs(where="forward") == (product // 4 + 2 * product, 3 * product)
    assert macs(where="weight_gradient") == (2 * product + product // 4, 3 * product)
    assert macs(where="backward") == (product + 100 * 64 * 2 + product // 4, 3 * product)
    assert macs(group_size=24) == (3 * 100 * 24 * 10, 3 * product)
    conv = SampledConv2d(8, 6, 3, groups=2, sample_ratio=0.5)
    assert conv.macs(100) == (3 * 100 * 6 * 2 * 9, 3 * 100 * 6 * 4 * 9)
    conv = SampledConv2d(8, 6, 3, sample_ratio=0.5, where="weight_gradient")
    dense = 100 * 6 * 8 * 9
    assert conv.macs(100, images=5) == (2 * dense + dense * 2 // 5, 3 * dense)


@pytest.mark.parametrize("autocast", [False, True])
def test_sampled_inputs_are_the_columns_with_gradients(autocast: bool) -> None:
    torch.manual_seed(3)
    layers: list[Any] = [
        SampledLinear(10, 4, mode="topk_weights", sample_ratio=0.4, group_size=group_size)
        for group_size in (1, 4)
    ]
    layers.append(SampledConv2d(10, 4, 3, mode="topk_weights", sample_ratio=0.4))
    for layer in layers:
        x = torch.randn(3, 10) if layer.weight.dim() == 2 else torch.randn(2, 10, 4, 4)
        with torch.no_grad():  # near ties, which bfloat16 makes ties
            layer.weight.copy_(1 + 1e-3 * torch.randn_like(layer.weight))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = layer(x).float().square().sum()
        loss.backward()
        columns = layer.sampled_inputs()
        changed = layer.weight.grad.transpose(0, 1).flatten(1).abs().sum(1).nonzero()[:, 0]
        assert columns is not None
        assert columns.dtype is torch.int64
        assert torch.equal(columns, changed)
    for other in (
        SampledLinear(8, 4),
        SampledLinear(8, 4, mode="topk_weights", where="forward"),
        SampledLinear(8, 4, mode="topk_weights", sample_ratio=1),
        SampledConv2d(8, 4, 3, groups=2, mode="topk_weights"),
    ):
        assert other.sampled_inputs() is None


def test_exact_layers_share_the_parameters() -> None:
    shared = SampledLinear(4, 4)
    model: Any = torch.nn.Sequential(
        shared, torch.nn.BatchNorm1d(4), shared, SampledConv2d(1, 1, 1)
    )
    exact: Any = exact_layers(model)
    assert list(sampled_layers(model)) == ["0", "3"]
    assert not sampled_layers(exact)
    assert [type(layer).__name__ for layer in exact] == [
        "Linear", "BatchNorm1d", "Linear", "Conv2d",
    ]  # fmt: skip
    assert exact[0] is exact[2]
    for ours, theirs in zip(model.parameters(), exact.parameters(), strict=True):
        assert ours is theirs
    assert exact[1].running_mean is model[1].running_mean
    assert type(exact_layers(SampledLinear(2, 2))) is torch.nn.Linear


def test_export_and_compiled_artifact_are_the_exact_model() -> None:
    model = torch.nn.Sequential(
        SampledConv2d(4, 6, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        SampledLinear(6 * 25, 8, mode="crs"),
    )
    x = torch.randn(3, 4, 5, 5)
    model.eval()
    program = torch.export.export(model, (x,))
    names = {str(node.target) for node in program.graph.nodes}
    assert "aten.linear.default" in names
    assert not any("lutcc" in name for name in names)
    artifact = lutcc.compile(model, (x,))
    torch.testing.assert_close(
        torch.as_tensor(artifact(x.numpy())), exact_layers(model)(x), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("where", ["forward_backward", "backward"])
def test_models_in_training_mode_are_not_compiled(where: str) -> None:
    model = torch.nn.Sequential(SampledLinear(8, 4, mode="crs", where=where))
    with pytest.raises(FrontendError, match=r"layer '0'.*sampled layer is in training mode"):
        lutcc.compile(model, (torch.randn(3, 8),))
