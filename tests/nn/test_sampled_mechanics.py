"""Sampled layers under autocast, torch.compile, checkpointing and data-parallel training."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

from lutcc.nn import SampledConv2d, SampledLinear, sampled_layers
from tests.nn import sampled_workers

ROOT = Path(__file__).resolve().parents[2]


def network(**options: Any) -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        SampledConv2d(4, 8, 3, padding=1, **options),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        SampledLinear(8 * 16, 6, **options),
    )


def images() -> torch.Tensor:
    return torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(1))


def gradients(model: torch.nn.Module, call: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
    """Return result and gradients of a step, whose random numbers are the same every time."""
    model.zero_grad()
    torch.manual_seed(7)
    y = call()
    y.float().square().sum().backward()
    return [y.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


OPTIONS: list[dict[str, Any]] = [
    {"mode": "topk"},
    {"mode": "crs"},
    {"mode": "bernoulli", "where": "forward"},
    {"mode": "wta_crs", "where": "backward"},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_draws_the_same_sample_again(
    options: dict[str, Any], reentrant: bool
) -> None:
    model, x = network(**options), images().requires_grad_()
    plain = gradients(model, lambda: model(x))
    again = gradients(model, lambda: checkpoint(model, x, use_reentrant=reentrant))
    assert len(plain) == 5
    for ours, theirs in zip(plain, again, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("options", OPTIONS)
def test_autocast_multiplies_in_half_precision_without_a_scaler(options: dict[str, Any]) -> None:
    model, x = network(**options), images()
    exact = gradients(model, lambda: model(x))

    def cast() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(x)

    half = gradients(model, cast)
    assert half[0].dtype is torch.bfloat16
    assert all(g.dtype is torch.float32 for g in half[1:])
    if options["mode"] == "topk":  # other modes may draw another pair by a rounded score
        for ours, theirs in zip(half, exact, strict=True):
            assert (ours - theirs).norm() < 0.05 * theirs.norm()
    with torch.autocast("cpu", torch.bfloat16):
        model.eval()
        dense: Any = torch.nn.functional
        first, last = model[0], model[3]
        hidden = dense.conv2d(x, first.weight, first.bias, padding=1).relu().flatten(1)
        assert torch.equal(model(x), dense.linear(hidden, last.weight, last.bias))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[3]])
def test_compiled_code_computes_the_same_and_serves_every_ratio(options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    model, x = network(seed=5, **options), images()
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    counters.clear()
    for ratio in (0.5, 0.25, 0.75, 0.3, 0.6, 0.7, 0.45, 0.35, 0.55, 0.65, 0.4):
        for layer in sampled_layers(model).values():
            layer.sample_ratio = ratio
        eager = gradients(model, lambda: model(x))
        fast = gradients(model, lambda: compiled(x))
        for ours, theirs in zip(fast, eager, strict=True):
            torch.testing.assert_close(ours, theirs)
    assert counters["stats"]["unique_graphs"] <= 4
    torch._dynamo.reset()


@pytest.mark.thorough
def test_compiled_by_inductor_and_observed() -> None:
    torch._dynamo.reset()
    layer = SampledLinear(32, 8, mode="crs")
    compiled: Any = torch.compile(layer, fullgraph=True)
    layer.observe()
    x = torch.randn(16, 32)
    first, second = compiled(x), compiled(x)
    assert not torch.equal(first, second)  # a sample of its own each time
    scores = x.norm(dim=0) * layer.weight.detach().norm(dim=0)
    assert layer.last_scores is not None
    torch.testing.assert_close(layer.last_scores, scores)
    layer.eval()
    torch.testing.assert_close(compiled(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
    torch._dynamo.reset()


def test_the_whole_range_of_ratios_counts_as_options_do() -> None:
    torch._dynamo.reset()
    layer = SampledLinear(30, 4)

    def kept(x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(layer._options.count(30))

    compiled = torch.compile(kept, fullgraph=True, backend="eager")
    for ratio in (0.5, 1 / 3, 0.1, 0.7, 0.0333, 1.0, 0.29, 2 / 3):
        layer.sample_ratio = ratio
        assert len(compiled(torch.zeros(1))) == layer.options.count(30)
    torch._dynamo.reset()


@pytest.mark.thorough
@pytest.mark.parametrize("world", [2])
def test_workers_of_data_parallel_training_stay_alike(world: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.nn.sampled_workers"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(world), str(tmp_path / "meet"), str(tmp_path / "out")],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    for worker in workers:
        try:
            _, errors = worker.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            for other in workers:
                other.kill()
            raise
        assert worker.returncode == 0, errors
    results = [torch.load(tmp_path / f"out.{rank}") for rank in range(world)]
    start = sampled_workers.model().state_dict()
    for name, value in results[0]["state"].items():
        assert torch.equal(value, results[1]["state"][name])
        assert not torch.equal(value, start[name])
    assert results[0]["losses"] != results[1]["losses"]
