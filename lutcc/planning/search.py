"""Looks for the cheapest recipe whose measured drop is small enough, and predicts what it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from lutcc import recipes
from lutcc.convert_model import convert as convert_model
from lutcc.planning.calibration import Calibration
from lutcc.planning.choose import choose_options
from lutcc.planning.drop import Drop, Judge
from lutcc.planning.options import EXACT, Option, pays
from lutcc.planning.result import Recipe
from lutcc.planning.speed import Speed

_TRIES = 8  # conversions of the whole model, until the exact one is taken
_NEAR = 0.85  # of the allowed drop is near enough
_FRONT = 24  # budgets of the front, each three quarters of the one before
_LEAST = 0.1  # of its time alone is what a layer takes in the whole model at least
_MOST = 4.0  # times what layers gain alone is what the whole model may gain by them


class Search:
    """Chooses, converts, checks; tightens the budget, or widens it, until the drop fits.

    Parameters
    ----------
    model, data, judge
        The exact model, its calibration, and what is measured on it.
    found
        Of each layer its options, the exact layer first.
    names
        Of the layers.
    objective
        "time" or "size".
    whole
        The exact model; why it cannot be compiled as text.
    everywhere
        Seconds of the whole model with a config in each of the layers that are named; None if
        unknown.
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
    ) -> None:
        self.model, self.data, self.judge, self.names = model, data, judge, names
        self.alone, self.objective, self.whole = found, objective, whole
        self.found = found
        self.everywhere = everywhere
        self.scales: dict[recipes.Config, float] = {}
        self.budget = 0.0
        self.attempts: list[tuple[list[Option], float]] = []
        self.pace = 1.0  # of the machine when the converted model was timed
        self.chosen: list[Option] = []
        self.drop = Drop(0.0, 0.0, 1.0)
        self.converted = model

    @property
    def exact(self) -> Speed:
        """The exact model; the sum of its layers if it cannot be compiled."""
        if isinstance(self.whole, Speed):
            return Speed(self.whole.seconds * self.pace, self.whole.nbytes)
        options = [layer[0] for layer in self.found]
        seconds = sum(o.seconds for o in options) * self.pace
        return Speed(seconds, sum(o.nbytes for o in options))

    @property
    def usable(self) -> list[list[Option]]:
        """Of each layer what pays, the exact layer first."""
        return [
            [options[0], *(o for o in options[1:] if pays(o, options[0], self.objective))]
            for options in self.found
        ]

    def measure_in_place(self, limit: float, progress: Callable[[str], None]) -> None:
        """Measure what configs gain in the whole model, and correct the layers' times by that.

        A layer alone finds its weights in cache; in the model they may come from memory, and what
        follows may be compiled into it. So for each config that could be chosen, the model is timed
        with it in all layers that can have it. Where size counts, for those that would be chosen.
        """
        usable = self.usable if self.objective == "time" else [[o] for o in self.pick(limit)]
        wanted = [option.config for la in usable for option in la if option.damage <= limit]
        for config in dict.fromkeys(wanted):
            if config == EXACT:
                continue
            gains = {
                name: options[0].seconds - option.seconds
                for name, options in zip(self.names, self.alone, strict=True)
                for option in options[1:]
                if option.config == config and not option.problem
            }
            progress(next(o.label for la in self.alone for o in la if o.config == config))
            seconds = self.everywhere(config, list(gains))
            total = sum(gains.values())
            scale = 1.0
            if seconds is not None and isinstance(self.whole, Speed) and total > 0:
                scale = min(max((self.whole.seconds - seconds) / total, 0.0), _MOST)
            self.scales[config] = scale
        self.found = self._corrected()

    def _corrected(self) -> list[list[Option]]:
        """Return the options with times in the whole model.

        Where options gain more there than alone, exact layers must take longer there too, but all
        together no longer than the whole.
        """
        most = max([1.0, *self.scales.values()])
        alone = sum(options[0].seconds for options in self.alone)
        if isinstance(self.whole, Speed) and alone > 0:
            most = min(most, self.whole.seconds / alone)

        def corrected(option: Option, exact: Option) -> Option:
            scale = self.scales.get(option.config, 1.0)
            seconds = most * exact.seconds - scale * (exact.seconds - option.seconds)
            return dataclasses.replace(option, seconds=max(seconds, _LEAST * option.seconds))

        return [[corrected(o, options[0]) for o in options] for options in self.alone]

    def pick(self, budget: float, among: list[list[Option]] | None = None) -> list[Option]:
        """Return the cheapest recipe by the layers' effects."""
        usable = self.usable if among is None else among
        places = choose_options(
            [[o.cost(self.objective) for o in options] for options in usable],
            [[o.damage for o in options] for options in usable],
            budget,
        )
        return [options[i] for options, i in zip(usable, places, strict=True)]

    def predicted(self, chosen: list[Option], drop: float | None = None) -> Recipe:
        """Return what a recipe should take: the exact model, and what layers differ by.

        But no less than its slowest layer.
        """
        pairs = [(o, options[0]) for o, options in zip(chosen, self.found, strict=True)]
        change = self.pace * sum(o.seconds - exact.seconds for o, exact in pairs)
        slowest = self.pace * max((o.seconds for o in chosen if o.config != EXACT), default=0.0)
        return Recipe(
            tuple(o.label for o in chosen),
            max(self.exact.seconds + change, slowest),
            self.exact.nbytes + sum(o.nbytes - exact.nbytes for o, exact in pairs),
            self.judge.expected(sum(o.damage for o in chosen)),
            drop,
        )

    def run(self, max_drop: float, progress: Callable[[str], None]) -> None:
        """Convert with other budgets until the measured drop is at most ``max_drop``.

        Where errors are summed as squares, a drop that is far below it is a reason to go further.
        """
        limit = self.judge.limit(max_drop)
        self.measure_in_place(limit, lambda label: progress(f"timing the model with {label}"))
        squares = self.judge.measure == "error"
        low, high, self.budget = 0.0, float("inf"), limit
        best: tuple[list[Option], Drop, torch.nn.Module, float] | None = None
        seen: list[list[Option]] = []
        for attempt in range(_TRIES + 1):
            if attempt == _TRIES:
                self.budget = 0.0
            chosen = self.pick(self.budget)
            if chosen in seen:
                break
            seen.append(chosen)
            progress("converting the whole model")
            recipe = dict(zip(self.names, (o.config for o in chosen), strict=True))
            converted = convert_model(self.model, recipe, self.data.given)
            drop = self.judge.drop(converted, "check")
            self.attempts.append((chosen, drop.drop))
            spent = sum(o.damage for o in chosen)
            if drop.drop <= max_drop:
                low, best = max(low, self.budget), (chosen, drop, converted, self.budget)
                if not squares or drop.drop >= _NEAR * max_drop:
                    break
                step = min(8.0, (max_drop / max(drop.drop, 1e-12)) ** 2)
                self.budget = min(self.budget * step, (low * high) ** 0.5)
            else:
                high = min(high, spent)
                power = 2 if squares else 1
                self.budget = spent * min(0.8, max(0.2, max_drop / drop.drop)) ** power
                if best is not None:
                    self.budget = (low * high) ** 0.5
            if high < 1.1 * low or (attempt == _TRIES - 1 and best is not None):
                break
        assert best is not None
        self.chosen, self.drop, self.converted, self.budget = best
        self.attempts.sort(key=lambda attempt: attempt[0] == self.chosen)  # the plan's own is last

    def front(self) -> list[Recipe]:
        """Return the recipes that are the cheapest for their damage, the exact one first.

        Of what was timed in the whole model, where time counts.
        """
        known = self.usable
        if self.objective == "time":
            known = [
                [o for o in options if o.config == EXACT or o.config in self.scales]
                for options in known
            ]
        most = sum(max(o.damage for o in options) for options in known)
        found: dict[tuple[str, ...], Recipe] = {}
        for budget in [0.0, *(most * 0.75**i for i in reversed(range(_FRONT)))]:
            recipe = self.predicted(self.pick(budget, known))
            found.setdefault(recipe.labels, recipe)
        return list(found.values())
