"""Check this machine and installation; name the fix for what is missing.

Exits 1 when something that lutcc cannot work without is missing or broken.
"""

from __future__ import annotations

import argparse

from rich.table import Table
from rich.text import Text

from lutcc.cli.console import Console

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``doctor`` has no options of its own."""


def run(args: argparse.Namespace, console: Console) -> int:
    """Run all checks and print one line each."""
    from lutcc.doctor import run_checks

    with console.working("checking (the self-tests take a few seconds)"):
        report = run_checks()
    table = Table(box=None, pad_edge=False, show_header=False)
    for check in report.checks:
        found = Text(check.found)
        if check.fix:
            found.append(f"\nfix: {check.fix}", style=_STYLES[check.status])
        table.add_row(Text(check.status, style=_STYLES[check.status]), Text(check.name), found)
    failed = [check.name for check in report.checks if check.status == "fail"]
    verdict = f"not ready: {', '.join(failed)}" if failed else "ready"
    console.result(report.to_json(), table, verdict)
    return 0 if report.ok else 1
