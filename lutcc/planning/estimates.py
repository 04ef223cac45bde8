"""What recipes should take: layers' times alone, scaled by what whole models gain."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from lutcc import recipes
from lutcc.planning.chains import Joint, apart
from lutcc.planning.choose import Group, choose_options
from lutcc.planning.drop import Judge
from lutcc.planning.options import EXACT, Option, pays
from lutcc.planning.result import Recipe
from lutcc.planning.speed import Speed

_FRONT = 24  # budgets of the front, each three quarters of the one before
_LEAST = 0.1  # of its time alone is what a layer takes in the whole model at least
_MOST = 4.0  # times what layers gain alone is what the whole model may gain by them


@dataclasses.dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of a whole model with a recipe, what layers had promised before, and its bytes."""

    seconds: float
    scaled: float
    nbytes: int


def configs_of(chosen: list[Option]) -> tuple[recipes.Config, ...]:
    """Return the config of each layer."""
    return tuple(option.config for option in chosen)


class Estimates:
    """Predicts what recipes take, and picks the cheapest by their layers.

    Parameters
    ----------
    judge
        What counts against the budget.
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
    joints
        Options of chains of layers.
    """

    def __init__(
        self,
        judge: Judge,
        found: list[list[Option]],
        names: list[str],
        objective: str,
        whole: Speed | str,
        everywhere: Callable[[recipes.Config, list[str]], float | None],
        joints: Sequence[Joint] = (),
    ) -> None:
        self.judge, self.names = judge, names
        self.joints = list(joints)
        self.joint_scales = dict.fromkeys(self.joints, 1.0)
        self.alone, self.objective, self.whole = found, objective, whole
        self.found = found
        self.everywhere = everywhere
        self.scales: dict[recipes.Config, float] = {}
        self.everywhere_seconds: dict[recipes.Config, float] = {}
        self.timed: dict[tuple[recipes.Config, ...], Timed] = {}
        self.pace = 1.0  # of the machine when the converted model was timed

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
            every = len(gains)
            if isinstance(config, recipes.Maddness):  # in a chain they would gain more
                gains = {name: gains[name] for name in apart(list(gains), self._runs)}
            seconds = self.everywhere(config, list(gains))
            if seconds is not None and len(gains) == every:
                self.everywhere_seconds[config] = seconds
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

    @property
    def _runs(self) -> list[tuple[str, ...]]:
        """The names of the layers of each chain."""
        return list(dict.fromkeys(joint.names for joint in self.joints))

    def shared(self, joint: Joint) -> list[Option]:
        """Return the options of a chain's layers, with their times as corrected last."""
        return joint.shared([options[0] for options in self.found], self.joint_scales[joint])

    def pick(self, budget: float, among: list[list[Option]] | None = None) -> list[Option]:
        """Return the cheapest recipe by the effects of layers, and of chains where time counts."""
        usable = self.usable if among is None else among
        joints = [j for j in self.joints if j.measured and self.objective == "time"]
        parts = [self.shared(joint) for joint in joints]
        groups = [
            Group(
                joint.places,
                tuple(
                    _place_of(config, usable[place])
                    for config, place in zip(joint.configs, joint.places, strict=True)
                ),
                sum(option.seconds for option in part),
                joint.damage,
            )
            for joint, part in zip(joints, parts, strict=True)
        ]
        places = choose_options(
            [[o.cost(self.objective) for o in options] for options in usable],
            [[o.damage for o in options] for options in usable],
            budget,
            groups,
        )
        return [
            options[i] if i >= 0 else parts[-1 - i][joints[-1 - i].places.index(layer)]
            for layer, (options, i) in enumerate(zip(usable, places, strict=True))
        ]

    def scaled(self, chosen: list[Option]) -> float:
        """Return what a recipe should take: the exact model, and what layers differ by.

        But no less than its slowest layer.
        """
        pairs = [(o, options[0]) for o, options in zip(chosen, self.found, strict=True)]
        change = self.pace * sum(o.seconds - exact.seconds for o, exact in pairs)
        slowest = self.pace * max((o.seconds for o in chosen if o.config != EXACT), default=0.0)
        return max(self.exact.seconds + change, slowest)

    def predicted(self, chosen: list[Option], drop: float | None = None) -> Recipe:
        """Return what a recipe takes: timed whole if it was, else as :meth:`scaled`.

        Bytes are then those of the whole model too, else the exact one's and what layers differ by.
        """
        pairs = [(o, options[0]) for o, options in zip(chosen, self.found, strict=True)]
        timed = self.timed.get(configs_of(chosen))
        scaled = self.scaled(chosen) if timed is None else timed.scaled * self.pace
        return Recipe(
            tuple(o.label for o in chosen),
            scaled if timed is None else timed.seconds * self.pace,
            self.exact.nbytes + sum(o.nbytes - exact.nbytes for o, exact in pairs)
            if timed is None
            else timed.nbytes,
            self.judge.expected(sum(o.damage for o in chosen)),
            drop,
            scaled,
            timed is not None,
        )

    def anchor(self, chosen: list[Option], scaled: float, seconds: float) -> bool:
        """Correct the gains of a recipe's configs by what it gains when timed whole.

        Returns
        -------
        Whether they could be.
        """
        if not isinstance(self.whole, Speed) or not scaled < self.whole.seconds:
            return False
        part = max(0.0, self.whole.seconds - seconds) / (self.whole.seconds - scaled)
        for config in {o.config for o in chosen if not o.chain} - {EXACT}:
            self.scales[config] = min(part * self.scales.get(config, 1.0), _MOST)
        for joint in self.joints:
            if self.taken(joint, chosen):
                self.joint_scales[joint] = min(part * self.joint_scales[joint], _MOST)
        self.found = self._corrected()
        return True

    def now(self, chosen: list[Option]) -> list[Option]:
        """Return the options of the same configs, with their times as corrected last."""
        taken = [
            next(o for o in options if o.config == one.config)
            for one, options in zip(chosen, self.found, strict=True)
        ]
        for joint in self.joints:
            if self.taken(joint, chosen):
                for place, option in zip(joint.places, self.shared(joint), strict=True):
                    taken[place] = option
        return taken

    @staticmethod
    def taken(joint: Joint, chosen: Sequence[Option]) -> bool:
        """Tell whether a recipe takes a chain as one."""
        return all(
            chosen[place].chain == joint.title and chosen[place].config == config
            for place, config in zip(joint.places, joint.configs, strict=True)
        )

    def front(self) -> list[Recipe]:
        """Return the recipes that are the cheapest for their damage, the exact one first.

        Of what was timed in the whole model, where time counts; all as scaled: so they compare.
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
            chosen = self.pick(budget, known)
            recipe = dataclasses.replace(
                self.predicted(chosen),
                seconds=self.scaled(chosen),
                scaled_seconds=self.scaled(chosen),
                timed_whole=False,
            )
            found.setdefault(recipe.labels, recipe)
        return list(found.values())


def _place_of(config: recipes.Config, options: Sequence[Option]) -> int | None:
    """Return which option has a config."""
    return next((i for i, option in enumerate(options) if option.config == config), None)
