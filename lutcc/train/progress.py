"""Shows training runs on stderr: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from lutcc.train.trainer import Progress

#: Seconds between two plain lines.
QUIET_SECONDS = 10.0


class _Losses(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.fields["values"])


class TrainingDisplay:
    """Receives the progress of several runs, one after the other.

    Parameters
    ----------
    console
        Where to print; by default stderr.

    Examples
    --------
    >>> with TrainingDisplay() as display:                              # doctest: +SKIP
    ...     Trainer(..., report=display.update).run()
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, emoji=False)
        self._tasks: dict[str, TaskID] = {}
        self._last = 0.0
        self._bars: Bars | None = None
        if self.console.is_terminal:
            self._bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                _Losses(),
                TimeRemainingColumn(),
                console=self.console,
            )

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def say(self, message: str) -> None:
        """Print one line of news."""
        self.console.print(message, markup=False, style="dim", soft_wrap=True)

    def update(self, progress: Progress) -> None:
        """Show how far a run is."""
        values = describe(progress)
        if self._bars is not None:
            if progress.model not in self._tasks:
                self._tasks[progress.model] = self._bars.add_task(
                    progress.model, total=progress.steps, values=""
                )
            task = self._tasks[progress.model]
            self._bars.update(task, completed=progress.step, values=values)
            return
        now = time.monotonic()
        if now - self._last >= QUIET_SECONDS or progress.step == progress.steps:
            self._last = now
            self.say(f"{progress.model}: step {progress.step} of {progress.steps}, {values}")


def describe(progress: Progress) -> str:
    """Return the figures of a run in words.

    Examples
    --------
    >>> describe(Progress("a", 5, 10, 3.25, float("nan"), 12345.0))
    'loss 3.250, 12,345 tokens/s'
    """
    held_out = (
        "" if math.isnan(progress.log_perplexity) else f"held out {progress.log_perplexity:.3f}, "
    )
    return f"loss {progress.loss:.3f}, {held_out}{progress.tokens_per_second:,.0f} tokens/s"
