"""Training runs: they learn, they are reproducible, they go on where they stopped."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lutcc.data.text_bpe import START
from lutcc.errors import ArtifactError, InputError, LogError, LutccError
from lutcc.train import (
    DenseFFN,
    MaskedBatches,
    MaskedLM,
    NoFFN,
    Progress,
    Recipe,
    Sizes,
    Trainer,
    steps_within,
)
from lutcc.train.losses import LossLog, curve

VOCABULARY = 280
SIZES = Sizes(VOCABULARY, length=12, width=16, layers=1, heads=2)
RECIPE = Recipe(
    steps=12,
    batch_size=8,
    learning_rate=1e-2,
    warmup=2,
    evaluate_every=5,
    log_every=1,
    save_every=5,
)


class TableFFN(nn.Module):
    """Has a parameter that is a table."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.Parameter(torch.zeros(4, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.tables[x[..., 0].gt(0).long()]


def data() -> MaskedBatches:
    # Each sequence repeats one token: what is masked can be read off its neighbours.
    tokens = np.random.default_rng(0).integers(3, 40, (64, 1)).repeat(12, axis=1)
    tokens[:, 0] = START
    return MaskedBatches(tokens, batch_size=8, vocabulary=VOCABULARY, seed=0)


def trainer(folder: Path, recipe: Recipe = RECIPE, **options: Any) -> Trainer:
    torch.manual_seed(0)
    model = MaskedLM(SIZES, options.pop("ffn", lambda: DenseFFN(16, 32)))
    batches = data()
    held_out = batches.fixed(16)
    return Trainer(model, batches, held_out, recipe, folder, name="dense", **options)


def parameters(one: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in one.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor], list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("whole")
    one = trainer(folder)
    one.run()
    return folder, parameters(one), LossLog(folder / "losses.jsonl").read()


def test_a_run_learns_and_logs(tmp_path):
    heard: list[Progress] = []
    recipe = Recipe(steps=80, batch_size=8, learning_rate=1e-2, warmup=8, evaluate_every=40)
    one = trainer(tmp_path, recipe, report=heard.append)
    before = one.evaluate()
    trained = one.run()
    assert before == pytest.approx(math.log(VOCABULARY), abs=1.0)
    assert trained.log_perplexity < 3.0  # the entropy of 37 tokens is 3.6
    assert trained.steps == 80
    records = LossLog(tmp_path / "losses.jsonl").read()
    assert curve(records, "dense", "loss")[0] == [1, *range(10, 81, 10)]
    steps, values = curve(records, "dense", "log_perplexity")
    assert steps == [40, 80]
    assert values[-1] == trained.log_perplexity == heard[-1].log_perplexity
    assert [progress.step for progress in heard] == list(range(1, 81))


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, whole):
    def interrupt(progress: Progress) -> None:
        if progress.step == 7:  # between two checkpoints
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, report=interrupt).run()
    assert signal.getsignal(signal.SIGINT) is before
    assert max(r["step"] for r in LossLog(tmp_path / "losses.jsonl").read()) == 8
    again = trainer(tmp_path)
    again.run()
    _, expected, records = whole
    assert same(parameters(again), expected)
    logged = LossLog(tmp_path / "losses.jsonl").read()
    for what in ("loss", "log_perplexity"):
        assert curve(logged, "dense", what) == curve(records, "dense", what)


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, whole):
    def kill(progress: Progress) -> None:
        if progress.step == 9:
            raise SystemExit  # steps 6 to 9 are logged and not saved

    with pytest.raises(SystemExit):
        trainer(tmp_path, report=kill).run()
    with (tmp_path / "losses.jsonl").open("a") as file:
        file.write('{"model": "dense", "st')  # and a line was cut off
    again = trainer(tmp_path)
    again.run()
    _, expected, records = whole
    assert same(parameters(again), expected)
    logged = LossLog(tmp_path / "losses.jsonl").read()
    assert curve(logged, "dense", "loss") == curve(records, "dense", "loss")


def test_a_finished_run_is_read_not_repeated(whole):
    folder, expected, records = whole
    size = (folder / "losses.jsonl").stat().st_size
    again = trainer(folder, report=lambda progress: pytest.fail("trained again"))
    trained = again.run()
    assert same(parameters(again), expected)
    assert trained.log_perplexity == records[-1]["log_perplexity"]
    assert (folder / "losses.jsonl").stat().st_size == size


def test_other_settings_are_refused(whole):
    folder = whole[0]
    changed = Recipe(**{name: getattr(RECIPE, name) for name in Recipe.__slots__} | {"steps": 99})
    with pytest.raises(InputError, match=r"steps 12 -> 99"):
        trainer(folder, changed).run()
    with pytest.raises(InputError, match=r"text None -> 'other'"):
        trainer(folder, settings={"text": "other"}).run()


def test_a_checkpoint_of_another_model_is_refused(whole):
    with pytest.raises(ArtifactError, match="is of another model"):
        trainer(whole[0], ffn=NoFFN).run()


def test_a_broken_checkpoint(tmp_path):
    (tmp_path / "dense.safetensors").write_bytes(b"\x10")
    with pytest.raises(ArtifactError, match="is no checkpoint"):
        trainer(tmp_path).run()


def test_a_loss_that_is_no_number(tmp_path):
    one = trainer(tmp_path)
    with torch.no_grad():
        one.model.head_bias.fill_(math.nan)
    with pytest.raises(LutccError, match=r"(?s)loss is nan at step 1.*lower the learning rate"):
        one.run()
    assert not (tmp_path / "dense.safetensors").exists()


def test_a_log_of_something_else(tmp_path):
    path = tmp_path / "losses.jsonl"
    path.write_text('{"epoch": 1}\n{"model": "dense", "step": 1, "loss": 2.0}\n')
    with pytest.raises(LogError, match=r"losses\.jsonl:1: is no record"):
        trainer(tmp_path).run()


def test_models_differ_in_their_blocks_only(tmp_path):
    dense, none = trainer(tmp_path).model, trainer(tmp_path, ffn=NoFFN).model
    shared = none.state_dict()
    assert same(shared, dense.state_dict())
    assert len(dense.state_dict()) == len(shared) + 4


def test_tables_have_a_learning_rate_of_their_own(tmp_path):
    recipe = Recipe(
        steps=8, batch_size=8, learning_rate=0.01, warmup=4, table_rate=5.0, weight_decay=0.1
    )
    one = trainer(tmp_path, recipe, ffn=TableFFN)
    optimizer = recipe.optimizer(one.model.named_parameters())
    recipe.set_rate(optimizer, 1)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    named = dict(one.model.named_parameters())
    assert len(rates) == len(named)
    assert rates[id(named["layers.0.ffn.tables"])] == pytest.approx(0.025)
    assert rates[id(named["head.weight"])] == pytest.approx(0.005)
    decayed = {name for name, parameter in named.items() if decay[id(parameter)]}
    assert "head.weight" in decayed
    assert not decayed & {"layers.0.ffn.tables", "tokens.weight", "positions", "head.bias"}


def test_the_rate_rises_and_falls_in_lines():
    recipe = Recipe(steps=100, warmup=20)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[0] == 1 / 20
    assert max(rates) == rates[19] == rates[20] == 1.0
    assert rates[60] == 0.5
    assert 0 < rates[99] < 0.02
    assert all(math.isfinite(Recipe(steps=5, warmup=10).rate(step)) for step in range(5))


def test_steps_that_fit_a_budget(tmp_path):
    assert steps_within(90, [0.2, 0.1, 0.1], Recipe()) == 202
    assert steps_within(1e9, [0.2], Recipe()) == 250_000
    assert steps_within(0.01, [0.2], Recipe()) == 1
    one = trainer(tmp_path)
    before = parameters(one)
    assert 0 < one.seconds_per_step() < 5
    assert same(parameters(one), before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"learning_rate": 0.0}, {"clip": math.nan}, {"beta2": 1.0},
              {"warmup": -1}, {"batch_size": 0}, {"table_rate": -1.0}]
)  # fmt: skip
def test_recipes_out_of_range(wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))}="):
        Recipe(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"), [({"heads": 3}, "no multiple"), ({"layers": 0}, "layers=0")]
)
def test_sizes_out_of_range(wrong, message):
    with pytest.raises(InputError, match=message):
        Sizes(300, **wrong)


def test_what_is_logged_is_json_line_by_line(whole):
    for line in (whole[0] / "losses.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert record["model"] == "dense"
        assert {"loss", "log_perplexity"} & set(record)
