"""The options of a layer: what each takes, and what it does to the model's output."""

from __future__ import annotations

import dataclasses
from typing import Any

from lutcc import recipes
from lutcc.planning.candidates import label

EXACT = recipes.Exact()


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """What a layer may become.

    Parameters
    ----------
    config
        Its config in the recipe.
    seconds, nbytes
        Of the compiled layer, for one batch (all calls) and as stored.
    error
        Relative error of the layer's output, on rows that it was not fitted on.
    drop, change
        What it does to the model's output when it is swapped alone, see
        :class:`lutcc.planning.drop.Drop`.
    damage
        What of that counts against the budget, see :meth:`lutcc.planning.drop.Judge.damage`.
    problem
        Why it cannot be taken, or "".
    skipped
        Why its effect was not measured, although it could be taken, or "".
    chain
        The chain that it is taken with, or "": its seconds and damage are then its part of the
        chain's, see :class:`lutcc.planning.chains.Joint`.
    """

    config: recipes.Config
    seconds: float = 0.0
    nbytes: int = 0
    error: float = 0.0
    drop: float = 0.0
    change: float = 0.0
    damage: float = 0.0
    problem: str = ""
    skipped: str = ""
    chain: str = ""

    @property
    def label(self) -> str:
        """Short name of the config."""
        return label(self.config)

    @property
    def measured(self) -> bool:
        """Whether all of it is known: time, size, error and effect."""
        return not self.problem and not self.skipped

    def cost(self, objective: str) -> float:
        """Seconds or bytes."""
        return self.seconds if objective == "time" else float(self.nbytes)

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary, ready for JSON; what is not known is None."""
        facts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if not self.measured:
            facts |= dict.fromkeys(("error", "drop", "change", "damage"))
        return facts | {"config": recipes.config_to_dict(self.config), "label": self.label}


#: An option must be so much cheaper than the exact layer to be worth an error, or the noise.
GAIN = 0.97


def pays(option: Option, exact: Option, objective: str) -> bool:
    """Tell whether an option is known, and worth taking at all."""
    return option.measured and cheaper(option, exact, objective)


def cheaper(option: Option, exact: Option, objective: str) -> bool:
    """Tell whether an option that can be taken is enough cheaper than the exact layer."""
    return not option.problem and option.cost(objective) < GAIN * exact.cost(objective)
