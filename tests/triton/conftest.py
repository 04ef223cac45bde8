"""Tests that need a GPU: skipped, and counted in the summary, without one."""

from __future__ import annotations

import functools

import pytest

_skipped = pytest.StashKey[int]()


@functools.cache
def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not has_gpu():
        item.config.stash[_skipped] = item.config.stash.get(_skipped, 0) + 1
        pytest.skip("this machine has no GPU")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    count = terminalreporter.config.stash.get(_skipped, 0)
    if count:
        terminalreporter.write_line(f"gpu: {count} tests skipped, this machine has no GPU")
