"""Whole models called with whatever people pass: every layout, no rows, NaN; mistakes are told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lutcc
from lutcc.errors import InputError
from lutcc.runtime import cpu

pytestmark = pytest.mark.skipif(cpu.best_isa() is None, reason="the CPU lacks AVX2")


class ConvNet(nn.Module):
    """Convolutions, normed, rectified and pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.two, self.head = nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.max_pool2d(torch.relu(self.norm(self.one(x))), 2)
        return self.head(torch.relu(self.two(x)).mean((2, 3)))


class Encoder(nn.Module):
    """A transformer over any number of tokens."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 7), nn.ReLU())


MODELS: dict[str, tuple[Any, tuple[int, ...], Any]] = {
    "mlp": (_mlp, (12,), None),
    "convolutions": (ConvNet, (3, 10, 10), None),
    "transformer": (Encoder, (6, 16), {0: "n", 1: "length"}),
}


@pytest.fixture(scope="module", params=list(MODELS))
def compiled(request: pytest.FixtureRequest) -> tuple[nn.Module, lutcc.Artifact, np.ndarray]:
    """A model, the same compiled, and five rows of input."""
    make, shape, dynamic = MODELS[request.param]
    torch.manual_seed(0)
    model = make().eval()
    x = torch.randn(5, *shape)
    return model, lutcc.compile(model, x, dynamic=dynamic), x.numpy()


def check(model: nn.Module, artifact: lutcc.Artifact, x: Any) -> None:
    given = x if isinstance(x, torch.Tensor) else torch.from_numpy(np.array(x, np.float32))
    with torch.no_grad():
        want = model(given)
    got = artifact(x)
    assert isinstance(got, torch.Tensor) == isinstance(x, torch.Tensor)
    torch.testing.assert_close(torch.as_tensor(got), want, rtol=1e-4, atol=1e-4, equal_nan=True)


def frozen(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


def unaligned(x: np.ndarray) -> np.ndarray:
    raw = np.zeros(x.nbytes + 1, np.uint8)
    view = raw[1:].view(np.float32).reshape(x.shape)
    view[...] = x
    return view


LAYOUTS = {
    "as it is": lambda x: x,
    "Fortran order": np.asfortranarray,
    "rows backwards": lambda x: x[::-1],
    "last dimension backwards": lambda x: x[..., ::-1],
    "every second row": lambda x: np.repeat(x, 2, 0)[::2],
    "a part of wider rows": lambda x: np.concatenate([x, x], -1)[..., 1 : 1 + x.shape[-1]],
    "the same row": lambda x: np.broadcast_to(x[:1], x.shape),
    "read-only": frozen,
    "unaligned": unaligned,
    "big-endian": lambda x: x.astype(">f4"),
    "one row": lambda x: x[:1],
    "no rows": lambda x: x[:0],
    "torch": torch.from_numpy,
    "torch, permuted": lambda x: torch.from_numpy(np.moveaxis(x, -1, 0).copy()).movedim(0, -1),
    "torch, no rows": lambda x: torch.from_numpy(x[:0]),
}


@pytest.mark.one_in(4)
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_layouts(compiled: tuple[Any, Any, np.ndarray], layout: str) -> None:
    model, artifact, x = compiled
    before = x.copy()
    check(model, artifact, LAYOUTS[layout](x))
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_comes_out_as_from_torch(
    compiled: tuple[Any, Any, np.ndarray], value: float
) -> None:
    model, artifact, x = compiled
    x = x.copy()
    x[1].flat[3] = value
    check(model, artifact, x)
    x[2] = value
    check(model, artifact, x)


def test_no_tokens(compiled: tuple[Any, Any, np.ndarray]) -> None:
    model, artifact, x = compiled
    if len(artifact.inputs[0].symbols) < 2:
        pytest.skip("its length is fixed")
    for given in (x[:, :0], x[:, :1], x[:0, :0]):
        check(model, artifact, given)


MISTAKES = {
    "float64": (lambda x: x.astype(np.float64), r"float32.*got float64.*x.astype\(numpy.float32\)"),
    "float16": (lambda x: x.astype(np.float16), r"float32.*got float16"),
    "integers": (lambda x: x.astype(np.int64), r"float32.*got int64"),
    "complex": (lambda x: x.astype(np.complex64), r"float32.*got complex64"),
    "objects": (lambda x: x.astype(object), r"float32.*got object"),
    "big-endian float64": (lambda x: x.astype(">f8"), r"float32.*got >f8"),
    "a list": (lambda x: x.tolist(), r"got list"),
    "too narrow": (lambda x: x[..., :-1], r"dimension \d must be \d+, not \d+"),
    "a row": (lambda x: x[0], r"expected \d dimensions.*x\[None\]"),
    "a dimension more": (lambda x: x[None], r"expected \d dimensions.*reshape"),
    "torch float64": (lambda x: torch.from_numpy(x).double(), r"float32.*torch.float64.*x.to\("),
    "wants a gradient": (lambda x: torch.from_numpy(x).requires_grad_(), r"gradient.*no_grad"),
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_mistakes(compiled: tuple[Any, Any, np.ndarray], mistake: str) -> None:
    _, artifact, x = compiled
    make, pattern = MISTAKES[mistake]
    with pytest.raises(InputError, match=rf"(?s)argument '{artifact.inputs[0].name}'.*{pattern}"):
        artifact(make(x.copy()))
    artifact(x)  # still works
