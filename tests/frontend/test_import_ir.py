"""Models that the IR expresses whole: the interpreter must agree with torch at every batch size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lutcc.frontend import import_torch


def _ops(imported):
    return [op.opcode for op in imported.module.main.body if op.opcode != "constant"]


def _batches(*shape, sizes=(3, 1, 17)):
    return [torch.randn(n, *shape) for n in sizes]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "hidden", "outputs"), [(64, 30, 10), (1, 1, 1), (7, 13, 5)])
def test_mlp(assert_interpreted, bias, inputs, hidden, outputs):
    model = nn.Sequential(
        nn.Linear(inputs, hidden, bias=bias),
        nn.ReLU(inplace=True),
        nn.Dropout(0.3),
        nn.Linear(hidden, outputs, bias=bias),
    )
    assert _ops(assert_interpreted(model, *_batches(inputs))) == ["linear", "relu", "linear"]


def _trained_statistics(model):
    for layer in model.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(layer.get_buffer("running_mean"))
            nn.init.uniform_(layer.get_buffer("running_var"), 0.5, 2)
            if layer.affine:
                nn.init.normal_(layer.weight)
                nn.init.normal_(layer.bias)
    return model


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm(assert_interpreted, affine):
    model = nn.Sequential(
        nn.Linear(8, 6), nn.BatchNorm1d(6, affine=affine), nn.ReLU(), nn.Linear(6, 3)
    )
    ops = _ops(assert_interpreted(_trained_statistics(model), *_batches(8)))
    assert ops == ["linear", "batch_norm", "relu", "linear"]


def test_rows_of_sequences_cost_two_reshapes(assert_interpreted):
    model = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3), nn.ReLU())
    ops = _ops(assert_interpreted(model, *_batches(4, 6)))
    assert ops == ["reshape", "linear", "relu", "linear", "relu", "reshape"]
    assert_interpreted(model, *_batches(2, 3, 6))


def test_vector_input(assert_interpreted):
    model = nn.Linear(6, 3).eval()
    imported = import_torch(model, torch.zeros(6), dynamic_batch=False)
    assert imported.kind == "ir"
    assert imported.outputs[0].shape == (3,)


class _Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, 11), nn.ReLU(), nn.Linear(11, width))

    def forward(self, x):
        return torch.relu(x + self.inner(x))


def test_residual(assert_interpreted):
    assert "add" in _ops(
        assert_interpreted(nn.Sequential(_Residual(5), _Residual(5)), *_batches(5))
    )
    assert_interpreted(nn.Sequential(_Residual(5), nn.Linear(5, 2)), *_batches(3, 5))


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)},
        {"kernel_size": 3, "dilation": 2, "padding": 2, "bias": False},
        {"kernel_size": 1},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 3, "padding": "valid"},
    ],
)
def test_conv2d(assert_interpreted, options):
    assert_interpreted(nn.Conv2d(3, 5, **options), *_batches(3, 9, 7, sizes=(2, 1)))


def test_conv1d(assert_interpreted):
    model = nn.Sequential(nn.Conv1d(3, 5, 3, padding=1, stride=2), nn.ReLU(), nn.Conv1d(5, 4, 1))
    assert _ops(assert_interpreted(model, *_batches(3, 9))).count("im2col") == 1


def test_cnn_keeps_rows_between_pointwise_layers(assert_interpreted):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 5),
    )
    ops = _ops(assert_interpreted(_trained_statistics(model), *_batches(3, 8, 8)))
    expected = [
        "im2col",
        "reshape",
        "conv2d",
        "batch_norm",
        "relu",
        "reshape",
        "conv2d",
        "relu",
        "rows_to_nchw",
        "reshape",
        "linear",
    ]
    assert ops == expected


class _ResNetBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + x)


def test_resnet_block(assert_interpreted):
    assert_interpreted(
        _trained_statistics(nn.Sequential(_ResNetBlock(4), _ResNetBlock(4))), *_batches(4, 5, 6)
    )


def test_global_pooled_image_needs_no_movement(assert_interpreted):
    model = nn.Sequential(nn.Conv2d(3, 6, 4), nn.Flatten(), nn.Linear(6, 2))
    ops = _ops(assert_interpreted(model, *_batches(3, 4, 4)))
    assert ops == ["im2col", "reshape", "conv2d", "linear"]


class _Constants(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("position", torch.randn(1, 4, 6))
        self.register_buffer("width", torch.rand(6) + 0.5)
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        width = self.get_buffer("width")
        x = (x - width) / width + self.position
        x = self.linear(x) * 0.5 - 1.0
        return 2.0 + x * width.reshape(1, 1, 6)


def test_arithmetic_with_constants(assert_interpreted):
    assert "affine" in _ops(assert_interpreted(_Constants(), *_batches(4, 6)))


class _Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.randn(3, 1, 1))
        self.register_buffer("std", torch.rand(3, 1, 1) + 0.5)
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.conv((x - self.mean) / self.std) * torch.arange(1.0, 5.0).reshape(1, 4, 1, 1)


def test_normalised_images(assert_interpreted):
    assert_interpreted(_Normalised(), *_batches(3, 4, 5))


class _Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.channels = nn.Linear(4, 4), nn.Linear(6, 6)
        self.weight = nn.Parameter(torch.randn(6, 3))

    def forward(self, x):
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        return torch.relu(self.channels(x)) @ self.weight


def test_mixer_and_matmul_with_parameter(assert_interpreted):
    assert_interpreted(_Transposed(), *_batches(4, 6))


class _ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(5, 4)

    def forward(self, x):
        x = self.linear(self.conv(x).permute(0, 2, 3, 1))
        return torch.relu(x).permute(0, 3, 1, 2)


def test_channels_last_linear_stays_in_rows(assert_interpreted):
    assert _ops(assert_interpreted(_ChannelsLast(), *_batches(3, 5, 4))) == [
        "im2col", "reshape", "conv2d", "linear", "relu", "rows_to_nchw",
    ]  # fmt: skip


class _Shapes(nn.Module):
    def forward(self, x):
        x = x.unsqueeze(1).flatten(2).squeeze(1)
        return x.unflatten(1, (2, -1)).contiguous().clone().view(x.shape[0], -1) + 1.0


def test_shape_operations(assert_interpreted):
    assert_interpreted(_Shapes(), *_batches(4, 6))


class _Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        return self.linear(torch.relu(self.linear(x)))


def test_shared_weights_are_stored_once(assert_interpreted):
    imported = assert_interpreted(_Shared(), *_batches(6))
    assert sorted(imported.module.constants) == ["linear.bias", "linear.weight"]


def test_unused_input_stays_in_the_signature():
    class Unused(nn.Module):
        def forward(self, x, y):
            return torch.relu(x)

    imported = import_torch(Unused(), (torch.zeros(2, 3), torch.zeros(2, 4)))
    assert [p.name for p in imported.inputs] == ["x", "y"]
    assert imported.module is not None
    assert len(imported.module.main.params) == 2
