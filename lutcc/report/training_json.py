"""The numbers of a training report as JSON values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lutcc.report.training_data import Method, Spread, Task


def to_json(task: Task) -> dict[str, Any]:
    """Return everything that a report shows of a task; accuracies and shares as parts of 1."""
    return {
        "task": task.name,
        "baseline": task.baseline.name if task.baseline else None,
        "split": task.split or None,
        "pending": list(task.pending),
        "methods": [_method(method, task.by_epoch) for method in task.methods],
    }


def _method(method: Method, by_epoch: bool) -> dict[str, Any]:
    return {
        "method": method.name,
        "seeds": [run.seed for run in method.runs],
        "unfinished": method.unfinished,
        "accuracy": spread_json(method.accuracy),
        "difference": spread_json(method.difference),
        "compute": method.compute,
        "traffic": method.traffic,
        "bytes": method.bytes,
        "loss": spread_json(method.loss),
        "seconds": spread_json(method.seconds),
        "curves": {
            "over": "epochs" if by_epoch else "steps",
            "loss": asdict(method.curve("loss", by_epoch)),
            "accuracy": asdict(method.curve("accuracy", by_epoch)),
        },
    }


def spread_json(found: Spread | None) -> dict[str, Any] | None:
    """Return a spread's numbers, and how many there are."""
    return None if found is None else asdict(found) | {"n": found.n}
