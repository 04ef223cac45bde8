"""MaddnessConv2d: geometry, agreement with rows through the estimator, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lutcc.errors import InputError
from lutcc.fit import Maddness
from lutcc.nn import MaddnessConv2d

GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 3},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)},
    {"kernel_size": 3, "dilation": 2, "padding": 2},
    {"kernel_size": 1, "stride": 3},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": (2, 3), "padding": "valid"},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_layer_is_the_estimator_on_patches(geometry: dict[str, Any], bias: bool) -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(2, 5, bias=bias, **geometry)
    x = torch.randn(40, 2, 9, 8)
    ncodebooks = 2
    layer = MaddnessConv2d.from_conv(conv, x, ncodebooks=ncodebooks, random_state=0)
    fresh = torch.randn(3, 2, 9, 8)
    exact = conv(fresh)
    out = layer(fresh)
    assert out.shape == exact.shape
    assert out.is_contiguous()

    padding = layer.padding

    def patches(images: torch.Tensor) -> np.ndarray:
        unfolded = torch.nn.functional.unfold(
            images, layer.kernel_size, layer.dilation, padding, layer.stride
        )
        return unfolded.transpose(1, 2).reshape(-1, unfolded.shape[1]).numpy()

    shift = conv.bias.detach().numpy() if conv.bias is not None else None
    estimator = Maddness(ncodebooks, random_state=0).fit(
        patches(x), conv.weight.detach().flatten(1).numpy().T, shift
    )
    rows = estimator.predict(patches(fresh)).reshape(3, *exact.shape[2:], 5).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(out.numpy(), rows)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_many_prototypes_come_near_the_convolution(geometry: dict[str, Any]) -> None:
    torch.manual_seed(1)
    conv = torch.nn.Conv2d(1, 4, **geometry)
    columns = conv.weight[0].numel()
    x = torch.randn(60, 1, 9, 9)
    layer = MaddnessConv2d.from_conv(conv, x, ncodebooks=columns, nprototypes=64, random_state=0)
    exact = conv(x).detach()
    assert (layer(x) - exact).norm() < 0.15 * exact.norm()


def test_unbatched_and_thinned() -> None:
    conv, x = torch.nn.Conv2d(2, 3, 3), torch.randn(70, 2, 6, 6)
    layer = MaddnessConv2d.from_conv(conv, x, ncodebooks=4, random_state=0, max_rows=50)
    assert torch.equal(layer(x[0]), layer(x[:1])[0])
    again = MaddnessConv2d.from_conv(conv, x.numpy(), ncodebooks=4, random_state=0, max_rows=50)
    assert torch.equal(again.lut, layer.lut)
    everything = MaddnessConv2d.from_conv(conv, x, ncodebooks=4, random_state=0, max_rows=None)
    assert not torch.equal(everything.lut, layer.lut)


def test_state_dict_and_export() -> None:
    conv, x = torch.nn.Conv2d(2, 3, 3, stride=2, padding=1), torch.randn(50, 2, 7, 7)
    layer = MaddnessConv2d.from_conv(conv, x, ncodebooks=4, random_state=0)
    fresh = MaddnessConv2d(2, 3, 3, 2, 1, ncodebooks=4)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), layer(x))
    program = torch.export.export(
        layer, (x[:4],), dynamic_shapes=({0: torch.export.Dim("n", min=1)},)
    )
    lutcc_ops = [str(n.target) for n in program.graph.nodes if str(n.target).startswith("lutcc.")]
    assert [name.split(".")[1] for name in lutcc_ops] == [
        "im2col",
        "tree_encode",
        "lut_accumulate",
        "lut_dequantize",
        "rows_to_nchw",
    ]
    for count in (1, 4, 9):
        assert torch.equal(program.module()(x[:count]), layer(x[:count]))


def test_repr_names_the_geometry() -> None:
    text = repr(MaddnessConv2d(2, 3, (3, 1), 2, (1, 0), ncodebooks=4))
    assert (
        "2, 3, kernel_size=(3, 1), stride=(2, 2), padding=(1, 0), dilation=(1, 1), ncodebooks=4"
        in text
    )


@pytest.mark.parametrize(
    ("conv", "message"),
    [
        (torch.nn.Conv2d(4, 4, 3, groups=2), "groups=2"),
        (torch.nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "reflect"),
        (torch.nn.Conv2d(4, 4, 2, padding="same"), "differently"),
    ],
)
def test_unsupported_convolutions_are_refused(conv: torch.nn.Conv2d, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        MaddnessConv2d.from_conv(conv, torch.randn(8, 4, 6, 6), ncodebooks=4)
    assert caught.value.fix


def test_other_padding_mode_without_padding_is_fine() -> None:
    conv = torch.nn.Conv2d(1, 2, 2, padding_mode="circular")
    x = torch.randn(20, 1, 5, 5)
    assert MaddnessConv2d.from_conv(conv, x, ncodebooks=2)(x).shape == (20, 2, 4, 4)


def test_wrong_inputs_are_explained() -> None:
    conv, x = torch.nn.Conv2d(2, 3, 3), torch.randn(50, 2, 7, 7)
    layer = MaddnessConv2d.from_conv(conv, x, ncodebooks=4)
    with pytest.raises(InputError, match="must be 2"):
        layer(torch.randn(1, 3, 7, 7))
    with pytest.raises(InputError, match="smaller than the kernel"):
        layer(torch.randn(1, 2, 2, 7))
    with pytest.raises(InputError, match="float64"):
        layer(x.double())
    with pytest.raises(InputError, match="shape"):
        layer(torch.randn(7, 7))
    with pytest.raises(InputError, match="calibration"):
        MaddnessConv2d.from_conv(conv, torch.randn(5, 3, 7, 7), ncodebooks=4)
    with pytest.raises(InputError, match="smaller than the kernel"):
        MaddnessConv2d.from_conv(conv, torch.randn(5, 2, 2, 2), ncodebooks=4)
    with pytest.raises(InputError, match="have 18"):
        MaddnessConv2d.from_estimator(
            Maddness(4).fit(np.random.default_rng(0).normal(size=(50, 17))), 2, 3
        )
    with pytest.raises(InputError, match="stride"):
        MaddnessConv2d(2, 3, 3, 0, ncodebooks=4)
