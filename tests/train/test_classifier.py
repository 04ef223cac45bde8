"""Training of classifiers: what is counted, logged, and the same for all methods."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from lutcc.data import ImageSplit, digits
from lutcc.errors import InputError
from lutcc.nn import SampledConv2d, SampledLinear
from lutcc.train.classifier import (
    ClassifierRecipe,
    Run,
    batches,
    counted,
    train_classifier,
)
from lutcc.train.runlog import RunLog

RECIPE = ClassifierRecipe(epochs=2, batch_size=128)
RUN = Run(task="digits", method="exact", seed=3)


@pytest.fixture(scope="module")
def data() -> ImageSplit:
    return digits.load()


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def test_a_run_is_logged_and_is_the_same_again(data, tmp_path):
    log = RunLog(tmp_path / "runs.jsonl")
    last = train_classifier(build, data, RECIPE, RUN, log=log, settings={"layers": []})
    first, *epochs = log.read()
    assert first.settings == {**dataclasses.asdict(RECIPE), "layers": []}
    assert [r.epoch for r in epochs] == [1, 2]
    assert [r.final for r in epochs] == [False, True]
    assert epochs[-1] == last
    assert {r.run for r in epochs} == {"digits/exact/3"}
    assert last.step == 2 * (1257 // 128)
    assert last.macs == last.exact_macs == 3 * last.step * 128 * (64 * 32 + 32 * 10)
    assert last.accuracy is not None
    assert last.accuracy > 0.3
    torch.manual_seed(99)
    again = train_classifier(build, data, RECIPE, RUN)
    assert (again.loss, again.accuracy) == (last.loss, last.accuracy)
    other = train_classifier(build, data, RECIPE, dataclasses.replace(RUN, seed=4))
    assert other.loss != last.loss


def test_multiply_adds_of_sampled_layers():
    model = nn.Sequential(
        SampledConv2d(8, 4, 3, sample_ratio=0.5), nn.Flatten(), SampledLinear(64, 10), nn.ReLU()
    )
    with counted(model) as total:
        model(torch.ones(5, 8, 6, 6))
        with torch.no_grad():
            model(torch.ones(5, 8, 6, 6))
        model.eval()(torch.ones(5, 8, 6, 6))
    assert total.exact_macs == 3 * (5 * 16 * 4 * 8 * 9 + 5 * 64 * 10)
    assert total.macs == total.exact_macs / 2
    model.train()(torch.ones(5, 8, 6, 6))
    assert total.exact_macs == 3 * (5 * 16 * 4 * 8 * 9 + 5 * 64 * 10), "hooks are gone"


def test_batches_are_a_shuffle_without_what_fills_none():
    found = list(batches(103, 10, torch.Generator().manual_seed(0)))
    assert [len(rows) for rows in found] == [10] * 10
    assert len(torch.cat(found).unique()) == 100


@pytest.mark.parametrize("change", [{"batch_size": 2000}, {"epochs": 0}])
def test_nothing_to_train_on(data, change):
    with pytest.raises(InputError, match="leave nothing to train on"):
        train_classifier(build, data, dataclasses.replace(RECIPE, **change), RUN)
