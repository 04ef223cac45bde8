"""Which limits a report holds kernels against: kept beside the logs, measured here, or assumed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from lutcc.bench.timing import pin_to_core
from lutcc.errors import InputError, LutccError
from lutcc.runtime import cpu
from lutcc.schedules.x86.isa import ISAS
from lutcc.tuning.limits import Limits, assumed_limits, load_limits, measure_limits, save_limits
from lutcc.tuning.records import Place


class LimitsFinder:
    """Gives the limits of a processor; called with its place.

    What was measured on a processor of that model and lies beside the logs comes first; then a
    measurement here, if this is that processor; then what is assumed of the level.

    Parameters
    ----------
    folders
        Of the logs.
    measure
        Measure even what is known, and keep it in the folder of the processor.
    progress
        Told before something is measured: that takes a second or two for each level.
    """

    def __init__(
        self,
        folders: Iterable[Path],
        *,
        measure: bool = False,
        progress: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.folders = list(folders)
        self.measure, self.progress = measure, progress

    def __call__(self, place: Place) -> Limits | None:
        """Return the limits, or None for a level that this version does not know.

        Raises
        ------
        InputError
            If it is to measure a processor that this is not, or a file of limits is broken.
        """
        if place.isa not in ISAS:
            return None
        if self.measure:
            if not _is_here(place):
                raise InputError(
                    f"the log is of {place.cpu} ({place.isa}), which this machine is not",
                    where="--measure",
                    fix="measure on that machine, or leave --measure out",
                )
            limits = self._measured(place)
            for folder in self.folders:
                if folder.name == place.cpu or len(self.folders) == 1:
                    save_limits(folder, limits)
            return limits
        for folder in self.folders:
            kept = load_limits(folder).get(place.isa)
            if kept is not None and kept.model == place.model:
                return kept
        return self._measured(place) if _is_here(place) else assumed_limits(place.isa)

    def _measured(self, place: Place) -> Limits:
        self.progress(f"measuring what a core can do at best with {place.isa}")
        usable = os.sched_getaffinity(0)
        pin_to_core()
        try:
            return measure_limits(place.isa)
        finally:
            os.sched_setaffinity(0, usable)


def _is_here(place: Place) -> bool:
    """Tell whether this machine is the place; LLVM is asked for the processor's name last."""
    if place.model != cpu.model_name() or place.isa not in cpu.supported_isas():
        return False
    from lutcc.tuning.host import cpu_name

    try:
        return cpu_name() == place.cpu
    except LutccError:  # no TVM here: it could not measure either
        return False
