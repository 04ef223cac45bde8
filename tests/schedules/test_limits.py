"""Register-only loops: they run, and their rates are within what a core can do."""

from __future__ import annotations

import time

import pytest

from lutcc.bench.limits import MIXES, limit_loop, memcpy, scan_limit
from lutcc.bench.scan import scan_kernel, scan_module
from lutcc.errors import TargetError
from tests.schedules.harness import NATIVE_ISA_PARAMS

#: Bounds of the instructions retired per second: 50 MHz at one per cycle (a busy, emulated core)
#: and 7 GHz at eight per cycle.
SLOWEST, FASTEST = 50e6, 56e9


@pytest.mark.parametrize(
    "name", [pytest.param(m.name, marks=pytest.mark.isa(m.isa)) for m in MIXES.values()]
)
def test_rates_are_plausible(name: str) -> None:
    mix = MIXES[name]
    once, lookups = limit_loop(name)
    assert lookups % (mix.chains * mix.work) == 0
    once()
    times = []
    for _ in range(20):
        start = time.perf_counter()
        once()
        times.append(time.perf_counter() - start)
    instructions = lookups / mix.work * len(mix.body)
    assert SLOWEST < instructions / min(times) < FASTEST


@pytest.mark.parametrize("isa", NATIVE_ISA_PARAMS)
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("entries", [16, 64])
def test_every_scan_has_a_limit(isa: str, mean: bool, entries: int) -> None:
    mix = scan_limit(isa, mean=mean, entries=entries)
    assert MIXES[mix.name] is mix
    assert any("avg" in line for line in mix.body) == mean
    limit_loop(mix.name)[0]()


def test_an_unknown_limit_is_named() -> None:
    with pytest.raises(TargetError, match="no limit 'vpshufb'"):
        limit_loop("vpshufb")
    with pytest.raises(TargetError, match="avx3"):
        scan_limit("avx3", mean=False)


@pytest.mark.parametrize("nbytes", [0, 1, 1 << 20])
def test_memcpy(nbytes: int) -> None:
    once = memcpy(nbytes)
    source, target = (cell.cell_contents for cell in once.__closure__ or ())
    target[:] = 0
    once()
    assert source.nbytes == target.nbytes == nbytes
    assert (target == 1).all()
    assert (source == 1).all()


@pytest.mark.parametrize("isa", NATIVE_ISA_PARAMS)
@pytest.mark.parametrize("accumulate", ["exact", "mean"])
def test_the_scan_that_is_held_to_a_limit_runs(isa: str, accumulate: str) -> None:
    module = scan_module(6, 16, 20, accumulate=accumulate, seed=0)
    scan_kernel(module, isa, 70)()
    assert scan_limit(isa, mean=accumulate == "mean").name in MIXES
