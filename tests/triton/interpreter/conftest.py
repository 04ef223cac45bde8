"""Tests of this folder run in Triton's interpreter, which needs a process of its own.

``TRITON_INTERPRET=1`` must be set before Triton is imported, and other tests of the same session
need Triton without it. So the first of these tests starts a pytest that runs all that were
selected (of its file, where several processes share the files out), and each of them reports what
happened there. Selecting tests works as usual.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent
REPORTS = "LUTCC_INTERPRETER_REPORTS"
INTERPRETED = REPORTS in os.environ
WORKER = "PYTEST_XDIST_WORKER"

_reports = pytest.StashKey[dict[str, list[pytest.TestReport]]]()
_output = pytest.StashKey[str]()

if INTERPRETED:
    from tests.triton.interpreter import memory, repair

    repair.install()
    memory.install()


def is_ours(item: pytest.Item) -> bool:
    return FOLDER in item.path.resolve().parents


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    if INTERPRETED or not is_ours(item):
        return None
    reports = item.session.stash.setdefault(_reports, {})
    if item.nodeid not in reports:
        run_all([other.nodeid for other in item.session.items if shares_process(item, other)], item)
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in reports.get(item.nodeid) or [missing(item)]:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def shares_process(item: pytest.Item, other: pytest.Item) -> bool:
    """Whether one process runs both: all of this folder, or one file where files are shared out."""
    return is_ours(other) and (WORKER not in os.environ or other.path == item.path)


def run_all(nodeids: list[str], item: pytest.Item) -> None:
    """Run the tests in a process that interprets, and keep their reports."""
    session = item.session
    with tempfile.TemporaryDirectory(prefix="lutcc-") as folder:
        path = Path(folder) / "reports.jsonl"
        environment = {**os.environ, "TRITON_INTERPRET": "1", REPORTS: str(path)}
        environment.pop("PYTEST_ADDOPTS", None)
        environment.pop(WORKER, None)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *nodeids]
        ran = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=session.config.rootpath,
            env=environment,
            check=False,
        )
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found: dict[str, list[pytest.TestReport]] = {nodeid: [] for nodeid in nodeids}
    for line in lines:
        report = session.config.hook.pytest_report_from_serializable(
            config=session.config, data=json.loads(line)
        )
        found.setdefault(report.nodeid, []).append(report)
    session.stash[_reports].update(found)
    session.stash[_output] = (
        f"exit code {ran.returncode}\n{ran.stdout[-4000:]}\n{ran.stderr[-4000:]}"
    )


def missing(item: pytest.Item) -> pytest.TestReport:
    """Return the report of a test that the process did not get to."""
    text = f"the interpreting process ended before this test: {item.session.stash[_output]}"
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords={},
        outcome="failed",
        longrepr=text,
        when="call",
    )


if INTERPRETED:
    # pytest calls hooks by their argument names and passes the config where it is asked for
    class Writer:
        def __init__(self, config: pytest.Config) -> None:
            self.config = config

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
            with open(os.environ[REPORTS], "a", encoding="utf-8") as file:
                file.write(json.dumps(data) + "\n")

    @pytest.fixture(autouse=True, scope="session")
    def _one_thread():
        import torch

        torch.set_num_threads(1)

    def pytest_collection_finish(session: pytest.Session) -> None:
        session.config.pluginmanager.register(Writer(session.config))
