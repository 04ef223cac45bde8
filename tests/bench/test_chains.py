"""lutcc bench chains: rows and the table of a small network."""

from __future__ import annotations

import os
from typing import Any

from lutcc.bench import chains
from lutcc.bench.chains_report import OWN, TWO_CORES, chains_table, verdict
from lutcc.bench.options import BenchOptions


def test_a_small_network_is_measured() -> None:
    cores = (*sorted(os.sched_getaffinity(0)), 0)[:2]
    options = BenchOptions(seconds=0.001, rounds=1, quick=True, cores=cores)
    seen: list[dict[str, Any]] = []
    rows = chains.bench_chains(options, seen.append)
    assert seen == rows
    assert [row["N"] for row in rows] == list(chains.QUICK_BATCHES)
    assert all(TWO_CORES in row["times"] for row in rows)
    for row in rows:
        assert {OWN, "lutcc int8", "lutcc bfloat16", "fp32", "int8_x86"} <= set(row["times"])
        assert all(timing["best"] > 0 for timing in row["times"].values())
        assert row["dead"] > 0
    assert chains_table(rows).row_count == sum(len(row["times"]) for row in rows)


def test_two_cores_are_set_against_one() -> None:
    times = {OWN: {"best": 2.0}, TWO_CORES: {"best": 1.0}, "int8_x86": {"best": 8.0}}
    want = "N = 3: 4.00x the speed of int8_x86; on two cores 2.00x that on one"
    assert verdict({"N": 3, "times": times}) == want


def test_a_loss_is_called_so() -> None:
    times = {OWN: {"best": 2.0}, "bf16_onednn": {"best": 1.0}, "fp32": {"best": 0.1}}
    assert verdict({"N": 3, "times": times}) == "N = 3: 0.50x the speed of bf16_onednn, a loss"
