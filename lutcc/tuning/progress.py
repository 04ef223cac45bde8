"""What a tuning session says of itself: each kernel's progress, events, a summary at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from statistics import geometric_mean

from lutcc.schedules.space import Config, config_id
from lutcc.tuning.records import Place, Record
from lutcc.tuning.search import Search
from lutcc.tuning.task import Task


@dataclass
class Progress:
    """One kernel's way through a session; what a progress display reads.

    Attributes
    ----------
    task
        The kernel.
    wanted, tried
        Trials it is to get, and has had (those of earlier sessions among them).
    best, relative
        Best config so far, and its time over the default's.
    default_s
        Median seconds of the default config.
    failures, trials
        Failed trials and all trials of this session.
    tuned
        Whether the final measurement confirmed a config that is faster than the default.
    """

    task: Task
    wanted: int = 0
    tried: int = 0
    best: Config = field(default_factory=dict)
    relative: float = 1.0
    default_s: float = 0.0
    failures: int = 0
    trials: int = 0
    exhausted: bool = False
    tuned: bool = False
    broken: str = ""
    search: Search | None = None
    told: dict[str, float | None] = field(default_factory=dict)

    @property
    def share_s(self) -> float:
        """Seconds of one run of the model that this kernel takes as it is now."""
        return self.task.calls * self.default_s * self.relative

    @property
    def open(self) -> bool:
        """Whether it is to get more trials."""
        return not (self.broken or self.exhausted) and self.tried < self.wanted

    def note(self, config: Config, relative: float | None) -> None:
        """Count a result, and make it the incumbent if it is the best."""
        key = config_id(config)
        self.tried += key not in self.told
        self.told[key] = relative
        if relative is not None and relative < self.relative:
            self.best, self.relative = config, relative

    def tell(self, config: Config, relative: float | None) -> None:
        """Note a result, and let the search learn from it."""
        if self.search is not None:
            self.search.tell(config, None if relative is None else 1.0 / relative)
        self.note(config, relative)

    def ranked(self) -> list[str]:
        """Return the ids of all configs that worked, best first."""
        times = ((relative, key) for key, relative in self.told.items() if relative is not None)
        return [key for _, key in sorted(times)]

    def conclude(self, chosen: Record | None) -> None:
        """Take for best what a compiler that reads the log will take."""
        self.best, self.relative = self.task.space.default, 1.0
        if chosen is not None and chosen.relative is not None and chosen.relative < 1.0:
            self.best, self.relative = chosen.config, chosen.relative
        self.tuned = self.relative < 1.0


@dataclass(frozen=True)
class Event:
    """Something that happened; ``kind`` is ``task``, ``trial``, ``final`` or ``warning``."""

    kind: str
    progress: Progress | None = None
    record: Record | None = None
    message: str = ""


@dataclass(frozen=True)
class Summary:
    """What a session did.

    Attributes
    ----------
    session, place, log
        Its id, the processor, the log file.
    kernels
        Every kernel's progress.
    trials, failures, seconds
        Of this session.
    interrupted
        It was stopped by Ctrl-C; everything measured is in the log.
    warnings
        E.g. that the machine was noisy.
    """

    session: str
    place: Place
    log: Path
    kernels: tuple[Progress, ...]
    trials: int
    failures: int
    seconds: float
    interrupted: bool
    warnings: tuple[str, ...]

    def speedup(self) -> float | None:
        """Return the time of the model before over after, or None if nothing was measured.

        Kernels count by their share; runs (batch sizes, models) are averaged geometrically.
        """
        ratios = []
        for run in {p.task.run for p in self.kernels}:
            group = [p for p in self.kernels if p.task.run == run and p.default_s]
            if group:
                before = sum(p.task.calls * p.default_s for p in group)
                ratios.append(before / sum(p.share_s for p in group))
        return geometric_mean(ratios) if ratios else None
