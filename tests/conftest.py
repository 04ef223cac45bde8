"""What all tests share: instruction-set levels, skipped out loud where the CPU lacks one."""

from __future__ import annotations

import os
from collections import Counter

import pytest

os.environ.setdefault("TVM_BIND_THREADS", "0")

_skipped: Counter[str] = Counter()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose level this CPU does not have."""
    from lutcc.runtime import cpu

    for marker in item.iter_markers("isa"):
        name = str(marker.args[0])
        if name not in cpu.supported_isas():
            _skipped[name] += 1
            pytest.skip(f"this CPU has no {name}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many kernel tests did not run for want of a CPU."""
    for name, count in sorted(_skipped.items()):
        terminalreporter.write_line(f"ISA level {name}: {count} tests skipped, this CPU lacks it")
