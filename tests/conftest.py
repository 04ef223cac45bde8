"""What all tests share: which of them run by default, and what to do for want of a CPU or a GPU.

What this machine lacks is skipped or emulated, and the summary says so. Cases that would take too
long for every change (markers ``one_in`` and ``thorough``) run with ``--thorough``.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter, defaultdict
from typing import Any

import pytest

os.environ.setdefault("TVM_BIND_THREADS", "0")
os.environ["LUTCC_CACHE_DIR"] = "off"  # what is tested is made by the code that is there
if "PYTEST_XDIST_WORKER" in os.environ:  # a process per core: waiting threads would take its time
    os.environ.setdefault("OMP_NUM_THREADS", "1")

#: A property of a test that ran on a stand-in, or not at all: what of this machine it is about, and
#: which of the two. Properties travel with reports, also from other processes.
ABSENCE = "lutcc.absence"


_left_out = pytest.StashKey[int]()
LEFT_OUT = "lutcc.left_out"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that runs everything."""
    parser.addoption("--thorough", action="store_true", help="run every test and every case")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is for ``--thorough``, unless tests were asked for by name."""
    if config.getoption("thorough") or any("::" in argument for argument in config.args):
        return
    cases: defaultdict[tuple[str, int], list[pytest.Item]] = defaultdict(list)
    left_out: set[pytest.Item] = set()
    for item in items:
        if item.get_closest_marker("thorough"):
            left_out.add(item)
        elif (share := item.get_closest_marker("one_in")) and not lacking(item):
            cases[item.nodeid.partition("[")[0], share.args[0]].append(item)
    for (_, share), alike in cases.items():
        # By a hash, so that the choice is spread over all parameters, and stays.
        alike.sort(key=lambda item: zlib.crc32(item.name.encode()))
        left_out.update(alike[-(-len(alike) // share) :])
    if left_out:
        config.stash[_left_out] = len(left_out)
        if hasattr(config, "workeroutput"):  # in a process of several
            config.workeroutput[LEFT_OUT] = len(left_out)  # pyright: ignore
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Take over what a worker process left out: all of them choose alike."""
    node.config.stash[_left_out] = getattr(node, "workeroutput", {}).get(LEFT_OUT, 0)


def note_absence(item: pytest.Item, what: str, how: str) -> None:
    """Let the summary count this test under what the machine lacks."""
    item.user_properties.append((ABSENCE, f"{what}: {{}} tests {how}"))


def lacking(item: pytest.Item, emulated: bool = False) -> str:
    """Return the level that a test needs and this CPU lacks, or nothing.

    With ``emulated``: where the test runs the level's emulation in its place; without: where it is
    skipped.
    """
    from lutcc.runtime import cpu

    levels = cpu.supported_isas()
    for marker in item.iter_markers("isa"):
        stand_in = bool(marker.kwargs.get("emulated")) and "avx2" in levels
        if str(marker.args[0]) not in levels and stand_in == emulated:
            return str(marker.args[0])
    return ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose level this CPU does not have, unless it runs the level's emulation."""
    if level := lacking(item):
        note_absence(item, f"ISA level {level}, which this CPU lacks", "skipped")
        pytest.skip(f"this CPU has no {level}")
    if level := lacking(item, emulated=True):
        note_absence(item, f"ISA level {level}, which this CPU lacks", "emulated")


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
    if count := terminalreporter.config.stash.get(_left_out, 0):
        terminalreporter.write_line(f"left to --thorough: {count} tests")
