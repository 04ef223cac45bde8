"""Schedules of the sampling ratio: their values, resuming, and ratios that follow the error."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lutcc.errors import InputError
from lutcc.ir.sampling import select
from lutcc.nn import SampledConv2d, SampledLinear
from lutcc.sampling_options import SamplingOptions
from lutcc.train.ratios import (
    AdaptiveRatio,
    CosineRatio,
    LinearRatio,
    RatioScheduler,
    StepRatio,
)
from lutcc.train.sampling_error import relative_error, squared_errors

nn = torch.nn


def network(**options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        SampledConv2d(4, 8, 3, groups=2, **options),
        nn.ReLU(),
        nn.Flatten(),
        SampledLinear(8 * 9, 32, **options),
        nn.ReLU(),
        SampledLinear(32, 5, **options),
    )


def train(model: nn.Module, scheduler: RatioScheduler, steps: int, first: int = 0) -> list[Any]:
    """Train a little on the batches of these steps, and return the ratios after each."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    found = []
    for step in range(first, first + steps):
        torch.manual_seed(step)
        x = torch.randn(16, 4, 5, 5) * torch.tensor([8.0, 4.0, 2.0, 1.0])[:, None, None]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.randint(5, (16,))).backward()
        optimizer.step()
        scheduler.step()
        found.append(scheduler.get_last_ratio())
    return found


# -- fixed schedules -------------------------------------------------------------------------------


def test_ramps_keep_their_ends_and_go_by_levels_between() -> None:
    for schedule in (
        LinearRatio(start=0.1, end=0.9, steps=50),
        CosineRatio(start=0.9, end=0.1, steps=50, levels=4),
    ):
        ratios = [schedule.ratio(step) for step in range(60)]
        assert ratios[0] == schedule.start
        assert set(ratios[50:]) == {schedule.end}
        change = np.diff(ratios) * np.sign(schedule.end - schedule.start)
        assert (change >= 0).all()
        inner = {ratio for ratio in ratios if ratio not in (schedule.start, schedule.end)}
        assert all((ratio * schedule.levels).is_integer() for ratio in inner)
        assert ratios[25] == 0.5


def test_fixed_schedules_set_the_layers_that_match() -> None:
    model = network(sample_ratio=0.3)
    scheduler = RatioScheduler(model, StepRatio({2: 0.5, 3: 1.0}), layers=["3", "5*"])
    assert [layer.sample_ratio for layer in (model[3], model[5])] == [0.3, 0.3]  # type: ignore
    found = []
    for _ in range(4):
        scheduler.step()
        found.append(scheduler.get_last_ratio()["3"])
    assert found == [0.3, 0.5, 1.0, 1.0]
    assert model[0].sample_ratio == 0.3  # type: ignore
    assert scheduler.get_last_error() == {}


def test_any_object_with_a_method_ratio_will_do() -> None:
    class Alternating:
        def ratio(self, step: int) -> float:
            return 0.25 if step % 2 else 0.75

    scheduler = RatioScheduler(network(), Alternating())
    assert set(scheduler.get_last_ratio().values()) == {0.75}
    scheduler.step()
    assert set(scheduler.get_last_ratio().values()) == {0.25}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearRatio(start=0.0, end=1.0, steps=2), "sample_ratio=0.0"),
        (lambda: CosineRatio(start=0.5, end=1.5, steps=2), "sample_ratio=1.5"),
        (lambda: LinearRatio(start=0.5, end=1.0, steps=0), "steps=0"),
        (lambda: StepRatio({}), "no mapping"),
        (lambda: StepRatio({-1: 0.5}), "milestone"),
        (lambda: StepRatio({1: 0.0}), "sample_ratio"),
        (lambda: AdaptiveRatio(error=-1), "error=-1"),
        (lambda: AdaptiveRatio(error=0.5, momentum=1), "momentum=1"),
        (lambda: AdaptiveRatio(error=0.5, low=0.8, high=0.4), "swap"),
        (lambda: AdaptiveRatio(error=0.5, every=0), "every=0"),
        (lambda: RatioScheduler(network(), 0.5), "a float"),  # type: ignore
        (lambda: RatioScheduler(network(), StepRatio({0: 0.5}), "layer*"), "matches no sampled"),
        (lambda: RatioScheduler(nn.Linear(2, 2), StepRatio({0: 0.5})), "no layer is sampled"),
    ],
)
def test_mistakes_are_told(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


# -- the expected error ----------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", ["both", "none"])
@pytest.mark.parametrize(
    ("mode", "probabilities"),
    [
        ("topk", "optimal"),
        ("crs", "optimal"),
        ("crs", "uniform"),
        ("bernoulli", "optimal"),
        ("bernoulli", "uniform"),
        ("wta_crs", "optimal"),
    ],
)
def test_expected_errors_are_those_of_products(mode: str, probabilities: str, scaling: str) -> None:
    options = SamplingOptions(mode=mode, probabilities=probabilities, scaling=scaling)
    rng = np.random.default_rng(0)
    columns, k, draws = 24, 8, 600
    # Orthogonal columns: products of different pairs are uncorrelated to the digit, so that what
    # is measured differs by the draws alone.
    a = np.linalg.qr(rng.normal(size=(40, columns)))[0] * rng.exponential(size=columns)
    b = rng.normal(size=(columns, 6))
    scores = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=1)
    exact = a @ b
    found = np.empty(draws)
    for seed in range(draws):
        sample = select(scores, k, mode, probabilities, seed)
        scales = (sample.scales != 0).astype(float) if scaling == "none" else sample.scales
        error = (a[:, sample.indices] * scales) @ b[sample.indices] - exact
        found[seed] = (error**2).sum() / (exact**2).sum()
    expected = relative_error(scores, k, options) ** 2
    assert abs(found.mean() - expected) <= 5 * found.std() / draws**0.5 + 1e-6


def test_topk_by_weights_has_the_error_of_what_it_leaves() -> None:
    scores, ranking = np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])
    options = SamplingOptions(mode="topk_weights")
    error = relative_error(scores, 1, options, ranking)
    assert error == pytest.approx((13 / 14) ** 0.5)
    assert relative_error(scores, 1, options) == pytest.approx((5 / 14) ** 0.5)


def test_groups_take_as_many_each_and_large_scores_do_not_overflow() -> None:
    scores = np.array([3.0, 4.0, 1.0, 0.0, 0.0, 0.0])
    errors = squared_errors(scores * 1e200, SamplingOptions(), [0.3, 0.7, 1.0], groups=2)
    np.testing.assert_allclose(errors, [10 / 26, 1 / 26, 0])
    minimal = squared_errors(scores, SamplingOptions(minimal_k=2), [0.3], groups=2)
    np.testing.assert_allclose(minimal, [1 / 26])
    for unknown in (np.zeros(4), np.array([1.0, np.nan]), np.array([1.0, np.inf])):
        assert np.isnan(squared_errors(unknown, SamplingOptions(), [0.5])).all()


# -- adaptive ratios -------------------------------------------------------------------------------


def test_smallest_ratio_under_the_target() -> None:
    schedule = AdaptiveRatio(error=0.3, low=0.25, levels=4)
    assert schedule.choose([0.5, 0.09, 0.01, 0.0]) == 0.5
    assert schedule.choose([0.05, 0.01, 0.0, 0.0]) == 0.25
    assert AdaptiveRatio(error=0.0, high=0.5, low=0.25, levels=4).choose([0.5, 0.2]) == 0.5


@pytest.mark.parametrize(
    ("mode", "where"),
    [
        ("topk", "forward_backward"),
        ("topk_weights", "forward_backward"),
        ("wta_crs", "forward_backward"),
        ("topk", "backward"),
        ("bernoulli", "backward"),
        ("wta_crs", "weight_gradient"),
    ],
)
def test_each_layer_gets_the_smallest_ratio_that_meets_the_target(mode: str, where: str) -> None:
    model = network(mode=mode, where=where)
    schedule = AdaptiveRatio(error=0.6, every=2)
    scheduler = RatioScheduler(model, schedule)
    ratios = train(model, scheduler, 5)
    assert ratios[1] == ratios[0]  # between two looks
    errors = scheduler.get_last_error()
    assert set(errors) == {"0", "3", "5"}
    for name, ratio in scheduler.get_last_ratio().items():
        assert ratio in schedule.candidates
        assert errors[name] <= 0.6
        at = schedule.candidates.index(ratio)
        assert at == 0 or scheduler._squared[name][at - 1] > 0.36


def test_ratio_follows_how_unequal_the_features_are() -> None:
    layer = SampledLinear(64, 8)
    scheduler = RatioScheduler(layer, AdaptiveRatio(error=0.5, every=1, momentum=0.5))
    found = []
    for decay in (0.0, 0.2):
        for _ in range(8):
            layer(torch.randn(32, 64) * torch.exp(-decay * torch.arange(64)))
            scheduler.step()
        found += scheduler.get_last_ratio().values()
    # top-k of pairs that are alike needs 1 - error^2 of them
    assert 0.6 <= found[0] <= 0.8
    assert found[1] <= 0.25


def test_the_estimate_is_the_error_of_the_gradients() -> None:
    torch.manual_seed(0)
    layer = SampledLinear(24, 12, where="backward", sample_ratio=0.5)
    schedule = AdaptiveRatio(error=0.2, every=1)
    scheduler = RatioScheduler(layer, schedule)
    x = torch.randn(40, 24, requires_grad=True)
    dy = torch.randn(40, 12) * torch.exp(-0.2 * torch.arange(40.0))[:, None]
    exact = dy.t() @ x.detach(), dy @ layer.weight.detach()
    layer(x).backward(dy)
    assert layer.weight.grad is not None
    assert x.grad is not None
    ratios = [
        float((ours - theirs).square().sum() / theirs.square().sum())
        for ours, theirs in zip((layer.weight.grad, x.grad), exact, strict=True)
    ]
    scheduler.step()
    estimate = scheduler._squared[""][schedule.candidates.index(0.5)]
    assert estimate == pytest.approx(max(ratios), rel=0.3)
    assert ratios[0] < 0.1 < ratios[1]  # rows decay, outputs do not


def test_layers_that_are_not_called_or_not_finite_keep_their_ratio() -> None:
    model = nn.ModuleDict({"a": SampledLinear(8, 8), "b": SampledLinear(8, 8, sample_ratio=0.3)})
    scheduler = RatioScheduler(model, AdaptiveRatio(error=0.3, every=1))
    model["a"](torch.randn(4, 8))
    scheduler.step()
    assert scheduler.get_last_ratio()["b"] == 0.3
    before = scheduler.get_last_ratio()
    model["a"](torch.full((4, 8), torch.nan))
    with pytest.warns(RuntimeWarning, match="no sampled layer gave scores"):
        scheduler.step()
    scheduler.step()  # told once
    assert scheduler.get_last_ratio() == before


def test_initial_ratios_are_brought_into_the_range() -> None:
    layer = SampledLinear(8, 8, sample_ratio=0.1)
    RatioScheduler(layer, AdaptiveRatio(error=0.3, low=0.25, high=0.5))
    assert layer.sample_ratio == 0.25


@pytest.mark.parametrize("where", ["forward_backward", "backward"])
def test_training_resumed_is_training_uninterrupted(where: str) -> None:
    schedule = AdaptiveRatio(error=0.5, every=2, momentum=0.8)
    model = network(mode="crs", where=where)
    scheduler = RatioScheduler(model, schedule)
    train(model, scheduler, 3)
    weights = copy.deepcopy(model.state_dict())
    state = json.loads(json.dumps(scheduler.state_dict()))
    expected = train(model, scheduler, 4, first=3)

    again = network(mode="crs", where=where)
    again.load_state_dict(weights)
    resumed = RatioScheduler(again, schedule)
    resumed.load_state_dict(state)
    assert train(again, resumed, 4, first=3) == expected
    assert resumed.state_dict() == scheduler.state_dict()
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_states_of_other_layers_or_schedules_are_refused() -> None:
    model = network()
    scheduler = RatioScheduler(model, AdaptiveRatio(error=0.5, every=1))
    train(model, scheduler, 1)
    state = scheduler.state_dict()
    with pytest.raises(InputError, match="other layers: 3, 5"):
        RatioScheduler(model, AdaptiveRatio(error=0.5), "0").load_state_dict(state)
    with pytest.raises(InputError, match="other ratios"):
        RatioScheduler(model, AdaptiveRatio(error=0.5, levels=3)).load_state_dict(state)
    fixed = RatioScheduler(model, LinearRatio(start=0.5, end=1.0, steps=4))
    fixed.step()
    restored = RatioScheduler(network(), LinearRatio(start=0.5, end=1.0, steps=4))
    restored.load_state_dict(fixed.state_dict())
    assert restored.get_last_ratio() == fixed.get_last_ratio()
    assert restored.last_step == 1


def test_models_that_are_followed_are_copied_and_saved(tmp_path: Path) -> None:
    model = network(where="backward")
    scheduler = RatioScheduler(model, AdaptiveRatio(error=0.5, every=1))
    train(model, scheduler, 1)
    twin = copy.deepcopy(model)
    twin(torch.randn(2, 4, 5, 5)).sum().backward()
    torch.save(model, tmp_path / "model.pt")
    torch.load(tmp_path / "model.pt", weights_only=False)(torch.randn(2, 4, 5, 5))


@pytest.mark.thorough
def test_workers_with_other_data_agree(tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(
        textwrap.dedent(
            """
            import json, os, sys
            import torch, torch.distributed as dist
            from lutcc.nn import SampledLinear
            from lutcc.train.ratios import AdaptiveRatio, RatioScheduler

            rank, folder = int(sys.argv[1]), sys.argv[2]
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
            dist.init_process_group(
                "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
            )
            torch.manual_seed(0)
            model = torch.nn.Sequential(SampledLinear(32, 32), SampledLinear(32, 4))
            extra = SampledLinear(32, 32)  # worker 1 alone calls it
            model.append(extra)
            wrapped = torch.nn.parallel.DistributedDataParallel(
                model, find_unused_parameters=True
            )
            scheduler = RatioScheduler(wrapped, AdaptiveRatio(error=0.5, every=1, momentum=0.5))
            torch.manual_seed(rank)
            for step in range(3):
                x = torch.randn(8, 32) * torch.exp(-rank * 0.1 * torch.arange(32))
                model[1](model[0](x))
                if rank:
                    extra(x)
                scheduler.step()
            print(json.dumps(scheduler.state_dict()))
            """
        )
    )
    started = [
        subprocess.Popen(
            [sys.executable, str(worker), str(rank), str(tmp_path)], stdout=subprocess.PIPE
        )
        for rank in range(2)
    ]
    states = [process.communicate(timeout=300)[0].decode() for process in started]
    assert states[0] == states[1]
    state = json.loads(states[0])
    assert set(state["squared_errors"]) == {"0", "1", "2"}
    assert len(set(state["ratios"].values())) > 1
