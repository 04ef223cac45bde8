"""Calls of one thread are timed by the processor, others by the wall."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from lutcc.planning import speed
from lutcc.planning.speed import time_in_turns


def waiting(threads: int) -> Any:
    """An artifact that leaves the processor to others for two milliseconds."""

    class Waiting(SimpleNamespace):
        def __call__(self) -> None:
            time.sleep(2e-3)

    return Waiting(num_threads=threads, constants=dict, inputs=())


@pytest.mark.parametrize(("threads", "by_wall"), [(1, False), (2, True)])
def test_what_others_had_of_a_core_does_not_count(monkeypatch, threads: int, by_wall: bool):
    monkeypatch.setattr(speed, "TOTAL", 0.05)
    monkeypatch.setattr(speed, "SECONDS", 1e-4)
    [found] = time_in_turns({"": (waiting(threads), ((), {}))}).values()
    assert (found.seconds >= 2e-3) == by_wall
