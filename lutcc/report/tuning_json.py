"""The numbers of a tuning report as JSON values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lutcc.report.tuning_data import Kernel, Target
from lutcc.tuning.names import rows_of


def to_json(target: Target) -> dict[str, Any]:
    """Return everything that a report shows of a target; seconds, ratios and counts as numbers."""
    total = target.total
    return {
        "cpu": target.place.cpu,
        "model": target.place.model,
        "isa": target.place.isa,
        "mcpu": target.place.mcpu,
        "features": list(target.place.features),
        "gain": total.gain if total else None,
        "kernels_faster": total.faster if total else 0,
        "trials": target.trials,
        "statuses": target.statuses,
        "seconds": target.seconds,
        "overhead_s": _percentiles(target.overhead_s),
        "spread": _percentiles(target.spread),
        "by_family": [asdict(group) for group in target.by_family],
        "by_rows": [asdict(group) for group in target.by_rows],
        "by_knob": [
            {"knob": knob, "kernels": count, "steps": steps}
            for knob, count, steps in target.by_knob
        ],
        "sessions": [asdict(session) for session in target.sessions],
        "limits": target.limits.to_json() if target.limits else None,
        "kernels": [_kernel(kernel) for kernel in target.kernels],
    }


def _percentiles(pair: tuple[float, float] | None) -> dict[str, float] | None:
    return None if pair is None else {"p50": pair[0], "p90": pair[1]}


def _kernel(kernel: Kernel) -> dict[str, Any]:
    chosen, bound = kernel.chosen, kernel.bound
    return {
        "name": kernel.name,
        "family": kernel.family,
        "op": kernel.workload.op,
        "workload_id": kernel.workload.id,
        "rows": rows_of(kernel.workload),
        "threads": kernel.workload.threads,
        "cache": kernel.workload.cache,
        "default_s": kernel.default_s,
        "best_s": kernel.best_s,
        "relative": kernel.relative,
        "tuned": kernel.tuned,
        "confirmed": kernel.confirmed,
        "config": dict(chosen.config) if chosen else None,
        "changes": [
            {"knob": knob, "before": before, "after": after}
            for knob, before, after in kernel.changes
        ],
        "trials": len(kernel.trials),
        "failures": len(kernel.failures),
        "roofline": kernel.share,
        "roofline_default": kernel.default_share,
        "bound": asdict(bound) if bound else None,
        "curve": list(kernel.curve),
    }
