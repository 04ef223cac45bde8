"""MaddnessLinear against its estimator, in every shape, and through state_dict and torch.export."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lutcc.errors import InputError, NotFittedError
from lutcc.fit import Maddness
from lutcc.nn import MaddnessLinear

OPTIONS: list[dict[str, Any]] = [
    {},
    {"nprototypes": 64},
    {"encoder": "nearest", "nprototypes": 9},
    {"lut_dtype": "float32"},
    {"lut_dtype": "float32", "activation": "relu"},
    {"activation": "relu", "accumulate": "mean", "upcast_every": 4},
]


def fitted(**options: Any) -> tuple[torch.nn.Linear, torch.Tensor, MaddnessLinear]:
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(13, 7), torch.randn(300, 13)
    return linear, x, MaddnessLinear.from_linear(linear, x, ncodebooks=5, random_state=0, **options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_layer_computes_what_the_estimator_predicts(options: dict[str, Any]) -> None:
    linear, x, layer = fitted(**options)
    weight, bias = linear.weight.detach().numpy(), linear.bias.detach().numpy()
    estimator = Maddness(5, random_state=0, **options).fit(x.numpy(), weight.T, bias)
    fresh = torch.randn(41, 13)
    np.testing.assert_array_equal(layer(fresh).numpy(), estimator.predict(fresh.numpy()))
    np.testing.assert_array_equal(
        MaddnessLinear.from_estimator(estimator)(fresh).numpy(), layer(fresh).numpy()
    )


@pytest.mark.parametrize("shape", [(13,), (1, 13), (2, 3, 13), (2, 1, 3, 13), (0, 13), (3, 0, 13)])
def test_any_leading_dimensions(shape: tuple[int, ...]) -> None:
    _, _, layer = fitted()
    x = torch.randn(shape)
    y = layer(x)
    assert y.shape == (*shape[:-1], 7)
    rows = layer(x.reshape(-1, 13)) if x.numel() else torch.empty(0, 7)
    torch.testing.assert_close(y.reshape(-1, 7), rows, rtol=0, atol=0)


def test_strided_input() -> None:
    _, _, layer = fitted()
    wide = torch.randn(20, 26)
    torch.testing.assert_close(
        layer(wide[::2, ::2]), layer(wide[::2, ::2].contiguous()), rtol=0, atol=0
    )


def test_calibration_of_any_rank_and_dtype_and_thinned() -> None:
    linear, x, layer = fitted()
    for inputs in (x.reshape(3, 100, 13), x.double(), x.numpy(), x.clone().requires_grad_()):
        other = MaddnessLinear.from_linear(linear, inputs, ncodebooks=5, random_state=0)
        assert torch.equal(other.lut, layer.lut)
    thinned = MaddnessLinear.from_linear(linear, x, ncodebooks=5, random_state=0, max_rows=100)
    assert not torch.equal(thinned.lut, layer.lut)
    again = MaddnessLinear.from_linear(linear, x, ncodebooks=5, random_state=0, max_rows=100)
    assert torch.equal(thinned.lut, again.lut)


def test_layer_without_bias() -> None:
    linear, x = torch.nn.Linear(8, 3, bias=False), torch.randn(2000, 8)
    layer = MaddnessLinear.from_linear(linear, x, ncodebooks=8, nprototypes=64, random_state=0)
    assert (layer(x) - linear(x)).norm() < 0.1 * linear(x).norm()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_state_dict_round_trip(options: dict[str, Any], tmp_path: Any) -> None:
    _, x, layer = fitted(**options)
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    fresh = MaddnessLinear(13, 7, 5, **options)
    fresh.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    assert torch.equal(fresh(x), layer(x))
    expected = {"lut"} | ({"scale", "offset"} if layer.lut_dtype == "uint8" else set())
    expected |= (
        {"splitdims", "splitvals"}
        if layer.encoder == "tree"
        else {"centroids", "half_norms", "columns"}
    )
    assert set(layer.state_dict()) == expected
    assert not list(layer.parameters())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("rank", [2, 3])
def test_export_with_a_dynamic_batch(options: dict[str, Any], rank: int) -> None:
    _, _, layer = fitted(**options)
    example = torch.randn(6, 13) if rank == 2 else torch.randn(6, 4, 13)
    program = torch.export.export(
        layer, (example,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},)
    )
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    encode = (
        "lutcc.nearest_encode.default"
        if layer.encoder == "nearest"
        else "lutcc.tree_encode.default"
    )
    assert [t for t in targets if t.startswith("lutcc.")][:2] == [
        encode,
        "lutcc.lut_accumulate.default",
    ]
    for rows in (1, 6, 17):
        x = torch.randn(rows, *example.shape[1:])
        assert torch.equal(program.module()(x), layer(x))


def test_repr_names_the_options() -> None:
    _, _, layer = fitted(accumulate="mean", upcast_every=8, activation="relu")
    text = repr(layer)
    for part in (
        "in_features=13",
        "out_features=7",
        "ncodebooks=5",
        "nprototypes=16",
        "upcast_every=8",
        "relu",
    ):
        assert part in text
    assert layer.table_bytes() == 5 * 16 * 7


def test_mistakes_are_explained() -> None:
    linear, x, layer = fitted()
    with pytest.raises(InputError, match=r"torch\.float64") as caught:
        layer(x.double())
    assert "x.float()" in str(caught.value)
    with pytest.raises(InputError, match="must be 13"):
        layer(torch.randn(3, 12))
    with pytest.raises(InputError, match="scalar"):
        layer(torch.tensor(1.0))
    with pytest.raises(InputError, match="calibration"):
        MaddnessLinear.from_linear(linear, torch.randn(10, 12), ncodebooks=5)
    with pytest.raises(InputError, match="not empty"):
        MaddnessLinear.from_linear(linear, torch.randn(0, 13), ncodebooks=5)
    with pytest.raises(InputError, match="exceeds"):
        MaddnessLinear.from_linear(linear, x, ncodebooks=14)
    with pytest.raises(InputError, match="exceeds"):
        MaddnessLinear(13, 7, 14)
    with pytest.raises(InputError, match="power of two"):
        MaddnessLinear(13, 7, 5, nprototypes=20)
    with pytest.raises(InputError, match="NaN"):
        MaddnessLinear.from_linear(linear, torch.full((10, 13), torch.nan), ncodebooks=5)
    with pytest.raises(NotFittedError, match="fit"):
        MaddnessLinear.from_estimator(Maddness(5))
