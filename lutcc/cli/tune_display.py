"""Shows a tuning session: a bar on a terminal, plain lines elsewhere, a table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from lutcc.cli.console import Console
from lutcc.schedules.space import Config
from lutcc.tuning.names import changed_knobs, duration, full_names, gain
from lutcc.tuning.progress import Event, Progress, Summary

#: Seconds between two plain lines.
QUIET_SECONDS = 5.0


def changes(default: Config, best: Config) -> str:
    """Return what a config changes: ``stage.row_block 256 → 512``."""
    changed = changed_knobs(default, best)
    return ", ".join(f"{name} {before} → {after}" for name, before, after in changed) or "nothing"


class Display:
    """Receives a session's events.

    Parameters
    ----------
    console
        Where to print; a bar if its standard error is a terminal.
    budget
        Seconds that the session may take, for the ETA.
    """

    def __init__(self, console: Console, budget: float | None) -> None:
        self.console, self.budget = console, budget
        self._last = time.monotonic()
        self._first: float | None = None  # the first trial began: before, defaults are measured
        self._start = self._last
        self._kernels: dict[str, Progress] = {}
        self._bar: Bar | None = None
        self._total: TaskID | None = None
        if console.on_terminal and not console.quiet:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rest]}"),
                console=console.progress_console,
            )

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._total = self._bar.add_task("trials", total=None, rest="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def on_event(self, event: Event) -> None:
        """Show one event."""
        progress = event.progress
        if progress is not None:
            self._kernels[progress.task.workload.id] = progress
        if event.kind == "warning":
            self.console.warning(event.message)
        elif event.kind == "task" and progress is not None:
            self.console.detail(f"{self._name(progress)}: default {duration(progress.default_s)}")
        elif event.kind == "final" and progress is not None:
            self.console.detail(f"{self._name(progress)}: {_verdict(progress)}")
        elif event.kind == "trial" and progress is not None:
            assert event.record is not None
            outcome = event.record.outcome
            if outcome.status != "ok":
                self.console.detail(
                    f"{self._name(progress)}: {outcome.status} with {dict(event.record.config)}: "
                    f"{outcome.message}"
                )
            self._update(progress)

    def _name(self, progress: Progress) -> str:
        return full_names([progress.task.workload])[0]

    def _update(self, progress: Progress) -> None:
        kernels = self._kernels.values()
        done, wanted = sum(p.tried for p in kernels), sum(max(p.wanted, p.tried) for p in kernels)
        trials, failures = sum(p.trials for p in kernels), sum(p.failures for p in kernels)
        now = time.monotonic()
        if self._first is None:
            self._first = now
        rate = max(trials - 1, 1) / max(now - self._first, 0.5)
        left = (wanted - done) / rate
        if self.budget is not None:
            left = min(left, max(self.budget - (now - self._start), 0.0))
        rest = (
            f"{self._name(progress)}: best {gain(progress.relative)} the default, "
            f"{rate:.1f} trials/s, {failures} failed, {duration(max(left, 1))} left"
        )
        if self._bar is not None and self._total is not None:
            self._bar.update(self._total, completed=done, total=wanted, rest=rest)
        elif now - self._last >= QUIET_SECONDS:
            self._last = now
            self.console.progress(f"{done}/{wanted} trials; {rest}")


def _verdict(progress: Progress) -> str:
    if progress.broken:
        return progress.broken
    if not progress.tuned:
        return "no config beats the default"
    changed = changes(progress.task.space.default, progress.best)
    return f"{gain(progress.relative)} the default ({changed})"


def summary_table(summary: Summary) -> Iterator[RenderableType]:
    """Yield what a person wants to see of a finished session."""
    table = Table(title=f"{summary.place.cpu}, {summary.place.isa}", title_justify="left")
    table.add_column("kernel")
    for name in ("default", "tuned", "gain", "trials", "failed"):
        table.add_column(name, justify="right")
    table.add_column("changed")
    names = full_names([p.task.workload for p in summary.kernels])
    for name, p in zip(names, summary.kernels, strict=True):
        if p.broken:
            table.add_row(name, "-", "-", "-", "-", "-", p.broken)
            continue
        table.add_row(
            name,
            duration(p.default_s),
            duration(p.default_s * p.relative),
            gain(p.relative),
            f"{p.tried}",
            f"{p.failures}",
            changes(p.task.space.default, p.best) if p.tuned else "nothing: the default is best",
        )
    yield table
    speedup = summary.speedup()
    yield (
        f"{summary.trials} trials in {duration(max(summary.seconds, 1))}, {summary.failures} failed"
        + (f"; {speedup:.2f}× the default, by each kernel's share of the time" if speedup else "")
    )
    yield f"log: {summary.log}"


def summary_data(summary: Summary) -> dict[str, Any]:
    """Return a session as JSON values."""
    return {
        "session": summary.session,
        "cpu": summary.place.cpu,
        "model": summary.place.model,
        "isa": summary.place.isa,
        "log": str(summary.log),
        "trials": summary.trials,
        "failures": summary.failures,
        "seconds": round(summary.seconds, 3),
        "interrupted": summary.interrupted,
        "speedup": summary.speedup(),
        "warnings": list(summary.warnings),
        "kernels": [
            {
                "name": p.task.name,
                "op": p.task.workload.op,
                "workload_id": p.task.workload.id,
                "rows": p.task.workload.rows,
                "default_s": p.default_s,
                "relative": p.relative,
                "config": dict(p.best),
                "default": dict(p.task.space.default),
                "tuned": p.tuned,
                "tried": p.tried,
                "trials": p.trials,
                "failures": p.failures,
                "broken": p.broken or None,
            }
            for p in summary.kernels
        ],
    }
