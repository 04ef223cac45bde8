"""The GPU benchmark of sampled products and steps: its pieces, on the CPU with tiny sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lutcc.ops
from lutcc.bench import gpu, gpu_sampled
from lutcc.bench.gpu_models import TrainingStep, Transformer, WideResNet, sampled_copy
from lutcc.bench.timing import Timing
from lutcc.nn import SampledConv2d, SampledLinear

#: Without kernels, which the CPU would have to compile.
WAYS = {"columns": ("index_select", 1), "groups": ("index_select", gpu_sampled.GROUP)}


def us(value: float) -> Timing:
    return Timing.of([round(1000 * value)] * 3)


def test_what_is_timed_of_a_product_is_that_product():
    torch.manual_seed(0)
    operands = gpu_sampled.Operands(64, "cpu", torch.float64)
    x, weight = operands.x, operands.weight
    calls: dict[str, Any] = dict(gpu_sampled.product_calls(operands, 0.25, WAYS))
    calls |= gpu_sampled.layer_calls(operands, 0.25)
    names = {"dense", "columns", "groups", "layer", "layer groups"}
    assert set(calls) == {f"{name} {kind}" for name in names for kind in ("forward", "both")}
    torch.testing.assert_close(calls["dense forward"](), x @ weight.t())
    for name, other in (("columns", "layer"), ("groups", "layer groups")):
        y = calls[f"{name} forward"]()
        torch.testing.assert_close(y, calls[f"{other} forward"]())
        assert not torch.allclose(y, x @ weight.t())
        gradients = calls[f"{name} both"]()
        torch.testing.assert_close(gradients, calls[f"{other} both"]())
        touched = [g.any(0).sum().item() for g in gradients]
        assert touched == [16, 16]
    assert lutcc.ops.get_sampled_backend() == "auto"


def test_selections():
    for mode, group_size in gpu_sampled.SELECTIONS:
        calls: dict[str, Any] = gpu_sampled.selection_calls(
            32, mode, group_size, "cpu", torch.float32
        )
        assert calls["scores"]().shape == (32 // group_size,)
        indices, scales = calls["selection"]()
        assert indices.shape == scales.shape
        assert 0 < (scales > 0).sum() < 32 // group_size


def test_models_are_sampled_but_for_their_ends():
    model = WideResNet(10, 1)
    sampled = sampled_copy(model, 0.5)
    kinds = {name: type(module) for name, module in sampled.named_modules()}
    assert kinds["stem"] is torch.nn.Conv2d
    assert kinds["head"] is torch.nn.Linear
    convolutions = [kind for name, kind in kinds.items() if "conv" in name or "shortcut" in name]
    assert len(convolutions) == 8
    assert set(convolutions) == {SampledConv2d}
    encoder = sampled_copy(Transformer(2, 32, 4), 0.5, 16)
    layers = [m for m in encoder.modules() if isinstance(m, torch.nn.Linear)]
    assert len(layers) == 8
    assert all(isinstance(m, SampledLinear) and m.options.group_size == 16 for m in layers)


def test_the_paper_s_network():
    with torch.device("meta"):
        model = WideResNet()
    weights = sum(p.numel() for p in model.parameters())
    assert weights == pytest.approx(36.5e6, rel=0.01)  # the paper of Wide ResNets


@pytest.mark.parametrize(
    ("model", "shape", "groups"),
    [
        (lambda: WideResNet(10, 1), (2, 3, 16, 16), False),
        (lambda: Transformer(1, 32, 4), (2, 5, 32), True),
    ],
)
def test_steps_train(model, shape, groups):
    torch.manual_seed(0)
    calls: dict[str, Any] = gpu_sampled.step_calls(model(), torch.randn(shape), 0.5, groups=groups)
    assert list(calls) == ["dense", "sampled", "sampled in groups"][: 2 + groups]
    for step in calls.values():
        assert isinstance(step, TrainingStep)
        before = [p.clone() for p in step.model.parameters()]
        loss = step()
        assert loss.isfinite()
        after = list(step.model.parameters())
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    first = {name: next(iter(step.model.parameters())) for name, step in calls.items()}
    assert first["dense"] is not first["sampled"]


def test_tables_say_what_was_reached():
    times = {
        "dense forward": us(100),
        "columns forward": us(50),
        "groups forward": us(80),
        "dense both": us(300),
        "columns both": us(600),
        "groups both": us(150),
    }
    table = gpu_sampled.product_table([gpu_sampled.ProductRow(64, 0.5, times)])
    found = [[cell.strip() for cell in line.split("|")[-3:-1]] for line in table.splitlines()[2:]]
    assert found == [
        ["2.00x faster", "1.6x: reached"],
        ["1.25x faster", "1.6x: missed"],
        ["loss: 2.00x slower", "1.6x: missed"],
        ["2.00x faster", "1.6x: reached"],
    ]
    rows = [gpu_sampled.StepRow("a step", {"dense": us(10), "sampled": us(20)})]
    assert "loss: 2.00x slower" in gpu_sampled.step_table(rows)
    selection = [gpu_sampled.SelectionRow("topk", 1, us(3), us(4))]
    assert gpu_sampled.selection_table(selection).count("\n") == 3


def test_parts(monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(gpu, "run", lambda batch, rounds, parts: ran.append((rounds, list(parts))))
    assert gpu.main(["--part", "sampled", "--rounds", "3"]) == 0
    assert gpu.main([]) == 0
    assert ran == [(3, ["sampled"]), (50, list(gpu.PARTS))]
    with pytest.raises(SystemExit):
        gpu.main(["--part", "other"])
    assert "invalid choice" in capsys.readouterr().err


@pytest.mark.gpu
def test_on_a_gpu(capsys):
    assert gpu.main(["--part", "sampled", "--rounds", "3"]) == 0
    text = capsys.readouterr().out
    assert "Wide ResNet 28-10" in text
    assert text.count(f"| {gpu_sampled.SIZE}^3 |") == 2 * 2 * 5
