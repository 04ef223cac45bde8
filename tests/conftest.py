"""What all tests share: what this machine lacks is skipped or emulated, and it says so."""

from __future__ import annotations

import os
from collections import Counter

import pytest

os.environ.setdefault("TVM_BIND_THREADS", "0")
os.environ["LUTCC_CACHE_DIR"] = "off"  # what is tested is made by the code that is there
if "PYTEST_XDIST_WORKER" in os.environ:  # a process per core: waiting threads would take its time
    os.environ.setdefault("OMP_NUM_THREADS", "1")

#: A property of a test that ran on a stand-in, or not at all: what of this machine it is about, and
#: which of the two. Properties travel with reports, also from other processes.
ABSENCE = "lutcc.absence"


def note_absence(item: pytest.Item, what: str, how: str) -> None:
    """Let the summary count this test under what the machine lacks."""
    item.user_properties.append((ABSENCE, f"{what}: {{}} tests {how}"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose level this CPU does not have, unless it runs the level's emulation."""
    from lutcc.runtime import cpu

    for marker in item.iter_markers("isa"):
        name = str(marker.args[0])
        if name in cpu.supported_isas():
            continue
        what = f"ISA level {name}, which this CPU lacks"
        if marker.kwargs.get("emulated") and "avx2" in cpu.supported_isas():
            note_absence(item, what, "emulated")
            continue
        note_absence(item, what, "skipped")
        pytest.skip(f"this CPU has no {name}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests ran on a stand-in, or not at all, for want of a CPU or a GPU."""
    found: Counter[str] = Counter()
    tests: set[tuple[str, str]] = set()
    for reports in terminalreporter.stats.values():
        for report in reports:
            for key, value in getattr(report, "user_properties", ()):
                if key == ABSENCE and (report.nodeid, value) not in tests:
                    tests.add((report.nodeid, value))
                    found[value] += 1
    for text, count in sorted(found.items()):
        terminalreporter.write_line(text.format(count))
