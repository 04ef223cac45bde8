"""The roofline of a processor: rates that can be, kept and read back, and which of them binds."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lutcc.bench.limits import PRODUCTS, limit_loop, read_loop
from lutcc.errors import InputError
from lutcc.runtime import cpu
from lutcc.schedules.x86.isa import ISAS
from lutcc.tuning.limits import (
    LIMITS_FILE,
    Bound,
    Limits,
    assumed_limits,
    load_limits,
    measure_limits,
    save_limits,
)
from lutcc.tuning.workload import Workload
from tests.schedules.harness import NATIVE_ISA_PARAMS

LIMITS = Limits(
    isa="avx2",
    model="a machine",
    lookups={"vpshufb+vpavgb ymm": 2e11, "vpshufb ymm, 16-bit sums": 1e11},
    flops=1e11,
    reads=((1 << 10, 4e11), (1 << 20, 1e11), (1 << 30, 1e10)),
    caches={"L1": 1 << 15, "L2": 1 << 21},
    measured="2026-11-22T10:00:00+00:00",
)


def work(**cost: float) -> Workload:
    return Workload("stage", "lut_accumulate", "k", 4, dims={"mean": 0, "entries": 16}, cost=cost)


def bound_of(workload: Workload, limits: Limits = LIMITS) -> Bound:
    bound = limits.bound(workload)
    assert bound is not None
    return bound


@pytest.mark.parametrize("isa", NATIVE_ISA_PARAMS)
def test_measured_rates_are_plausible(isa):
    limits = measure_limits(isa, seconds=0.001, rounds=2)
    for rate in limits.lookups.values():
        assert 1e8 < rate < 2e12
    assert 1e8 < limits.flops < 2e12
    assert all(1e7 < rate < 4e12 for _, rate in limits.reads)
    assert limits.model == cpu.model_name()
    assert limits.measured is not None
    assert Limits.from_json(json.loads(json.dumps(limits.to_json()))) == limits


def test_a_level_that_the_processor_lacks_is_refused(monkeypatch):
    monkeypatch.setenv(cpu.MAX_ISA_VARIABLE, "avx2")
    with pytest.raises(InputError, match="no avx512_vbmi_vnni"):
        measure_limits("avx512_vbmi_vnni")


@pytest.mark.parametrize("isa", NATIVE_ISA_PARAMS)
def test_loops_do_what_they_say(isa):
    once, flops = limit_loop(PRODUCTS[isa].name)
    once()
    assert flops % PRODUCTS[isa].work == 0
    for nbytes, least in ((1, 512), (4096, 4096), (5 << 20, 5 << 20)):
        once, read = read_loop(isa, nbytes)
        once()
        assert read >= least
        assert read % 512 == 0


def test_the_resource_that_takes_longest_binds():
    bound = bound_of(work(lookups=1e6, flops=1e3, bytes=1 << 20))
    assert (bound.resource, bound.seconds) == ("memory", pytest.approx((1 << 20) / 1e11))
    assert bound.detail == "reading from L2: 100 GB/s"
    bound = bound_of(work(lookups=1e7, flops=1e3, bytes=1 << 20))
    assert (bound.resource, bound.seconds) == ("look-ups", pytest.approx(1e-4))
    bound = bound_of(work(flops=1e7))
    assert (bound.resource, bound.seconds) == ("arithmetic", pytest.approx(1e-4))
    assert LIMITS.bound(work()) is None
    averaged = replace(work(lookups=1e7), dims={"mean": 1, "entries": 16})
    assert bound_of(averaged).seconds == pytest.approx(5e-5)


def test_threads_share_the_work():
    one, two = work(lookups=1e7), replace(work(lookups=1e7), threads=2)
    assert bound_of(one).seconds == pytest.approx(2 * bound_of(two).seconds)


def test_cold_caches_read_from_memory():
    cold = replace(work(bytes=1 << 10), cache="cold")
    assert bound_of(cold).seconds == pytest.approx((1 << 10) / 1e10)
    assert "memory" in bound_of(cold).detail


def test_reading_rates_are_interpolated():
    assert LIMITS.read_rate(1) == LIMITS.read_rate(1 << 10) == 4e11
    assert LIMITS.read_rate(1 << 15) == pytest.approx(2e11)  # halfway between 4e11 and 1e11
    assert LIMITS.read_rate(1 << 40) == 1e10
    assert [LIMITS.level(n) for n in (1, 1 << 16, 1 << 22)] == ["L1", "L2", "memory"]


@pytest.mark.parametrize("isa", ISAS)
def test_every_level_has_assumed_limits(isa):
    limits = assumed_limits(isa)
    assert limits.measured is None
    for mean in (0, 1):
        for entries in (16, 32, 64, 128):
            scan = replace(work(lookups=1e6), dims={"mean": mean, "entries": entries})
            assert bound_of(scan, limits).seconds > 0


def test_kept_limits_are_read_back(tmp_path):
    folder = tmp_path / "znver5"
    assert load_limits(folder) == {}
    save_limits(folder, LIMITS)
    other = assumed_limits("avx512")
    path = save_limits(folder, other)
    assert load_limits(folder) == {"avx2": LIMITS, "avx512": other}
    faster = replace(LIMITS, flops=2e11)
    save_limits(folder, faster)
    assert load_limits(folder)["avx2"] == faster
    assert [p.name for p in folder.iterdir()] == [LIMITS_FILE] == [path.name]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"schema": 2, "levels": []}',
        '{"schema": 1, "levels": [{"isa": "avx2"}]}',
        json.dumps({"schema": 1, "levels": [LIMITS.to_json() | {"flops": 0}]}),
        json.dumps({"schema": 1, "levels": [LIMITS.to_json() | {"reads": []}]}),
        json.dumps({"schema": 1, "levels": [LIMITS.to_json() | {"lookups": {}}]}),
        json.dumps({"schema": 1, "levels": [LIMITS.to_json() | {"isa": "avx3"}]}),
    ],
)
def test_broken_files_are_named(tmp_path, text):
    (tmp_path / LIMITS_FILE).write_text(text)
    with pytest.raises(InputError, match=rf"{LIMITS_FILE}.*does not hold limits"):
        load_limits(tmp_path)
