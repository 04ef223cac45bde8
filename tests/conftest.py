"""What all tests share: levels that the CPU lacks are skipped or emulated, and it says so."""

from __future__ import annotations

import os
from collections import Counter

import pytest

os.environ.setdefault("TVM_BIND_THREADS", "0")

_skipped: Counter[str] = Counter()
_emulated: Counter[str] = Counter()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose level this CPU does not have, unless it runs the level's emulation."""
    from lutcc.runtime import cpu

    for marker in item.iter_markers("isa"):
        name = str(marker.args[0])
        if name in cpu.supported_isas():
            continue
        if marker.kwargs.get("emulated") and "avx2" in cpu.supported_isas():
            _emulated[name] += 1
            continue
        _skipped[name] += 1
        pytest.skip(f"this CPU has no {name}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many kernel tests did not run natively, or not at all, for want of a CPU."""
    for name in sorted({*_skipped, *_emulated}):
        parts = [
            f"{count} tests {how}"
            for count, how in ((_emulated[name], "emulated"), (_skipped[name], "skipped"))
            if count
        ]
        terminalreporter.write_line(f"ISA level {name}: {', '.join(parts)}, this CPU lacks it")
