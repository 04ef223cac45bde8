"""Options of the IR tests."""

from __future__ import annotations

import contextlib

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    with contextlib.suppress(ValueError):  # another conftest may have it already
        parser.addoption(
            "--update-golden",
            action="store_true",
            default=False,
            help="rewrite tests/ir/goldens from the plain definitions (run as pytest tests/ir)",
        )
