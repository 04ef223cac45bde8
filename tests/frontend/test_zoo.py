"""Real structures at tiny sizes, and common modules in groups: the artifact agrees with torch."""

from __future__ import annotations

import os

os.environ.setdefault("TVM_BIND_THREADS", "0")

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lutcc
from lutcc.errors import FrontendError


def _same(found: Any, wanted: Any) -> None:
    found, wanted = ((v,) if isinstance(v, torch.Tensor) else tuple(v) for v in (found, wanted))
    for index, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        assert ours.dtype == theirs.dtype, index
        torch.testing.assert_close(
            ours, theirs, rtol=1e-4, atol=1e-4, msg=lambda text, i=index: f"output {i}: {text}"
        )


def _agrees(model: nn.Module, make: Callable[[int], Any], batches: Sequence[int] = (3, 1)) -> Any:
    """Compile for one target at a batch of 2, and compare with torch at others."""
    model.eval()
    artifact = lutcc.compile(model, make(2), target="avx2")
    for batch in batches:
        inputs = make(batch)
        inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        with torch.inference_mode():
            _same(artifact(*inputs), model(*inputs))
    return artifact


class _Each(nn.Module):
    """Several modules on the same input."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(part(x) for part in self.parts)


class _Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*inputs)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.short = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.short = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.short(x))


@pytest.mark.thorough
def test_resnet_18() -> None:
    widths = (4, 8, 8, 16)
    blocks = [
        _Block(before, width, stride)
        for stage, width in enumerate(widths)
        for before, stride in (((widths[max(stage - 1, 0)], 2 if stage else 1), (width, 1)))
    ]
    stem = [nn.Conv2d(3, 4, 7, 2, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)]
    model = nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1), *blocks, *head)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)  # pyright: ignore[reportArgumentType]
            nn.init.uniform_(module.running_var, 0.5, 2)  # pyright: ignore[reportArgumentType]
    _agrees(model, lambda n: torch.randn(n, 3, 33, 35))


class _Vit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.place = nn.Parameter(torch.randn(1, 7, 16))
        layer = nn.TransformerEncoderLayer(
            16, 2, 32, batch_first=True, activation="gelu", norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        return self.head(self.norm(self.blocks(x))[:, 0])


@pytest.mark.thorough
def test_vit() -> None:
    _agrees(_Vit(), lambda n: torch.randn(n, 3, 8, 12))


def test_image_modules() -> None:
    model = _Each(
        nn.Conv2d(4, 6, (3, 2), 2, (1, 0), (1, 2)),
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
        nn.ConvTranspose2d(4, 6, 3, 2, 1, 1),
        nn.GroupNorm(2, 4),
        nn.GroupNorm(1, 4, affine=False),
        nn.InstanceNorm2d(4),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.AvgPool2d(2, divisor_override=3),
        nn.AdaptiveAvgPool2d((3, 2)),
        nn.AdaptiveMaxPool2d((2, 3)),
        nn.Upsample(scale_factor=2),
        nn.Upsample(size=(5, 11)),
        nn.Upsample(scale_factor=1.5),
        nn.Upsample(size=(5, 11), mode="bilinear"),
        nn.Upsample(scale_factor=(0.5, 1.7), mode="bilinear"),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        nn.PixelShuffle(2),
        nn.ReflectionPad2d(2),
        nn.Unfold(3),
    )
    _agrees(model, lambda n: torch.randn(n, 4, 9, 7))


@pytest.mark.thorough
def test_sequence_and_volume_modules() -> None:
    sequence = _Each(
        nn.Conv1d(4, 6, 3, padding="same", dilation=2),
        nn.ConvTranspose1d(4, 6, 3, 2, 1, 1),
        nn.AvgPool1d(3, 2),
        nn.AdaptiveMaxPool1d(3),
        nn.Upsample(size=7, mode="linear"),
        nn.BatchNorm1d(4),
        nn.PReLU(4),
        nn.GLU(1),
    )
    _agrees(sequence, lambda n: torch.randn(n, 4, 10))
    volume = _Each(nn.Conv3d(2, 3, 3, (2, 1, 1), 1), nn.MaxPool3d(2))
    _agrees(volume, lambda n: torch.randn(n, 2, 4, 5, 6))


def test_activations_and_arithmetic() -> None:
    def compute(x: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (
            F.silu(x), F.gelu(x), F.gelu(x, approximate="tanh"), F.elu(x, 0.7), F.selu(x),
            F.hardswish(x * 3), F.mish(x), F.softplus(x * 30), F.hardtanh(x, -0.5, 0.3),
            F.rrelu(x), F.rms_norm(x, (12,)), F.layer_norm(x, (12,)), F.normalize(x),
            torch.add(x, x, alpha=3), torch.sub(x, x * x, alpha=0.5), torch.rsub(x, 1, alpha=2),
            x % 0.7, torch.fmod(-x, 0.7), x // 0.3, x.round(), x.frac(), torch.hypot(x, x + 1),
            k / 4, k / (k + 9), k // 4, k // (k.abs() + 1), torch.div(k, -4, rounding_mode="trunc"),
            k % -4, k * 0.5, k + x, k > 0.5, torch.where(k > 0, k, x),
            k.clamp(0, 3), k.float().exp(), k.sigmoid(), torch.einsum("nd,nd->n", k, k),
        )  # fmt: skip

    _agrees(_Call(compute), lambda n: (torch.randn(n, 12), torch.randint(-7, 8, (n, 12))))


@pytest.mark.thorough
def test_reductions_and_order() -> None:
    def compute(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (
            x.mean((1, 2)), x.mean(), x.var(-1), x.var(1, unbiased=False), x.std((1, 2)),
            *torch.var_mean(x, -1), x.amax((1, 2)), *x.max(1), *x.min(-1), x.prod(-1),
            x.argmax(-1), x.logsumexp((1, 2)), x.norm(p=1, dim=1), x.cumsum(1), x.cumsum(0),
            (x > 0).cumsum(1), *x.topk(3, -1), *x.topk(2, 1, largest=False), *x.sort(-1),
            x.argsort(1, descending=True), torch.cdist(x, x),
        )  # fmt: skip

    _agrees(_Call(compute), lambda n: torch.randn(n, 5, 8))


def test_indexing_and_movement() -> None:
    rows, columns = torch.tensor([0, 2]), torch.tensor([1, -1])
    mask = torch.rand(5, 8) > 0.5

    def compute(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        order = x.argsort(-1)
        return (
            x[:, rows], x[:, rows, columns], x[:, :, columns], x[:, rows[:, None], columns],
            x[:, ::2], x[:, -2:], x[:, 1:-1, 3], x[:, -1], torch.gather(x, -1, order),
            x.masked_fill(mask, -1.0), torch.where(mask, x, 0.0), *x.split([1, 3, 1], 1),
            *x.chunk(3, -1), torch.cat([x, x * 2], 1), torch.stack([x, -x], -1),
            x.roll((1, -2), (1, 2)), x.flip(1), x.repeat(1, 2, 1), x.unfold(1, 3, 2),
            x.mT @ x, x @ torch.ones(8), torch.einsum("nld,nkd->nlk", x, x),
            F.pad(x, (2, 1), mode="circular"),
            x.scatter(1, rows.expand(8, 2).T.expand(x.shape[0], 2, 8), x[:, :2] * 3),
        )  # fmt: skip

    _agrees(_Call(compute), lambda n: torch.randn(n, 5, 8))


@pytest.mark.thorough
def test_attention_of_every_kind() -> None:
    attend = F.scaled_dot_product_attention
    addends, flags = torch.randn(5, 5), torch.rand(5, 5) > 0.3
    flags[2] = False  # a row that sees nothing

    def compute(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        few, fewer = k[:, :2], v[:, :2]
        return (
            attend(q, k, v), attend(q, k, v, scale=0.1), attend(q, k, v, is_causal=True),
            attend(q, k, v, attn_mask=addends), attend(q, k, v, attn_mask=flags),
            attend(q, few, fewer, enable_gqa=True),
            attend(q, few, fewer, enable_gqa=True, is_causal=True),
            attend(q, few, fewer, attn_mask=flags, enable_gqa=True),
        )  # fmt: skip

    _agrees(_Call(compute), lambda n: tuple(torch.randn(3, n, 4, 5, 8).unbind()))


class _Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor, padded: torch.Tensor) -> tuple[torch.Tensor, ...]:
        later = torch.ones(5, 5, dtype=torch.bool).triu(1)
        causal, _ = self.attention(x, x, x, need_weights=False, attn_mask=later)
        return (*self.attention(x, x, x, key_padding_mask=padded), causal)


def test_multihead_attention() -> None:
    def make(n: int) -> tuple[torch.Tensor, ...]:
        padded = torch.zeros(n, 5, dtype=torch.bool)
        padded[0, 3:] = True
        return torch.randn(n, 5, 8), padded

    _agrees(_Heads(), make)


def test_what_nobody_has_names_layer_line_and_fix() -> None:
    class Median(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.kthvalue(2, -1)[0]

    with pytest.raises(FrontendError) as caught:
        lutcc.compile(nn.Sequential(nn.Linear(4, 4), Median()).eval(), torch.zeros(3, 4))
    text = str(caught.value)
    assert "kthvalue" in text
    assert "layer '1' (Median), test_zoo.py:" in text
    assert "`return x.kthvalue(2, -1)[0]`" in text
    assert "replace the layer" in text


def test_scatter_of_another_shape_is_refused() -> None:
    def compute(x: torch.Tensor) -> torch.Tensor:
        return x.scatter(1, torch.zeros(1, 1, dtype=torch.int64), x)

    with pytest.raises(FrontendError, match="cut the source to the shape of the indices") as caught:
        lutcc.compile(_Call(compute).eval(), torch.zeros(3, 4))
    assert "test_zoo.py:" in str(caught.value)
