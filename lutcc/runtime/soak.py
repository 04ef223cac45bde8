"""A soak: an artifact is called from several threads for a while, and every result is checked."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lutcc.errors import LutccError
from lutcc.runtime.soak_cases import Call, Case, difference

#: Different messages that are kept of each kind of failure.
MESSAGES = 5
#: Memory may grow by this many bytes, or this share of what it was, without being called growth.
GROWTH_BYTES, GROWTH_SHARE = 16 << 20, 0.05
#: Buckets per doubling of a latency: percentiles are exact to 1 %.
_STEPS = 64
_BUCKETS = 40 * _STEPS


class Latencies:
    """Counts of latencies in buckets, so that a long soak takes no more memory than a short one."""

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self._most = 0

    def add(self, nanoseconds: int) -> None:
        """Count one call."""
        self._counts[min(int(math.log2(nanoseconds or 1) * _STEPS), _BUCKETS - 1)] += 1
        self._most = max(self._most, nanoseconds)

    def merge(self, other: Latencies) -> None:
        """Count another's calls too."""
        self._counts = [a + b for a, b in zip(self._counts, other._counts, strict=True)]
        self._most = max(self._most, other._most)

    def seconds(self, share: float) -> float | None:
        """Return the latency that ``share`` of the calls do not exceed; None without calls."""
        wanted, seen = share * sum(self._counts), 0
        for bucket, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                return min(2 ** ((bucket + 0.5) / _STEPS), self._most) * 1e-9
        return None

    def summary(self, name: str) -> Times:
        """Return what a report says of them."""
        p50, p90, p99 = (self.seconds(share) for share in (0.5, 0.9, 0.99))
        longest = self._most * 1e-9 if self._most else None
        return Times(name, sum(self._counts), p50, p90, p99, longest)


@dataclass(frozen=True, slots=True)
class Times:
    """Timed calls of one case, and their latencies in seconds (None without calls)."""

    name: str
    calls: int
    p50: float | None
    p90: float | None
    p99: float | None
    max: float | None


@dataclass(frozen=True, slots=True)
class Failures:
    """How many calls failed, and the first different messages with the count of each."""

    count: int
    first: dict[str, int]


@dataclass(frozen=True, slots=True)
class Memory:
    """The process's resident bytes between warm-up and end.

    ``start`` and ``end`` are the lowest of the first and of the last quarter, so that results in
    flight do not count; the slope is fitted through all samples.
    """

    start: int
    end: int
    bytes_per_minute: float
    bound: int

    @property
    def growth(self) -> int:
        """Bytes by which it grew."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a soak has come."""

    seconds: float
    calls: int
    errors: int
    wrong: int
    resident: int


@dataclass(frozen=True, slots=True)
class Soak:
    """What a soak found. ``memory`` is None if it was too short to tell."""

    callers: int
    seconds: float
    calls: int
    times: tuple[Times, ...]
    errors: Failures
    wrong: Failures
    memory: Memory | None
    interrupted: bool

    @property
    def problems(self) -> list[str]:
        """Why the artifact fails the check; empty if it does not."""
        found: list[str] = []
        if self.errors.count:
            found.append(f"{self.errors.count} errors")
        if self.wrong.count:
            found.append(f"{self.wrong.count} wrong results")
        if not self.calls and not self.errors.count:
            found.append("no call came back")
        if self.memory is not None and self.memory.growth > self.memory.bound:
            found.append(
                f"memory grew by {self.memory.growth / 2**20:.1f} MiB, more than "
                f"{self.memory.bound / 2**20:.1f}"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; times in seconds, memory in bytes."""
        memory = None
        if self.memory is not None:
            memory = {**asdict(self.memory), "growth": self.memory.growth}
        return {
            **asdict(self),
            "calls_per_s": self.calls / self.seconds,
            "memory": memory,
            "problems": self.problems,
            "ok": not self.problems,
        }


class _Caller(threading.Thread):
    """Calls with one draw after the other until told to stop."""

    def __init__(self, index: int, call: Call, cases: Sequence[Case], stop: threading.Event):
        super().__init__(name=f"caller {index}", daemon=True)
        self._call, self._stopped = call, stop
        turns = [(k, draw) for k, case in enumerate(cases) for draw in case.draws]
        start = index % len(turns)  # callers do different things at the same time
        self._turns = [*turns[start:], *turns[:start]]
        self._names = [case.name for case in cases]
        self.times = [Latencies() for _ in cases]
        self.calls = self.errors = self.wrong = 0
        self.error_messages: dict[str, int] = {}
        self.wrong_messages: dict[str, int] = {}
        self.warm = False

    def run(self) -> None:
        """Call; the first round is checked, but not timed."""
        while not self._stopped.is_set():
            for case, draw in self._turns:
                start = time.perf_counter_ns()
                try:
                    results = self._call(*draw.inputs)
                except Exception as error:  # whatever it is, it is what the soak is to find
                    self.errors += 1
                    text = f"{type(error).__name__}: {error}".splitlines()[0]
                    _note(self.error_messages, f"{self._names[case]}: {text}")
                else:
                    elapsed = time.perf_counter_ns() - start
                    self.calls += 1
                    if self.warm:
                        self.times[case].add(elapsed)
                    told = difference(draw, results)
                    if told is not None:
                        self.wrong += 1
                        _note(self.wrong_messages, f"{self._names[case]}: {told}")
                if self._stopped.is_set():
                    break
            else:
                self.warm = True


def _note(messages: dict[str, int], text: str) -> None:
    if text in messages or len(messages) < MESSAGES:
        messages[text] = messages.get(text, 0) + 1


def soak(
    call: Call,
    cases: Sequence[Case],
    *,
    callers: int,
    seconds: float,
    max_growth: int | None = None,
    grace: float = 30.0,
    on_progress: Callable[[Progress], object] | None = None,
    progress_every: float = 5.0,
) -> Soak:
    """Call from ``callers`` threads for ``seconds``, and compare every result bit by bit.

    Parameters
    ----------
    call
        The artifact.
    cases
        What :func:`lutcc.runtime.soak_cases.make_cases` made.
    callers
        Threads that call at the same time.
    seconds
        How long; memory is watched after a fifth of it (5 s at most), once every thread has called
        with everything.
    max_growth
        Bytes that the process may grow by; None: 16 MiB or 5 % of its memory, the greater.
    grace
        Seconds to wait for calls under way at the end; one that has not come back is an error.
    on_progress, progress_every
        Called every so many seconds.

    Returns
    -------
    Soak
        Also after Ctrl-C: what was found until then.

    Raises
    ------
    LutccError
        When the threads cannot be started.
    """
    stop = threading.Event()
    threads = [_Caller(index, call, cases, stop) for index in range(callers)]
    samples: list[tuple[float, int]] = []
    interrupted = False
    start = time.perf_counter()
    try:
        _start(threads)
        every = max(seconds / 400, 0.02)
        sampled, told, now = 0.0, 0.0, 0.0
        while now < seconds:
            stop.wait(min(every, progress_every, seconds - now))
            now = time.perf_counter() - start
            warm = now >= min(5.0, seconds / 5) and all(t.warm for t in threads)
            if warm and now - sampled >= every:
                sampled = now
                samples.append((now, resident_bytes()))
            if on_progress is not None and now - told >= progress_every:
                told = now
                on_progress(
                    Progress(
                        now,
                        sum(t.calls for t in threads),
                        sum(t.errors for t in threads),
                        sum(t.wrong for t in threads),
                        resident_bytes(),
                    )
                )
    except KeyboardInterrupt:
        interrupted = True
    finally:
        stop.set()
    elapsed = time.perf_counter() - start
    stuck = _join(threads, grace)
    return Soak(
        callers,
        elapsed,
        sum(t.calls for t in threads),
        _times(threads, cases),
        _failures([(len(stuck), stuck), *((t.errors, t.error_messages) for t in threads)]),
        _failures([(t.wrong, t.wrong_messages) for t in threads]),
        _memory(samples, max_growth),
        interrupted,
    )


def _start(threads: Sequence[_Caller]) -> None:
    for index, thread in enumerate(threads):
        try:
            thread.start()
        except RuntimeError as error:
            raise LutccError(
                f"only {index} of {len(threads)} threads can be started: {error}",
                where="soak",
                fix="use fewer callers",
            ) from error


def _join(threads: Sequence[_Caller], grace: float) -> dict[str, int]:
    """Wait for calls under way; return a message for each that does not come back."""
    deadline = time.perf_counter() + grace
    for thread in threads:
        thread.join(max(deadline - time.perf_counter(), 0))
    return {
        f"{thread.name} has not come back from a call, {grace:.0f} s after the end": 1
        for thread in threads
        if thread.is_alive()
    }


def _times(threads: Sequence[_Caller], cases: Sequence[Case]) -> tuple[Times, ...]:
    """Return the times of every case, and of all together."""
    whole = Latencies()
    listed: list[Times] = []
    for index, case in enumerate(cases):
        merged = Latencies()
        for thread in threads:
            merged.merge(thread.times[index])
        whole.merge(merged)
        listed.append(merged.summary(case.name))
    return (*listed, whole.summary("all"))


def _failures(parts: Sequence[tuple[int, dict[str, int]]]) -> Failures:
    first: dict[str, int] = {}
    for _, messages in parts:
        for text, count in messages.items():
            if text in first or len(first) < MESSAGES:
                first[text] = first.get(text, 0) + count
    return Failures(sum(count for count, _ in parts), first)


def _memory(samples: Sequence[tuple[float, int]], max_growth: int | None) -> Memory | None:
    """Judge what was sampled after warm-up; a few samples tell nothing yet."""
    if len(samples) < 8:
        return None
    quarter = len(samples) // 4
    start = min(value for _, value in samples[:quarter])
    end = min(value for _, value in samples[-quarter:])
    mean_t = sum(t for t, _ in samples) / len(samples)
    mean_v = sum(v for _, v in samples) / len(samples)
    slope = sum((t - mean_t) * (v - mean_v) for t, v in samples) / sum(
        (t - mean_t) ** 2 for t, _ in samples
    )
    bound = max(GROWTH_BYTES, int(GROWTH_SHARE * start)) if max_growth is None else max_growth
    return Memory(start, end, slope * 60, bound)


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
