"""Tests that need a GPU: skipped, and counted in the summary, without one."""

from __future__ import annotations

import functools

import pytest

from tests.conftest import note_absence


@functools.cache
def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not has_gpu():
        note_absence(item, "gpu, which this machine lacks", "skipped")
        pytest.skip("this machine has no GPU")
