"""Made-up training logs, the same every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lutcc.train.runlog import RunLog, RunRecord

METHODS = {"exact": (0.0, 1.0), "topk 50%": (-0.001, 0.55), "crs 10%": (-0.012, 0.2)}


def records(
    task: str = "MLP on digits", *, seeds: int = 5, epochs: int = 8, traffic: bool = False
) -> list[RunRecord]:
    """Return runs of three methods; the accuracies are METHODS' offsets, and some noise."""
    random = np.random.default_rng(0)
    found = []
    for method, (offset, share) in METHODS.items():
        for seed in range(seeds):
            name = f"{task}/{method}/{seed}"
            common = {"run": name, "method": method, "seed": seed, "task": task}
            found.append(RunRecord(**common, step=0, epoch=0.0, settings={"epochs": epochs}))
            for epoch in range(1, epochs + 1):
                done = 1000 * epoch
                accuracy = 0.975 + offset - 0.3 * np.exp(-epoch) + 0.002 * random.normal()
                found.append(
                    RunRecord(
                        **common, step=19 * epoch, epoch=float(epoch), split="test",
                        loss=float(2.3 * np.exp(-epoch / 2) * random.uniform(0.9, 1.1)),
                        accuracy=round(float(min(accuracy, 1)), 4), macs=int(share * done),
                        exact_macs=done, seconds=0.5 * epoch, final=epoch == epochs,
                        bytes=int(share * done) if traffic else None,
                        dense_bytes=done if traffic else None,
                    )
                )  # fmt: skip
    return found


def write(path: Path, made: list[RunRecord]) -> Path:
    """Write records as a log and return its path."""
    log = RunLog(path)
    for record in made:
        log.write(record)
    return path
