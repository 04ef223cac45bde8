"""A made-up log of accuracies, the same every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lutcc.report.accuracy_log import AccuracyRun, append_run

MACHINE = "A processor"
#: Method -> its setting, mean accuracy and time of one row, for each point.
POINTS = {
    "exact-fp32": [({}, 0.975, 9.0)],
    "exact-int8": [({}, 0.973, 6.0)],
    "maddness": [({"codebooks": c}, a, t) for c, a, t in ((4, 0.72, 1.1), (8, 0.84, 1.6))],
    "finetuned": [
        ({"codebooks": c, "K": 16}, a, t)
        for c, a, t in ((16, 0.972, 2.7), (4, 0.88, 1.1), (8, 0.94, 1.6))
    ],
    "lut-nn": [({"codebooks": 8, "K": 16}, 0.945, 14.0)],
    "lookupffn": [({"tables": 32}, 0.93, None)],
}


def runs(
    *, seeds: int = 5, model: str = "64-30-30-30-10", slower: float = 1.0
) -> list[AccuracyRun]:
    """Return the runs of each point, with some noise over seeds; of 1 row, and one of 1024."""
    random = np.random.default_rng(0)
    found = []
    for method, points in POINTS.items():
        for setting, mean, time in points:
            for seed in range(seeds):
                value = round(float(mean + 0.006 * random.normal()), 4)
                run = {
                    "task": "digits", "model": model, "method": method, "setting": setting,
                    "seed": seed, "value": value, "exact": 0.975, "epochs": 250,
                    "date": "2026-11-26T10:00:00Z", "version": "0.1.0",
                }  # fmt: skip
                if time is not None:
                    for rows, factor in ((1, 1.0), (1024, 300.0)):
                        taken = round(time * factor * slower * random.uniform(1, 1.05), 3)
                        timed = {"time_us": taken, "rows": rows, "machine": MACHINE}
                        found.append(AccuracyRun(**run, **timed))
                else:
                    found.append(AccuracyRun(**run))
    return found


def write(path: Path, made: list[AccuracyRun]) -> Path:
    """Write runs as a log and return its path."""
    for run in made:
        append_run(path, run)
    return path
