"""Times calls so that noise from other work on the machine shows up as spread, not as a result."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Burst = Callable[[float], Sequence[int]]  # seconds to spend -> nanoseconds of each call


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds per call: the best, the median and the 20th and 80th percentile of ``calls``."""

    best: float
    median: float
    p20: float
    p80: float
    calls: int

    @classmethod
    def of(cls, nanoseconds: Sequence[int]) -> Timing:
        """Summarise the times of single calls."""
        ordered = sorted(nanoseconds)
        last = len(ordered) - 1
        pick = [ordered[round(last * share)] * 1e-9 for share in (0.0, 0.5, 0.2, 0.8)]
        return cls(*pick, calls=len(ordered))


def burst(
    call: Callable[[], object],
    seconds: float,
    *,
    warmup: int = 2,
    least: int = 3,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> list[int]:
    """Call for about ``seconds``, at least ``least`` times; return the nanoseconds of each call.

    ``clock`` may be ``time.thread_time_ns`` for what computes in the calling thread alone: on a
    machine that is shared it leaves out the time that others had.
    """
    for _ in range(warmup):
        call()
    times: list[int] = []
    end = clock() + int(seconds * 1e9)
    while True:
        start = clock()
        call()
        stop = clock()
        times.append(stop - start)
        if stop >= end and len(times) >= least:
            return times


def interleave(
    candidates: Mapping[str, Burst], *, seconds: float = 0.02, rounds: int = 10
) -> dict[str, Timing]:
    """Time candidates in turns, so that a slow moment of the machine hits all of them.

    Parameters
    ----------
    candidates
        Name -> function that runs the candidate for the given seconds and returns the nanoseconds
        of each call (see :func:`burst`).
    seconds, rounds
        Length of one turn and number of turns of each candidate.

    Examples
    --------
    >>> times = interleave({"sum": lambda s: burst(lambda: sum(range(100)), s)}, rounds=2)
    >>> times["sum"].best <= times["sum"].median
    True
    """
    samples: dict[str, list[int]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            samples[name].extend(run(seconds))
    return {name: Timing.of(times) for name, times in samples.items()}


def pin_to_core(core: int | None = None) -> int:
    """Bind this process (and the ones it starts) to one core: the last usable one by default."""
    usable = sorted(os.sched_getaffinity(0))
    chosen = usable[-1] if core is None else core
    if chosen not in usable:
        from lutcc.errors import UsageError

        raise UsageError(
            f"core {chosen} is not usable by this process",
            where="--core",
            fix=f"pick one of {usable}",
        )
    os.sched_setaffinity(0, {chosen})
    return chosen
