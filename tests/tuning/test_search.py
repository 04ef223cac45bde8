"""Searches over made-up spaces: what they propose, and how soon they find the best."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from lutcc.errors import UsageError
from lutcc.schedules.space import Config, Knob, Space, config_id
from lutcc.tuning.costmodel import CostModel, Known, label
from lutcc.tuning.features import FeatureTable, features_of
from lutcc.tuning.pool import Pool
from lutcc.tuning.records import Outcome, Place, Record
from lutcc.tuning.search import MetaScheduleSearch, Search, make_search
from lutcc.tuning.task import Subject, Task
from lutcc.tuning.transfer import distance, relatives, transferred
from lutcc.tuning.workload import Workload

KINDS = ("metaschedule", "random", "exhaustive")
KNOBS = (
    Knob("stage.row_threshold", (0,)),
    Knob("stage.row_block", (64, 128, 256, 512, 1024)),
    Knob("accumulate.tile_m", (1, 2, 4, 8, 16)),
    Knob("accumulate.tile_r", (1, 2, 3, 4, 6, 8)),
)
DEFAULT = {
    "stage.row_threshold": 0,
    "stage.row_block": 64,
    "accumulate.tile_m": 1,
    "accumulate.tile_r": 1,
}


def fits(config: Config) -> bool:
    return int(config["accumulate.tile_m"]) * int(config["accumulate.tile_r"]) <= 28


def workload(rows: int = 1024, outputs: int = 512, op: str = "scan") -> Workload:
    dims = {
        "rows": rows, "columns_in": 64, "columns_out": outputs, "codebooks": 32,
        "entries": 16, "outputs": outputs, "mean": 0, "depth": 0, "width": 0,
    }  # fmt: skip
    return Workload("stage", op, f"{op} {outputs}", rows, dims=dims, cost={"lookups": rows})


def task_of(space: Space, work: Workload | None = None) -> Task:
    return Task("made up", work or workload(), space, cast(Subject, None), "avx512_vbmi_vnni")


def small(count: int) -> Space:
    return Space((Knob("a", tuple(range(count))), Knob("b", ("only",))), {"a": 0, "b": "only"})


def smooth(config: Config, best: tuple[int, int, int] = (256, 4, 4)) -> float:
    """Relative time with one optimum."""
    names = ("stage.row_block", "accumulate.tile_m", "accumulate.tile_r")
    weights = (0.05, 0.2, 0.15)
    logs = [math.log2(int(config[n])) - math.log2(b) for n, b in zip(names, best, strict=True)]
    return 0.5 + sum(w * abs(x) for w, x in zip(weights, logs, strict=True))


SPACE = Space(KNOBS, DEFAULT, fits)


def run(search: Search, time=smooth, trials: int = 1000, batch: int = 4) -> list[Config]:
    """Return what a search proposes, told the times."""
    proposed: list[Config] = []
    while len(proposed) < trials:
        configs = search.propose(min(batch, trials - len(proposed)))
        if not configs:
            break
        assert len(configs) <= batch
        for config in configs:
            relative = time(config)
            search.tell(config, None if relative is None else 1 / relative)
            proposed.append(config)
    return proposed


def record(work: Workload, config: Config, relative: float | None, isa: str = "avx2") -> Record:
    place = Place("znver5", "made up", isa, None, ())
    outcome = Outcome("ok" if relative else "crash", ratio=relative)
    return Record(work, config, place, outcome, relative, "search", "s", 0, "2026-01-01")


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 8, 9, 20])
def test_small_spaces_are_exhausted(kind, count):
    task = task_of(small(count))
    search = make_search(kind, task, seed=3)
    proposed = run(search, lambda config: 1.0 + int(config["a"]), batch=3)
    assert sorted(int(c["a"]) for c in proposed) == list(range(count))
    assert search.propose(4) == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_valid_config_is_proposed_once(kind):
    task = task_of(SPACE)
    search = make_search(kind, task, seed=1, known=[(DEFAULT, 1.0)])
    proposed = [config_id(c) for c in run(search, batch=7)]
    wanted = {config_id(c) for c in SPACE.configs()} - {config_id(DEFAULT)}
    assert len(proposed) == len(set(proposed)) == len(wanted)
    assert set(proposed) == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_what_others_tell_is_not_proposed(kind):
    search = make_search(kind, task_of(SPACE), seed=1, known=[(DEFAULT, 1.0)])
    others = list(SPACE.configs())[5:60]
    for config in others:
        search.tell(config, 1.0)
    search.tell({"of": "another space"}, 1.0)
    told = {config_id(c) for c in others}
    assert not told & {config_id(c) for c in run(search)}


@pytest.mark.parametrize("kind", KINDS)
def test_proposals_that_were_never_measured_do_not_come_again(kind):
    search = make_search(kind, task_of(SPACE), seed=1)
    seen = [config_id(c) for _ in range(60) for c in search.propose(2)]
    assert len(seen) == len(set(seen)) == sum(1 for _ in SPACE.configs())


def test_an_unknown_search_is_refused():
    with pytest.raises(UsageError, match="no search 'metaschedul'"):
        make_search("metaschedul", task_of(SPACE), seed=0)


def test_all_failing_configs_are_survived():
    proposed = run(make_search("metaschedule", task_of(SPACE), seed=0), lambda config: None)
    assert len(proposed) == sum(1 for _ in SPACE.configs())


def test_neighbours_of_failures_are_avoided():
    def time(config: Config) -> float | None:
        return None if int(config["accumulate.tile_m"]) >= 4 else 1.0

    shares = []
    for seed in range(5):
        search = make_search("metaschedule", task_of(SPACE), seed=seed, known=[(DEFAULT, 1.0)])
        proposed = run(search, time, trials=40)[20:]
        shares.append(statistics.mean(time(c) is None for c in proposed))
    everywhere = statistics.mean(time(c) is None for c in SPACE.configs())
    assert everywhere > 0.4
    assert statistics.median(shares) < 0.1


def test_the_best_is_found_sooner_than_by_chance():
    best = min(map(smooth, SPACE.configs()))
    needed = {"metaschedule": [], "random": []}
    for kind, found in needed.items():
        for seed in range(5):
            search = make_search(kind, task_of(SPACE), seed=seed, known=[(DEFAULT, 1.2)])
            times = [smooth(c) for c in run(search, trials=100)]
            times.append(best)  # where it was not found
            found.append(times.index(best) + 1)
    assert statistics.median(needed["metaschedule"]) <= 24
    assert statistics.median(needed["metaschedule"]) < statistics.median(needed["random"]) / 2


def test_known_results_are_learnt_from():
    configs = list(SPACE.configs())
    known = [(c, smooth(c)) for c in configs if c["stage.row_block"] != 256]
    search = make_search("metaschedule", task_of(SPACE), seed=0, known=known)
    first = search.propose(4)
    best = sorted(smooth(c) for c in configs if c["stage.row_block"] == 256)
    assert min(smooth(c) for c in first) <= best[3]


def test_related_records_come_first_and_guide():
    near, far = workload(2048), workload(2, 16)
    records = [record(near, c, smooth(c), "avx512_vbmi_vnni") for c in SPACE.configs()]
    records += [record(far, c, smooth(c, (64, 16, 1))) for c in SPACE.configs()]
    cold, warm = [], []
    best = min(map(smooth, SPACE.configs()))
    for seed in range(3):
        for related, found in (((), cold), (records, warm)):
            search = make_search(
                "metaschedule", task_of(SPACE), seed=seed, known=[(DEFAULT, 1.0)], related=related
            )
            times = [*(smooth(c) for c in run(search, trials=40)), best]
            found.append(times.index(best) + 1)
    assert max(warm) <= 3 < min(cold)


def test_configs_of_other_spaces_are_adapted():
    other = {"stage.row_block": 2048, "accumulate.tile_m": 32, "accumulate.tile_r": 1, "new": 3}
    records = [record(workload(64), other, 0.5), record(workload(64), DEFAULT, 1.0)]
    found = relatives(task_of(SPACE), records)
    (first,) = transferred(task_of(SPACE), found, 1)
    assert first == DEFAULT | {"stage.row_block": 1024, "accumulate.tile_m": 16}


def test_relatives_are_sorted_by_distance_and_of_one_kind():
    works = [workload(4096), workload(1024, 256), workload(1024, op="other")]
    works.append(Workload("relax", "matmul", "", 1024))
    found = relatives(task_of(SPACE), [record(w, DEFAULT, 1.0) for w in works])
    assert [r.workload.kind for r in found] == ["stage"] * 3
    assert found[0].workload.dims["outputs"] == 256
    assert found[-1].workload.op == "other"
    assert distance(workload(), "avx2", workload(), "avx2") == 0
    assert distance(workload(), "avx2", workload(), "avx512") > 0


@pytest.mark.thorough
def test_the_same_seed_gives_the_same_proposals_in_another_process():
    here = [proposals(related) for related in (False, True)]
    code = (
        "import json, tests.tuning.test_search as t; "
        "print(json.dumps([t.proposals(related) for related in (False, True)]))"
    )
    root = Path(__file__).resolve().parents[2]
    there = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "77", "PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(there.stdout.splitlines()[-1]) == here
    assert [len(found) for found in here] == [40, 40]
    assert here[0] != here[1]


def proposals(related: bool) -> list[dict]:
    """Return the first proposals of a search over a space with words and failures."""
    space = Space((*KNOBS, Knob("way", ("one", "two", "three"))), DEFAULT | {"way": "two"}, fits)
    records = [record(workload(64), c, smooth(c) + 0.1) for c in list(SPACE.configs())[::3]]
    search = make_search("metaschedule", task_of(space), seed=5, related=records if related else ())
    proposed = run(search, lambda c: None if c["way"] == "three" else smooth(c), trials=40)
    return [dict(c) for c in proposed]


def test_seeds_differ():
    first = [
        config_id(make_search(kind, task_of(SPACE), seed=seed).propose(1)[0])
        for kind in ("metaschedule", "random")
        for seed in range(6)
    ]
    assert len(set(first[:6])) > 1
    assert len(set(first[6:])) > 1


def test_evolutionary_search_obeys_the_space_and_finds_the_best():
    search = MetaScheduleSearch(task_of(SPACE), [(DEFAULT, 1.2)], seed=1, evolve=True)
    proposed = run(search, trials=60)
    assert all(c in SPACE for c in proposed)
    assert len({config_id(c) for c in proposed}) == len(proposed)
    assert min(map(smooth, proposed)) == min(map(smooth, SPACE.configs()))


def test_spaces_too_large_to_list_are_searched():
    knobs = tuple(Knob(f"k{i}", tuple(range(8))) for i in range(8))
    space = Space(
        knobs, {k.name: 0 for k in knobs}, lambda c: (int(c["k0"]) + int(c["k1"])) % 2 == 0
    )
    assert not Pool(space).listed

    def time(config: Config) -> float:
        return 1.0 + sum(abs(int(v) - 5) for v in config.values()) / 8

    found = {}
    for kind in ("metaschedule", "random"):
        search = make_search(kind, task_of(space), seed=0, known=[(space.default, 6.0)])
        proposed = run(search, time, trials=64, batch=8)
        assert len({config_id(c) for c in proposed}) == 64
        assert all(c in space for c in proposed)
        found[kind] = min(map(time, proposed))
    assert found["metaschedule"] < found["random"]


def test_features_tell_configs_apart_and_are_finite():
    rows = [features_of(workload(), "avx2", c) for c in SPACE.configs()]
    matrix = FeatureTable.over(rows).matrix(rows)
    assert len(np.unique(matrix, axis=0)) == len(rows)
    assert np.isfinite(matrix).all()


@pytest.mark.parametrize("kind", ["stage", "relax"])
def test_features_of_unknown_knobs_and_dims(kind):
    work = Workload(kind, "matmul", "", 0, dims={"n": 0, "m": -3}, cost={"flops": 0})
    rows = [features_of(work, "avx512", c) for c in ({"pack": "panels", "x": 4}, {"pack": "dot"})]
    table = FeatureTable.over(rows)
    matrix = table.matrix(rows)
    words = [i for i, name in enumerate(table.names) if name.startswith("pack=")]
    assert matrix[:, words].tolist() == [[0.0, 1.0], [1.0, 0.0]]
    column = table.names.index("x")
    assert matrix[0, column] == pytest.approx(math.log2(5))
    assert math.isnan(matrix[1, column])


def test_labels_are_relative_and_bounded():
    assert label([None, None]).tolist() == [-1.5, -1.5]
    assert label([4.0, 2.0, 1e-9]).tolist() == pytest.approx([0.0, -math.log(2), -1.5])


def test_the_model_learns_ranks_and_prefers_own_trials_to_the_prior():
    configs = list(SPACE.configs())
    features = [features_of(workload(), "avx2", c) for c in configs]
    wrong = Known(features, [smooth(c) for c in configs])  # the slower, the better
    model = CostModel(features, [wrong])
    rows = model.encode(features)
    truth = -np.array([smooth(c) for c in configs])
    assert np.corrcoef(model.predict(rows), truth)[0, 1] < -0.5
    model.fit(rows[::2], [1 / smooth(c) for c in configs[::2]])
    assert np.corrcoef(model.predict(rows), truth)[0, 1] > 0.8
