"""Convolutional networks: what they become, and how near they stay to torch in three precisions."""

from __future__ import annotations

import os

os.environ.setdefault("TVM_BIND_THREADS", "0")

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lutcc
from lutcc import ir
from lutcc.errors import FrontendError
from lutcc.frontend import import_torch
from lutcc.ir.passes import run_pipeline
from lutcc.recipes import Exact


class Block(nn.Module):
    """A residual block of ResNet-18, or, with groups, of a network for phones."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False)
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


def with_statistics(model: nn.Module, *shape: int) -> nn.Module:
    """Return the model in eval mode, its batch norms as after some training."""
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(*shape))
    return model.eval()


def resnet() -> nn.Module:
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 32, 7, 2, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    body = [nn.MaxPool2d(3, 2, 1), Block(32, 32, 1), Block(32, 64, 2)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5)]
    return with_statistics(nn.Sequential(*stem, *body, *head), 8, 3, 32, 32)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("compute", "bound"), [("float32", 1e-5), ("bfloat16", 0.02), ("int8", 0.05)]
)
def test_a_resnet_in_three_precisions(compute: str, bound: float) -> None:
    model = resnet()
    converted: Any = lutcc.convert(model, {"*": Exact(compute=compute)})
    artifact = lutcc.compile(converted, (torch.randn(2, 3, 32, 32),), target="avx2")
    for count in (1, 3):
        x = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))
        with torch.inference_mode():
            want, eager, got = model(x), converted(x), artifact(x)
        assert (got - want).norm() <= bound * want.norm()
        assert (got - eager).norm() <= (1e-5 if compute == "float32" else bound) * want.norm()


def operations(model: nn.Module, *shape: int) -> list[str]:
    """Return what main consists of after all passes, without constants."""
    dynamic = ({0: torch.export.Dim("n")},)
    program = torch.export.export(model, (torch.randn(*shape),), dynamic_shapes=dynamic)
    module = import_torch(program).module
    assert module is not None
    passed = run_pipeline(module)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    (got,) = ir.interpret(passed, [x])
    want = model(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(got, want.reshape(got.shape), rtol=1e-4, atol=1e-4)
    return [op.opcode for op in passed.main.body if op.opcode not in ("constant", "repack")]


def test_a_block_keeps_its_channels_last() -> None:
    """Batch norm and relu are parts of the convolutions; the sum is done with rows."""
    model = with_statistics(nn.Sequential(Block(8, 8, 1), Block(8, 16, 2)), 4, 8, 6, 5)
    found = operations(model, 2, 8, 6, 5)
    assert [op for op in found if op != "reshape"] == [
        "im2col", "conv2d", "conv2d", "call", "conv2d", "conv2d", "conv2d", "call", "rows_to_nchw",
    ]  # fmt: skip


def test_groups_and_sequences_are_ours_too() -> None:
    model = nn.Sequential(nn.Conv2d(6, 12, 3, groups=3), nn.SiLU(), nn.Conv2d(12, 12, 3, groups=12))
    assert "conv2d" in operations(model, 2, 6, 7, 8)
    model = nn.Sequential(nn.Conv1d(4, 6, 3, 2, 1, 1, 2), nn.ReLU(), nn.Conv1d(6, 3, 2, dilation=3))
    assert operations(model, 2, 4, 19).count("conv2d") == 2


@pytest.mark.one_in(3)
@pytest.mark.parametrize("compute", ["float32", "bfloat16", "int8"])
def test_the_operator_itself(compute: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 32, 3, padding="same"), nn.ReLU(), nn.Conv2d(32, 6, (2, 1), 2, groups=2)
    ).eval()
    converted: Any = lutcc.convert(model, {"*": Exact(compute=compute)}).half().float()
    dynamic = ({0: torch.export.Dim("n")},)
    x = torch.randn(3, 4, 6, 7)
    program = torch.export.export(converted, (x,), dynamic_shapes=dynamic)
    module = import_torch(program).module
    assert module is not None
    stored = {a.dtype.name for a in module.constants.values() if a.ndim == 4}
    assert stored == {"bfloat16" if compute == "bfloat16" else compute}
    artifact = lutcc.compile(program, target="avx2")
    got, want = artifact(x.numpy()), converted(x).detach().numpy()
    assert np.linalg.norm(got - want) <= {"float32": 1e-5}.get(compute, 0.02) * np.linalg.norm(want)


def test_open_heights_are_refused_with_the_layer() -> None:
    model: Any = lutcc.convert(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), {"*": Exact(compute="int8")}
    )
    height = torch.export.Dim("h", min=5, max=99)
    with pytest.raises(FrontendError, match=r"layer '0' .*conv2d.default is compiled for const"):
        lutcc.compile(model, (torch.randn(2, 3, 9, 8),), dynamic={0: "n", 2: height}, target="avx2")
