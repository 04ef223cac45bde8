"""Which way computes a sampled product: asked for, or timed once per signature."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lutcc import ops
from lutcc.errors import InputError
from lutcc.ops import sampled_choice
from lutcc.ops.sampled_choice import Product, choose


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    before = ops.get_sampled_backend(), ops.get_compilation()
    yield
    ops.set_sampled_backend(before[0])
    ops.set_compilation(before[1])
    ops.clear_kernels()


class Ways:
    """Two ways that count their calls; each takes a while."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fused: float, index_select: float) -> None:
        self.calls: list[str] = []
        self.fused_seconds, self.seconds = fused, index_select
        self.exists = True
        monkeypatch.setattr(Product, "fused", lambda _, at_once: self.kernel())

    def kernel(self):
        return (lambda: self.run("fused", self.fused_seconds)) if self.exists else None

    def run(self, name: str, seconds: float) -> str:
        self.calls.append(name)
        time.sleep(seconds)
        return name

    def product(self, rows: int = 4) -> Product:
        x = torch.zeros(rows, 3)
        return Product("op", (x,), lambda _: self.run("index_select", self.seconds))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["fused", "index_select"])
def test_what_is_asked_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = Ways(monkeypatch, 0, 0)
    ops.set_sampled_backend(name)
    assert choose(ways.product()) == name
    assert ways.calls == [name]


@pytest.mark.parametrize("faster", ["fused", "index_select"])
def test_the_faster_is_kept(faster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    times = (0.001, 0.004) if faster == "fused" else (0.004, 0.001)
    ways = Ways(monkeypatch, *times)
    ops.set_sampled_backend("auto")
    assert choose(ways.product()) == faster
    assert ways.calls.count("fused") >= sampled_choice.ROUNDS
    assert ways.calls.count("index_select") >= sampled_choice.ROUNDS
    del ways.calls[:]
    assert [choose(ways.product(rows)) for rows in (4, 5, 7)] == [faster] * 3
    assert ways.calls == [faster] * 3
    choose(ways.product(8))  # another size is measured for itself
    assert len(ways.calls) > 5


def test_nothing_is_timed_before_the_kernel_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = Ways(monkeypatch, 0.0, 0.002)
    ways.exists = False
    ops.set_sampled_backend("auto")
    assert [choose(ways.product()) for _ in range(2)] == ["index_select"] * 2
    assert ways.calls == ["index_select"] * 2
    ways.exists = True
    assert choose(ways.product()) == "fused"


def test_nothing_is_timed_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = Ways(monkeypatch, 0.0, 0.002)
    ops.set_sampled_backend("auto")
    monkeypatch.setattr(sampled_choice, "is_captured", lambda _: True)
    assert choose(ways.product()) == "index_select"
    assert ways.calls == ["index_select"]
    monkeypatch.setattr(sampled_choice, "is_captured", lambda _: False)
    choose(ways.product())
    monkeypatch.setattr(sampled_choice, "is_captured", lambda _: True)
    assert choose(ways.product()) == "fused"  # known by now


def test_threads_do_not_wait_for_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = Ways(monkeypatch, 0.005, 0.02)
    ops.set_sampled_backend("auto")
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(choose(ways.product()))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["fused", "index_select", "index_select", "index_select"]
    assert ways.calls.count("fused") == sampled_choice.ROUNDS + 2


def test_deterministic_algorithms_leave_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = Ways(monkeypatch, 0.0, 0.002)
    ops.set_sampled_backend("auto")
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert choose(ways.product()) == "index_select"
    ops.set_sampled_backend("fused")
    assert choose(ways.product()) == "fused"
    assert len(ways.calls) == 2


def test_names() -> None:
    with pytest.raises(InputError, match="'index_selec' is not one of"):
        ops.set_sampled_backend("index_selec")
    ops.set_sampled_backend("index_select")
    assert ops.get_sampled_backend() == "index_select"


@pytest.mark.parametrize("backend", ["auto", "fused"])
def test_never_compiles(backend: str) -> None:
    ops.set_compilation("never")
    ops.set_sampled_backend(backend)
    a, b = torch.randn(5, 8), torch.randn(8, 3)
    y = ops.sampled_matmul(a, b)
    ops.set_sampled_backend("index_select")
    assert torch.equal(y, ops.sampled_matmul(a, b))
    assert ops.kernel_statistics()["compiled"] == 0
