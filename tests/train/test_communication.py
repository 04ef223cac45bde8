"""Sending the sampled columns' gradients only: no drift, fewer bytes, and faults are told.

The workers run once, all scenarios one after the other, and each test looks at what they wrote.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lutcc.train.packing import (
    Part,
    check_length,
    checksum,
    gradient_view,
    judge,
    pack,
    unpack,
    write_check,
)
from tests.train.distributed_worker import PATIENCE, STEPS

ROOT = Path(__file__).resolve().parents[2]
WORLD = 4
COMPARED = ("four", "two", "accumulated", "views", "unused", "static", "layers", "bfloat16")
FAULTS = {
    "selection": "did not sample the same columns",
    "ratio": "want to send different numbers of columns",
    "ratios": "want to send different numbers of columns",
    "eval": "want to send different numbers of columns",
    "elsewhere": "has gradients outside of the columns",
}


def launch(folder: Path, *scenarios: str) -> list[dict[str, Any]]:
    """Run the workers and return what each saw."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, "-m", "tests.train.distributed_worker"]
    workers = []
    for rank in range(WORLD):
        with (folder / f"{rank}.log").open("wb") as log:
            command = [*words, str(rank), str(WORLD), str(folder), ",".join(scenarios)]
            workers.append(
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
            )
    try:
        for worker in workers:
            worker.wait(timeout=400)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    for rank in range(WORLD):
        if not (folder / f"{rank}.json").exists():
            pytest.fail((folder / f"{rank}.log").read_text()[-3000:])
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]
    missing = {name for name in scenarios if name not in found[0]}
    assert not missing, (folder / "0.log").read_text()[-3000:]
    return found


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    scenarios = (*COMPARED, "uneven", "shared", "faults", "silent", "killed")
    return launch(tmp_path_factory.mktemp("workers"), *scenarios)


@pytest.mark.parametrize("name", COMPARED)
def test_no_drift(seen, name):
    for worker in seen:
        result = worker[name]
        assert result["same"], "parameters are equal on all workers, to the bit"
        assert result["finite"]
        assert result["largest"] > 0.1
        if name == "four":  # another order of summing four numbers
            assert result["steps"] == STEPS
            assert result["difference"] < 1e-6
        else:  # the sum of two numbers has one order: the very numbers of training without the hook
            assert result["difference"] == 0


@pytest.mark.parametrize("name", COMPARED)
def test_bytes_are_counted_as_handed_over(seen, name):
    for worker in seen:
        assert worker[name]["handed"] == worker[name]["bytes"]


def test_bytes_are_what_the_columns_need(seen):
    (result,) = {json.dumps(w["two"] | {"took": 0, "largest": 0}) for w in seen}
    result = json.loads(result)
    sent = {"conv": 8 * 3 * 4 + 8, "first": 24 * 8 + 24, "twice": 24 * 8 + 24}
    sent |= {"extra": 24 * 8 + 24, "head": 24 * 5 + 5}
    checks, left_over = divmod(result["last_bytes"] - 4 * sum(sent.values()), 4 * 34)
    assert left_over == 0
    assert 1 <= checks <= 6, "a check for each bucket that has sampled weights"
    dense = 8 * 6 * 4 + 8 + 72 * 24 + 24 + 2 * (24 * 24 + 24) + 24 * 5 + 5
    assert result["dense_bytes"] == STEPS * 4 * dense
    assert result["bytes"] < 0.35 * result["dense_bytes"]


def test_workers_with_fewer_batches(seen):
    assert all(worker["uneven"]["same"] for worker in seen)


def test_shared_weights(seen):
    for worker in seen:
        result = worker["shared"]
        assert result["same"]
        assert result["difference"] == 0
        # c is shared with a dense layer: whole. a and b share one: 8 columns that hold b's 5.
        assert result["bytes"] == 4 * (16 * 16 + 16 * 8 + 4 * 16 + 34)


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_told_on_every_worker(seen, fault):
    for rank, worker in enumerate(seen):
        told = worker["faults"][fault]
        # whose bucket fails first, of those of one step, is chance
        assert re.match(rf"CommunicationError: rank {rank} of 4, bucket [01]\b", told)
        assert FAULTS[fault] in told
        assert "To mend it: " in told
        assert worker["faults"][f"{fault}_gradient"], "gradients of no use are NaN"
        assert worker["faults"][f"{fault}_mended"], "training goes on once it is mended"
    assert "twice.weight" in seen[0]["faults"]["selection"]


def test_all_may_change_at_once(seen):
    assert all(worker["faults"]["changed_together"] > 0 for worker in seen)


def test_wrong_use(seen):
    told = seen[0]["faults"]
    assert told["not_wrapped"].startswith("InputError: register_sampled_hook: the model is a Lin")
    assert "can only be called once" in told["registered_twice"]


def test_a_worker_killed_within_a_step(seen):
    assert "killed" not in seen[-1], "it died"
    for worker in seen[:-1]:
        assert "a worker was lost, or did not answer in time" in worker["killed"]["error"]
        assert worker["killed"]["seconds"] < 30


def test_a_worker_that_does_not_answer(seen):
    result = seen[0]["silent"]
    assert "a worker was lost, or did not answer in time" in result["error"]
    assert 0.5 * PATIENCE < result["seconds"] < 10 * PATIENCE


# -- packing, in this process ----------------------------------------------------------------


def bucket_of(
    *shapes: tuple[tuple[int, ...], torch.memory_format],
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return a bucket with random gradients in the memory order of such parameters."""
    parameters = [torch.empty(shape).to(memory_format=order) for shape, order in shapes]
    buffer = torch.randn(sum(p.numel() for p in parameters) + 5)[5:]
    views, offset = [], 0
    for parameter in parameters:
        views.append(gradient_view(buffer, offset, parameter))
        assert views[-1].stride() == parameter.stride()
        offset += parameter.numel()
    return buffer, views


def test_pack_and_unpack():
    plain, last = torch.contiguous_format, torch.channels_last
    buffer, views = bucket_of(
        ((5, 7), plain), ((3,), plain), ((4, 6, 2, 3), last), ((2, 3, 4, 4), last)
    )
    columns = [torch.tensor([6, 1]), None, torch.tensor([0, 2, 5]), None]
    parts = [Part(view, chosen) for view, chosen in zip(views, columns, strict=True)]
    wanted = [view.clone() for view in views]
    outside = torch.ones(7, dtype=torch.bool).index_fill_(0, torch.tensor([6, 1]), False)
    wanted[0][:, outside] = 0
    wanted[2][:, [1, 3, 4]] = 0
    flat, elsewhere = pack(parts, 0, 2)
    assert flat.numel() == 5 * 2 + 3 + 4 * 3 * 6 + 2 * 3 * 16 == sum(p.count for p in parts)
    assert bool(elsewhere)
    views[0].zero_()
    views[2].zero_()
    unpack(flat * 2, parts)
    for view, value in zip(views, wanted, strict=True):
        assert torch.equal(view, value)
    flat, elsewhere = pack(parts, 0, 2)
    assert not elsewhere
    assert not buffer[: 5 * 7].any(), "left zero, for what is not sent"


def test_gradients_that_are_not_finite_are_seen_elsewhere():
    buffer, views = bucket_of(((2, 3), torch.contiguous_format))
    buffer.fill_(0)[1] = torch.nan
    assert bool(pack([Part(views[0], torch.tensor([0, 2]))], 0, 2)[1])
    buffer.fill_(0)[2] = torch.nan
    assert not pack([Part(views[0], torch.tensor([0, 2]))], 0, 2)[1]


@pytest.mark.parametrize(
    ("dtype", "world"), [(torch.bfloat16, 300), (torch.float16, 3), (torch.float32, 64)]
)
def test_checks_are_exact(dtype, world):
    """One worker of many that differs is seen, and none that does not, whatever the rounding."""
    length = check_length(dtype, world)

    def summed(odd: dict[int, Any]) -> torch.Tensor:
        total = torch.zeros(length, dtype=dtype)
        for rank in range(world):
            check = torch.zeros(length, dtype=dtype)
            write_check(check, rank, **{"columns": [torch.arange(9)], **odd.get(rank, {})})
            total += check
        return total

    right = judge(summed({}), world)
    assert (right.other_plans, right.elsewhere, right.same) == (0, 0, True)
    for rank in (0, world - 1):
        other = {"columns": [torch.tensor([0, 1, 2, 3, 4, 5, 6, 8, 7])]}
        assert not judge(summed({rank: other}), world).same
        assert judge(summed({rank: {"elsewhere": True}}), world).elsewhere == 1
        assert judge(summed({rank: {"other_plan": True}}), world).other_plans == 1


def test_checksums_differ():
    torch.manual_seed(0)
    cases = [[torch.tensor(c)] for c in ([0], [1], [0, 1], [1, 0], [0, 0])]
    cases += [[torch.tensor([0]), torch.tensor([1])], [torch.tensor([1]), torch.tensor([0])], []]
    cases += [[torch.randperm(1000)[:500].sort().values] for _ in range(500)]
    found = [int(checksum(case)) & 0xFFFFFFFF for case in cases]
    assert len(set(found)) == len(found)
    bits = torch.tensor(found)[:, None] >> torch.arange(32) & 1
    assert (
        0.4
        < float(bits[-500:].float().mean(0).min())
        < float(bits[-500:].float().mean(0).max())
        < 0.6
    )
