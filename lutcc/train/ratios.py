"""Schedules of the sampling ratio over training: fixed ones, and one that follows the error."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist

from lutcc.errors import InputError, suggest
from lutcc.nn import SampledLayer, sampled_layers
from lutcc.train.ratio_observer import Observer
from lutcc.train.ratio_schedules import (
    AdaptiveRatio,
    CosineRatio,
    LinearRatio,
    RatioSchedule,
    StepRatio,
)

__all__ = [
    "AdaptiveRatio",
    "CosineRatio",
    "LinearRatio",
    "RatioSchedule",
    "RatioScheduler",
    "StepRatio",
]


class RatioScheduler:
    """Set the sampling ratios of a model's layers, as torch's schedulers set learning rates.

    Call :meth:`step` after each step of the optimizer, on all workers.

    Parameters
    ----------
    model
        Has sampled layers; compiled and wrapped models too.
    schedule
        One of this module, or any object with a method ``ratio(step)``.
    layers
        Pattern of the layers' names, or several.
    group
        The workers that agree on adaptive ratios; all of them if None.

    Raises
    ------
    InputError
        If a pattern matches no sampled layer.

    Examples
    --------
    >>> from lutcc.nn import SampledLinear
    >>> model = torch.nn.Sequential(SampledLinear(8, 8), torch.nn.ReLU(), SampledLinear(8, 2))
    >>> scheduler = RatioScheduler(model, LinearRatio(start=0.25, end=1.0, steps=3))
    >>> for _ in range(3):
    ...     scheduler.step()
    >>> scheduler.get_last_ratio()
    {'0': 1.0, '2': 1.0}
    """

    def __init__(
        self,
        model: torch.nn.Module,
        schedule: RatioSchedule | AdaptiveRatio,
        layers: str | Sequence[str] = "*",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        if not isinstance(schedule, RatioSchedule | AdaptiveRatio):
            raise InputError(
                f"the schedule is a {type(schedule).__name__}",
                where="RatioScheduler",
                fix="use one of lutcc.train.ratios, or an object with a method ratio(step)",
            )
        self.schedule = schedule
        self.last_step = 0
        self._layers = _matching(model, [layers] if isinstance(layers, str) else list(layers))
        self._group = group
        self._squared: dict[str, list[float]] = {}  # by layer, for each candidate
        self._warned = False
        if isinstance(schedule, AdaptiveRatio):
            self._observers = {name: Observer(layer) for name, layer in self._layers.items()}
            for layer in self._layers.values():
                layer.sample_ratio = min(max(layer.sample_ratio, schedule.low), schedule.high)
        self._set()

    def step(self) -> None:
        """Count a step, and set the ratios for the next."""
        self.last_step += 1
        if isinstance(self.schedule, AdaptiveRatio) and self._looks(self.schedule, 1):
            self._adapt(self.schedule)
        self._set()

    def get_last_ratio(self) -> dict[str, float]:
        """Return the present ratio of each layer by name."""
        return {name: layer.sample_ratio for name, layer in self._layers.items()}

    def get_last_error(self) -> dict[str, float]:
        """Return the expected relative error of each layer at its present ratio, where known.

        Adaptive ratios only: others look at no scores.
        """
        if not isinstance(self.schedule, AdaptiveRatio):
            return {}
        known = {name: np.sqrt(values) for name, values in self._squared.items()}
        return {
            name: float(
                np.interp(self._layers[name].sample_ratio, self.schedule.candidates, errors)
            )
            for name, errors in known.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what :meth:`load_state_dict` needs to go on, as JSON values."""
        return {
            "last_step": self.last_step,
            "ratios": self.get_last_ratio(),
            "squared_errors": {name: list(values) for name, values in self._squared.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state, with its ratios.

        Raises
        ------
        InputError
            If the state is of other layers, or of another schedule's candidates.
        """
        ratios = dict(state["ratios"])
        if set(ratios) != set(self._layers):
            other = sorted(set(ratios) ^ set(self._layers))
            raise InputError(
                f"the state has other layers: {', '.join(other)}",
                where="RatioScheduler.load_state_dict",
                fix="make the scheduler with the same model and layers as when it was saved",
            )
        squared = {name: list(values) for name, values in state["squared_errors"].items()}
        sizes = {len(values) for values in squared.values()}
        if sizes - {len(getattr(self.schedule, "candidates", ()))}:
            raise InputError(
                "the state is of a schedule with other ratios",
                where="RatioScheduler.load_state_dict",
                fix="make the scheduler with the schedule with which it was saved",
            )
        self.last_step, self._squared = int(state["last_step"]), squared
        self._set()
        for name, ratio in ratios.items():
            self._layers[name].sample_ratio = ratio

    def _set(self) -> None:
        if isinstance(self.schedule, AdaptiveRatio):
            look = self._looks(self.schedule, 0)
            for observer in self._observers.values():
                observer.watch(look)
            return
        ratio = self.schedule.ratio(self.last_step)
        if ratio is not None:
            for layer in self._layers.values():
                layer.sample_ratio = ratio

    def _looks(self, schedule: AdaptiveRatio, ago: int) -> bool:
        """Return whether the step after ``last_step`` - ago is looked at: the first, and so on."""
        return (self.last_step - ago) % schedule.every == 0

    def _adapt(self, schedule: AdaptiveRatio) -> None:
        ratios = schedule.candidates
        own = [observer.squared_errors(ratios) for observer in self._observers.values()]
        found = self._mean_over_workers(np.stack(own))
        if np.isnan(found).all() and not self._warned:
            self._warned = True
            warnings.warn(
                "no sampled layer gave scores to adapt its ratio by: none was called in training "
                "mode since the last step, or the gradients to look at are inside torch.compile",
                RuntimeWarning,
                stacklevel=3,
            )
        rows = cast(list[list[float]], found.tolist())
        for (name, layer), row in zip(self._layers.items(), rows, strict=True):
            if any(map(math.isnan, row)):
                continue  # not called, or nothing finite to go by
            before = self._squared.get(name, row)
            kept = schedule.momentum
            self._squared[name] = [
                kept * old + (1 - kept) * new for old, new in zip(before, row, strict=True)
            ]
            layer.sample_ratio = schedule.choose(self._squared[name])

    def _mean_over_workers(self, own: np.ndarray) -> np.ndarray:
        """Return the mean of what the workers know, the same everywhere to the bit."""
        if not (dist.is_available() and dist.is_initialized()):
            return own
        on_gpu = "nccl" in dist.get_backend(self._group)
        device = next(iter(self._layers.values())).weight.device if on_gpu else "cpu"
        mine = torch.as_tensor(own, device=device)
        found = [torch.empty_like(mine) for _ in range(dist.get_world_size(self._group))]
        # All gather and each adds up in the same order, since a sum on the way need not.
        dist.all_gather(found, mine, group=self._group)
        every = torch.stack(found).cpu().numpy()
        known = ~np.isnan(every)
        with np.errstate(invalid="ignore"):
            return np.where(known, every, 0.0).sum(0) / known.sum(0)


def _matching(model: torch.nn.Module, patterns: list[str]) -> dict[str, SampledLayer]:
    known = sampled_layers(model)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            what = f"{pattern!r} matches no sampled layer" if known else "no layer is sampled"
            raise InputError(
                what,
                where="RatioScheduler",
                fix=suggest(pattern, list(known))
                if known
                else "lutcc.convert(model, {'*': lutcc.recipes.Sampled()})",
            )
    return {
        name: layer
        for name, layer in known.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }
