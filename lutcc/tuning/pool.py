"""The configs of a space that nobody has tried yet."""

from __future__ import annotations

import functools
import random

import numpy as np

from lutcc.schedules.space import Config, KnobValue, Space, config_id

#: Spaces with more combinations are not listed whole, only drawn from.
LISTED = 1 << 18
_MISSES = 512


class Pool:
    """Untried configs of a space.

    Parameters
    ----------
    space
        The space.

    Examples
    --------
    >>> from lutcc.schedules.space import Knob
    >>> pool = Pool(Space((Knob("m", (1, 2, 4)),), {"m": 2}))
    >>> pool.take({"m": 1})
    True
    >>> pool.rest(), pool.take({"m": 1})
    ([{'m': 2}, {'m': 4}], False)
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.listed = space.combinations <= LISTED
        self._taken: set[str] = set()

    @functools.cached_property
    def _all(self) -> dict[str, dict[str, KnobValue]]:
        return {config_id(config): config for config in self.space.configs()}

    def __contains__(self, config: Config) -> bool:
        return config in self.space and config_id(config) not in self._taken

    def take(self, config: Config) -> bool:
        """Mark a config as tried; return whether it was an untried one of the space."""
        fresh = config in self
        self._taken.add(config_id(config))
        return fresh

    def rest(self) -> list[dict[str, KnobValue]]:
        """Return every untried config, in the space's order; for listed spaces."""
        return [config for key, config in self._all.items() if key not in self._taken]

    def draw(self, rng: random.Random) -> dict[str, KnobValue] | None:
        """Return a random untried config, or None if none is found."""
        if self.listed:
            rest = self.rest()
            return rng.choice(rest) if rest else None
        for _ in range(_MISSES):
            config = self.space.at([rng.randrange(len(k.values)) for k in self.space.knobs])
            if config in self:
                return config
        return next((config for config in self.space.configs() if config in self), None)

    def neighbours(self, config: Config) -> list[dict[str, KnobValue]]:
        """Return the untried configs that are one step of one knob away."""
        indices = self.space.indices(config)
        found = []
        for knob, index in enumerate(indices):
            for step in (-1, 1):
                moved = [*indices[:knob], index + step, *indices[knob + 1 :]]
                if 0 <= index + step < len(self.space.knobs[knob].values):
                    found.append(self.space.at(moved))
        return [other for other in found if other in self]

    def coordinates(self, config: Config) -> np.ndarray:
        """Return each knob's place among its values, 0 to 1."""
        sizes = [max(1, len(knob.values) - 1) for knob in self.space.knobs]
        return np.array(self.space.indices(config)) / sizes
