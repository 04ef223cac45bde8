"""lutcc bench chains: rows and the table of a small network."""

from __future__ import annotations

import os
from typing import Any

import pytest

from lutcc.bench import chains
from lutcc.bench.baselines import runs_here
from lutcc.bench.chains_images import ALL_LAYERS, QUICK_NETWORK
from lutcc.bench.chains_report import FLOATS, OWN, TWO_CORES, chains_table, verdict
from lutcc.bench.options import BenchOptions


@pytest.mark.thorough
def test_a_small_network_is_measured() -> None:
    cores = (*sorted(os.sched_getaffinity(0)), 0)[:2]
    options = BenchOptions(seconds=0.001, rounds=1, quick=True, cores=cores)
    seen: list[dict[str, Any]] = []
    rows = chains.bench_chains(options, seen.append)
    assert seen == rows
    layers = [row for row in rows if row["network"] == str(chains.QUICK_NETWORK)]
    assert [row["N"] for row in layers] == list(chains.QUICK_BATCHES)
    assert all({FLOATS, TWO_CORES} <= set(row["times"]) for row in layers)
    of_images = [row for row in rows if row["network"] == str(QUICK_NETWORK)]
    assert [row["N"] for row in of_images] == list(chains.QUICK_IMAGES)
    assert rows == [*layers, *of_images]
    assert all({ALL_LAYERS, FLOATS, "int8_onnxruntime"} <= set(row["times"]) for row in of_images)
    for row in rows:
        assert {OWN, "lutcc int8", "lutcc bfloat16", "bf16", "int8_x86"} <= set(row["times"])
        assert ("bf16_onednn" in row["times"]) == runs_here("bf16_onednn")
        assert all(timing["best"] > 0 for timing in row["times"].values())
    assert all(row["dead"] > 0 for row in layers)
    assert chains_table(rows).row_count == sum(len(row["times"]) for row in rows)


def test_other_runs_of_look_ups_are_set_against_the_first() -> None:
    times = {OWN: {"best": 2.0}, TWO_CORES: {"best": 1.0}, "int8_x86": {"best": 8.0}}
    times |= {FLOATS: {"best": 3.0}}
    want = "N = 3: 4.00x the speed of int8_x86; 1.50x that with floats between layers"
    want += "; on two cores 2.00x that on one"
    assert verdict({"N": 3, "times": times}) == want


def test_a_loss_is_called_so() -> None:
    times = {OWN: {"best": 2.0}, "bf16_onednn": {"best": 1.0}, "fp32": {"best": 0.1}}
    assert verdict({"N": 3, "times": times}) == "N = 3: 0.50x the speed of bf16_onednn, a loss"
