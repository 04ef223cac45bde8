"""How the sampling ratio goes over training: by the step, or by the error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from lutcc.errors import InputError
from lutcc.lookup_options import check_count
from lutcc.sampling_options import check_ratio


@runtime_checkable
class RatioSchedule(Protocol):
    """A ratio that depends on the step alone; anything with this method will do."""

    def ratio(self, step: int) -> float | None:
        """Return the ratio after so many steps; None leaves it as it is."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Ramp:
    start: float
    end: float
    steps: int
    levels: int = 16

    def __post_init__(self) -> None:
        """Check every value."""
        where = type(self).__name__
        check_ratio(self.start, where)
        check_ratio(self.end, where)
        check_count(where, "steps", self.steps, 1)
        check_count(where, "levels", self.levels, 1)

    def ratio(self, step: int) -> float:
        """Return the ratio after so many steps."""
        if step <= 0:
            return self.start
        if step >= self.steps:
            return self.end
        exact = self.start + (self.end - self.start) * self._progress(step / self.steps)
        low, high = sorted((self.start, self.end))
        return min(max(round(exact * self.levels) / self.levels, low), high)

    def _progress(self, part: float) -> float:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class LinearRatio(_Ramp):
    """Go from one ratio to another along a line, then stay.

    Parameters
    ----------
    start, end
        First and last ratio.
    steps
        Steps from one to the other.
    levels
        Between them, ratios are multiples of 1 / levels: each new number of pairs has its kernels
        chosen, and perhaps compiled, anew.

    Examples
    --------
    >>> schedule = LinearRatio(start=0.25, end=1.0, steps=100, levels=8)
    >>> [schedule.ratio(step) for step in (0, 20, 50, 100, 200)]
    [0.25, 0.375, 0.625, 1.0, 1.0]
    """

    def _progress(self, part: float) -> float:
        return part


@dataclass(frozen=True, kw_only=True)
class CosineRatio(_Ramp):
    """Go from one ratio to another along half a cosine, slow at both ends, then stay.

    Parameters
    ----------
    start, end, steps, levels
        As for :class:`LinearRatio`.

    Examples
    --------
    >>> schedule = CosineRatio(start=0.25, end=1.0, steps=100, levels=8)
    >>> [schedule.ratio(step) for step in (0, 20, 50, 80, 100)]
    [0.25, 0.375, 0.625, 0.875, 1.0]
    """

    def _progress(self, part: float) -> float:
        return (1 - math.cos(math.pi * part)) / 2


@dataclass(frozen=True)
class StepRatio:
    """Change the ratio at given steps.

    Parameters
    ----------
    milestones
        Ratio by the step from which it holds; before the first the layers keep theirs.

    Examples
    --------
    >>> schedule = StepRatio({0: 0.25, 1000: 0.5, 1500: 1.0})
    >>> [schedule.ratio(step) for step in (0, 999, 1000, 2000)]
    [0.25, 0.25, 0.5, 1.0]
    """

    milestones: Mapping[int, float]

    def __post_init__(self) -> None:
        """Check every value."""
        if not isinstance(self.milestones, Mapping) or not self.milestones:
            raise InputError(
                f"milestones={self.milestones!r} is no mapping from steps to ratios",
                where="StepRatio",
                fix="StepRatio({0: 0.25, 1000: 1.0})",
            )
        for step, ratio in self.milestones.items():
            check_count("StepRatio", "a milestone", step, 0)
            check_ratio(ratio, "StepRatio")

    def ratio(self, step: int) -> float | None:
        """Return the ratio after so many steps."""
        passed = [milestone for milestone in self.milestones if milestone <= step]
        return self.milestones[max(passed)] if passed else None


@dataclass(frozen=True, kw_only=True)
class AdaptiveRatio:
    """Give each layer the smallest ratio whose expected error stays under a target.

    The error is that of :func:`lutcc.train.sampling_error.relative_error`, from the scores of the
    layer's last call: of the forward product, or, where gradients alone are sampled, the larger of
    their errors. It is averaged over calls, and over all workers, who so agree on the ratios.

    Parameters
    ----------
    error
        The relative error to stay under. Top-k of pairs that all are alike has sqrt(1 - ratio); the
        unbiased modes have more, above 1 at small ratios, since they pay for it in variance.
    low, high
        The smallest and the largest ratio; the largest where none meets the target.
    levels
        Ratios are multiples of 1 / levels, and the two ends.
    momentum
        What an average keeps at each look.
    every
        Steps between looks. A look takes the norms of the layer's operands once more, and waits for
        the GPU.

    Notes
    -----
    The paper names ratios that adapt to layers and iterations as future work (section 9).

    Examples
    --------
    >>> AdaptiveRatio(error=0.5, low=0.2, levels=4).candidates
    (0.2, 0.25, 0.5, 0.75, 1.0)
    """

    error: float
    low: float = 1 / 16
    high: float = 1.0
    levels: int = 16
    momentum: float = 0.9
    every: int = 10

    def __post_init__(self) -> None:
        """Check every value."""
        where = "AdaptiveRatio"
        check_ratio(self.low, where)
        check_ratio(self.high, where)
        check_count(where, "levels", self.levels, 1)
        check_count(where, "every", self.every, 1)
        for name, value, top in (("error", self.error, math.inf), ("momentum", self.momentum, 1)):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 <= value < top:
                raise InputError(
                    f"{name}={value!r} is not a number in [0, {top:g})",
                    where=where,
                    fix="use error=0.5 and momentum=0.9",
                )
        if self.low > self.high:
            raise InputError(
                f"low={self.low} is above high={self.high}", where=where, fix="swap them"
            )

    @property
    def candidates(self) -> tuple[float, ...]:
        """The ratios that are possible, ascending."""
        steps = (level / self.levels for level in range(1, self.levels + 1))
        inside = {step for step in steps if self.low < step < self.high}
        return tuple(sorted(inside | {self.low, self.high}))

    def choose(self, squared: Sequence[float]) -> float:
        """Return the smallest candidate whose squared error is small enough."""
        fits = (
            ratio
            for ratio, value in zip(self.candidates, squared, strict=True)
            if value <= self.error**2
        )
        return next(fits, self.high)
