"""Looks for the cheapest recipe whose measured drop is small enough, and times it whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from lutcc import recipes
from lutcc.convert_model import convert as convert_model
from lutcc.planning.calibration import Calibration
from lutcc.planning.chains import Joint
from lutcc.planning.drop import Drop, Judge
from lutcc.planning.estimates import Estimates, Timed, configs_of
from lutcc.planning.options import EXACT, Option, cheaper
from lutcc.planning.speed import Speed

TimeWhole: TypeAlias = Callable[[dict[str, recipes.Config], torch.nn.Module], Speed | None]
_TRIES = 8  # conversions of the whole model, until the exact one is taken
_NEAR = 0.85  # of the allowed drop is near enough
_OFF = 0.15  # of the time of the whole model that layers may be off by, before it corrects them
_MORE = 2  # searches after such corrections


@dataclasses.dataclass(slots=True)
class _Tried:
    """A recipe, what it does, and the converted model if it is still there."""

    chosen: list[Option]
    drop: Drop
    model: torch.nn.Module | None
    budget: float


class Search(Estimates):
    """Chooses, converts, checks; tightens the budget, or widens it, until the drop fits.

    Parameters
    ----------
    model, data
        The exact model and its calibration.
    judge, found, names, objective, whole, everywhere, joints
        Of :class:`lutcc.planning.estimates.Estimates`.
    time_whole
        What a model takes that was converted with a recipe; None if unknown.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        data: Calibration,
        judge: Judge,
        found: list[list[Option]],
        names: list[str],
        objective: str,
        whole: Speed | str,
        everywhere: Callable[[recipes.Config, list[str]], float | None],
        time_whole: TimeWhole,
        joints: Sequence[Joint] = (),
    ) -> None:
        super().__init__(judge, found, names, objective, whole, everywhere, joints)
        self.model, self.data, self.time_whole = model, data, time_whole
        self.budget = 0.0
        self.attempts: list[tuple[list[Option], float]] = []
        self.again: list[Timed] = []  # recipes after which another was looked for
        self.slower = False  # whether the exact model is kept for being the fastest when timed
        self.chosen: list[Option] = []
        self.drop = Drop(0.0, 0.0, 1.0)
        self.converted = model
        self._drops: dict[tuple[recipes.Config, ...], Drop] = {}

    def run(self, max_drop: float, progress: Callable[[str], None]) -> None:
        """Find the cheapest recipe whose measured drop is at most ``max_drop``, and time it whole.

        Where that is far from what the layers promise it corrects their times, and another recipe
        is looked for. The fastest of those that were timed is taken: never one that is slower than
        the exact model. Where size counts, times are only told.
        """
        limit = self.judge.limit(max_drop)
        self.measure_in_place(limit, lambda label: progress(f"timing the model with {label}"))
        found = [self._within(max_drop, progress)]
        for more in range(_MORE + 1):
            chosen, scaled = found[-1].chosen, self.scaled(found[-1].chosen)
            seconds = self._time(found[-1], progress)
            if self.objective != "time" or seconds is None or more == _MORE:
                break
            if abs(scaled / seconds - 1) <= _OFF or not self.anchor(chosen, scaled, seconds):
                break
            again = self._within(max_drop, progress)
            if configs_of(again.chosen) in self.timed:
                break
            self.again.append(self.timed[configs_of(chosen)])
            found.append(again)
        best = found[0]
        if self.objective == "time" and configs_of(best.chosen) in self.timed:
            found += self._anchors_within(max_drop, limit, progress)
            known = [one for one in found if configs_of(one.chosen) in self.timed]
            best = min(known, key=lambda one: self.timed[configs_of(one.chosen)].seconds)
            if self.timed[configs_of(best.chosen)].seconds > self.exact.seconds:
                best = self._tried([options[0] for options in self.found], 0.0, progress)
                self._time(best, progress)
            self.slower = len(self.timed) > 1 and {*configs_of(best.chosen)} == {EXACT}
        self._take(best)

    def _take(self, best: _Tried) -> None:
        """Make a recipe the plan's own; times of layers are those of the last correction."""
        self.chosen, self.drop, self.budget = self.now(best.chosen), best.drop, best.budget
        self.converted = self._convert(best.chosen) if best.model is None else best.model
        self.attempts = [(self.now(chosen), drop) for chosen, drop in self.attempts]
        self.attempts.sort(key=lambda attempt: attempt[0] == self.chosen)  # the plan's own is last

    def _within(self, max_drop: float, progress: Callable[[str], None]) -> _Tried:
        """Convert with other budgets until the measured drop is at most ``max_drop``.

        Where errors are summed as squares, a drop that is far below it is a reason to go further.
        """
        squares = self.judge.measure == "error"
        low, high, budget = 0.0, float("inf"), self.judge.limit(max_drop)
        best: _Tried | None = None
        seen: list[list[Option]] = []
        for attempt in range(_TRIES + 1):
            if attempt == _TRIES:
                budget = 0.0
            chosen = self.pick(budget)
            if chosen in seen:
                break
            seen.append(chosen)
            tried = self._tried(chosen, budget, progress)
            drop, spent = tried.drop.drop, sum(o.damage for o in chosen)
            if drop <= max_drop:
                low, best = max(low, budget), tried
                if not squares or drop >= _NEAR * max_drop:
                    break
                step = min(8.0, (max_drop / max(drop, 1e-12)) ** 2)
                budget = min(budget * step, (low * high) ** 0.5)
            else:
                high = min(high, spent)
                power = 2 if squares else 1
                budget = spent * min(0.8, max(0.2, max_drop / drop)) ** power
                if best is not None:
                    budget = (low * high) ** 0.5
            if high < 1.1 * low or (attempt == _TRIES - 1 and best is not None):
                break
        assert best is not None
        return best

    def _convert(self, chosen: list[Option]) -> torch.nn.Module:
        recipe = dict(zip(self.names, configs_of(chosen), strict=True))
        return convert_model(self.model, recipe, self.data.given)

    def _tried(
        self, chosen: list[Option], budget: float, progress: Callable[[str], None]
    ) -> _Tried:
        """Convert with a recipe and measure its drop, once."""
        drop, model = self._drops.get(configs_of(chosen)), None
        if drop is None:
            progress("converting the whole model")
            model = self._convert(chosen)
            drop = self._drops[configs_of(chosen)] = self.judge.drop(model, "check")
            self.attempts.append((chosen, drop.drop))
        return _Tried(chosen, drop, model, budget)

    def _time(self, tried: _Tried, progress: Callable[[str], None]) -> float | None:
        """Return what the whole model takes with a recipe; None if unknown."""
        speed: Speed | None = None
        scaled = self.scaled(tried.chosen)
        if all(o.config == EXACT for o in tried.chosen):
            speed = self.whole if isinstance(self.whole, Speed) else None
        else:
            progress("timing the converted model")
            tried.model = self._convert(tried.chosen) if tried.model is None else tried.model
            recipe = dict(zip(self.names, configs_of(tried.chosen), strict=True))
            speed = self.time_whole(recipe, tried.model)
        if speed is None:
            return None
        self.timed[configs_of(tried.chosen)] = Timed(speed.seconds, scaled, speed.nbytes)
        return speed.seconds

    def _anchors_within(
        self, max_drop: float, limit: float, progress: Callable[[str], None]
    ) -> list[_Tried]:
        """Return recipes of one config that were timed faster than all found, and may be taken.

        Layers where it is no faster than the exact one, and so was not measured, stay exact.
        """
        least = min(timed.seconds for timed in self.timed.values())
        more = []
        for config, seconds in self.everywhere_seconds.items():
            chosen = [
                options[_place(config, alone, self.objective)]
                for options, alone in zip(self.found, self.alone, strict=True)
            ]
            if seconds >= least or not all(o.measured for o in chosen):
                continue
            if configs_of(chosen) in self.timed or sum(o.damage for o in chosen) > limit:
                continue
            tried = self._tried(chosen, limit, progress)
            if tried.drop.drop <= max_drop and self._time(tried, progress) is not None:
                more.append(tried)
        return more


def _place(config: recipes.Config, options: Sequence[Option], objective: str) -> int:
    """Return which option has a config; the exact one, where there is none or it does not pay."""
    place = next((i for i, o in enumerate(options) if o.config == config and not o.problem), 0)
    option = options[place]
    return place if option.measured or cheaper(option, options[0], objective) else 0
