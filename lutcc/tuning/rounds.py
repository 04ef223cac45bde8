"""Times kernels against each other in short turns, so that noise hits all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lutcc.tuning.records import Timing

#: A sample is at least this long: the clock and the call of the timer cost some 50 ns.
SAMPLE_S = 100e-6
_MOST_SAMPLES = 200


class Sampler(Protocol):
    """Runs one kernel and times it."""

    def samples(self, number: int, repeat: int) -> Sequence[float]:
        """Return ``repeat`` times the mean seconds of ``number`` calls."""
        ...


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes
    ----------
    seconds
        Of all turns together, where the result is neither clear nor close.
    rounds
        Turns of each kernel in that time.
    cold
        Empty the caches before each call.
    hopeless
        After two rounds, a kernel so many times slower than the first is given up; None: never.
    """

    seconds: float = 0.15
    rounds: int = 6
    cold: bool = False
    hopeless: float | None = 1.5


@dataclass(frozen=True)
class Comparison:
    """What came of one kernel.

    Attributes
    ----------
    timing
        Of the kernel.
    ratio
        Its time over the first one's: the median over rounds.
    stopped
        It was given up.
    """

    timing: Timing
    ratio: float
    stopped: bool


def timing_of(samples: Sequence[float], calls: int) -> Timing:
    """Summarise seconds per call.

    Examples
    --------
    >>> timing_of([1.0, 2.0, 3.0], 3).median
    2.0
    """
    p20, median, p80 = np.percentile(np.asarray(samples, np.float64), (20, 50, 80))
    return Timing(float(min(samples)), float(median), float(p20), float(p80), calls)


class _Turns:
    """One kernel: how it is sampled, and what it has shown so far."""

    def __init__(self, sampler: Sampler, turn_s: float, cold: bool) -> None:
        self._sampler = sampler
        self._number, self._repeat = 1, 1
        each = min(sampler.samples(1, 1))
        if cold:  # emptying the caches takes longer than the call
            start = time.perf_counter()
            sampler.samples(1, 1)
            each = time.perf_counter() - start
        elif each < SAMPLE_S:  # too short for the clock: the mean of many calls
            each = max(min(sampler.samples(16, 2)), 1e-9)
            self._number = max(1, math.ceil(SAMPLE_S / each))
            each *= self._number
        self._repeat = min(max(round(turn_s / each), 1), _MOST_SAMPLES)
        self.taken: list[float] = []
        self.medians: list[float] = []

    def take(self) -> None:
        samples = self._sampler.samples(self._number, self._repeat)
        self.taken.extend(samples)
        self.medians.append(float(np.median(samples)))

    def timing(self) -> Timing:
        return timing_of(self.taken, len(self.taken) * self._number)


def compare(samplers: Sequence[Sampler], plan: Plan) -> list[Comparison]:
    """Time kernels in turns and compare each with the first.

    A round is a turn of each, in alternating order. Clear results need fewer rounds than the plan
    has, close ones get up to twice as many.

    Examples
    --------
    >>> class Fixed:
    ...     def __init__(self, seconds):
    ...         self.seconds = seconds
    ...     def samples(self, number, repeat):
    ...         return [self.seconds] * repeat
    >>> round(compare([Fixed(1e-3), Fixed(1.2e-3)], Plan(rounds=2))[1].ratio, 3)
    1.2
    """
    turn_s = plan.seconds / plan.rounds / max(len(samplers), 2)
    turns = [_Turns(sampler, turn_s, plan.cold) for sampler in samplers]
    start = time.perf_counter()
    stopped = False
    rounds = 0
    while True:
        for turn in turns if rounds % 2 == 0 else reversed(turns):
            turn.take()
        rounds += 1
        elapsed = time.perf_counter() - start
        ratios = [_ratios(turns, index) for index in range(1, len(turns))]
        if rounds == 2 and plan.hopeless is not None and ratios:
            stopped = all(min(r) > plan.hopeless for r in ratios)
        if stopped or _enough(ratios, rounds, elapsed, plan):
            break
    first = Comparison(turns[0].timing(), 1.0, False)
    return [
        first,
        *(
            Comparison(turn.timing(), float(np.median(r)), stopped)
            for turn, r in zip(turns[1:], ratios, strict=True)
        ),
    ]


def _ratios(turns: Sequence[_Turns], index: int) -> list[float]:
    pairs = zip(turns[index].medians, turns[0].medians, strict=True)
    return [mine / first for mine, first in pairs]


def _enough(ratios: Sequence[Sequence[float]], rounds: int, elapsed: float, plan: Plan) -> bool:
    if rounds < 2 or (not ratios and elapsed < plan.seconds and rounds < 4 * plan.rounds):
        return False
    if elapsed >= 2 * plan.seconds or rounds >= 2 * plan.rounds:
        return True
    close = any(_close(r) for r in ratios)
    if rounds >= plan.rounds or elapsed >= plan.seconds:
        return not close
    return rounds >= max(plan.rounds // 2, 3) and bool(ratios) and not close


def _close(ratios: Sequence[float]) -> bool:
    """Tell whether the difference is small against what it varies by from round to round."""
    low, median, high = np.percentile(np.asarray(ratios), (20, 50, 80))
    return abs(float(median) - 1.0) < 2.0 * float(high - low) + 0.01
