"""The numbers of an accuracy report as JSON values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lutcc.report.accuracy_data import Comparison, Conditions, Point
from lutcc.report.training_json import spread_json


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Return everything that a report shows of a comparison; accuracies as parts of 1."""
    return {
        "task": comparison.task,
        "model": comparison.model,
        "metric": comparison.metric,
        "exact": comparison.exact_value,
        "replaced": comparison.replaced,
        "points": [_point(comparison, point) for point in comparison.points],
        "fronts": [_front(comparison, under) for under in comparison.conditions],
    }


def _point(comparison: Comparison, point: Point) -> dict[str, Any]:
    return {
        "method": point.method,
        "setting": dict(point.setting),
        "seeds": [run.seed for run in point.runs],
        "value": spread_json(point.value),
        "relative": spread_json(point.relative),
        "times": [
            {**asdict(under), **asdict(timing), "gain": comparison.gain(point, under)}
            for under, timing in point.times.items()
        ],
    }


def _front(comparison: Comparison, under: Conditions) -> dict[str, Any]:
    front = comparison.front(under)
    return {
        **asdict(under),
        "points": [{"method": p.method, "setting": dict(p.setting)} for p in front],
    }
