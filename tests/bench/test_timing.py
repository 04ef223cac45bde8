"""Timing: summaries, turns, binding to a core."""

from __future__ import annotations

import os

import pytest

from lutcc.bench.layers import verdicts
from lutcc.bench.timing import Timing, burst, interleave, pin_to_core
from lutcc.errors import UsageError


def test_summary():
    timing = Timing.of([5000, 1000, 3000, 2000, 4000, 6000])
    assert timing.best == pytest.approx(1e-6)
    assert timing.p20 <= timing.median <= timing.p80
    assert timing.p20 == pytest.approx(2e-6)
    assert timing.p80 == pytest.approx(5e-6)
    assert timing.calls == 6


def test_burst_warms_up_and_calls_at_least_three_times():
    calls = []
    times = burst(lambda: calls.append(1), 0.0, warmup=2)
    assert len(times) == 3
    assert len(calls) == 5
    assert all(time >= 0 for time in times)


def test_a_burst_is_timed_by_the_clock_it_is_given():
    ticks = iter(range(0, 70, 7))
    assert burst(lambda: None, 0.0, warmup=0, least=2, clock=lambda: next(ticks)) == [7, 7]


def test_candidates_take_turns():
    order = []

    def candidate(name: str, nanoseconds: int):
        def run(seconds: float) -> list[int]:
            order.append(name)
            return [nanoseconds, nanoseconds]

        return run

    got = interleave({"a": candidate("a", 10), "b": candidate("b", 20)}, seconds=0, rounds=3)
    assert order == ["a", "b"] * 3
    assert got["a"].calls == 6
    assert got["b"].best == pytest.approx(2 * got["a"].best)


def test_pinning():
    before = os.sched_getaffinity(0)
    try:
        core = pin_to_core()
        assert core == max(before)
        assert os.sched_getaffinity(0) == {core}
        with pytest.raises(UsageError, match="pick one of"):
            pin_to_core(10_000)
    finally:
        os.sched_setaffinity(0, before)


def test_a_loss_is_a_loss():
    def at(seconds: float) -> Timing:
        return Timing(seconds, seconds, seconds, seconds, 1)

    got = verdicts(
        {"lutcc": at(2.0), "fp32": at(8.0), "int8_onednn/amx": at(1.0), "int8_onednn": at(4.0)}
    )
    assert (got["fastest"], got["speedup"]) == ("int8_onednn/amx", 0.5)
    assert (got["fastest_without_amx"], got["speedup_without_amx"]) == ("int8_onednn", 2.0)
