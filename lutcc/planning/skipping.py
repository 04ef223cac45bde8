"""Which options need not be fitted: those that cannot be chosen, told from what is known already.

Fitting look-ups takes seconds for each layer, timing them once for each shape takes as long. So all
are timed first, and the effect on the model is measured of those only that could end up in the
recipe.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lutcc import recipes
from lutcc.planning.options import Option, cheaper

#: A drop so many times that allowed is far beyond the budget: what is finer in the same family of
#: options is then not tried. Where the drop is a share of rows, small errors flip none at all.
FAR = {"error": 8.0}
FAR_SHARE = 20.0
#: So much of that is far beyond the budget for a chain, which leaves nothing to other layers.
TOGETHER = 0.5
#: In a layer that is so small a part of the model, look-ups are not tried.
SMALL = 0.01
#: In so many layers of one shape must a family be far beyond, until the others go without it.
LAYERS = 3


def in_order(configs: Sequence[recipes.Config]) -> list[recipes.Config]:
    """Return the order in which effects are measured: exact ones, then from coarse to fine."""
    return sorted(configs, key=_coarseness)


def _coarseness(config: recipes.Config) -> tuple[int, float]:
    if isinstance(config, recipes.Exact):
        return 0, 0.0
    if isinstance(config, recipes.Codebook):
        return 1, -config.alpha
    assert isinstance(config, recipes.Maddness)
    return 2, config.ncodebooks * config.nprototypes**0.25


class Skipping:
    """Remembers what was far beyond the budget, over all layers.

    Parameters
    ----------
    objective, max_drop, measure
        Of the plan.
    total
        Seconds or bytes of the whole exact model; 0 if unknown.
    """

    def __init__(self, objective: str, max_drop: float, measure: str, total: float = 0.0) -> None:
        self._objective, self._max_drop, self._total = objective, max_drop, total
        self._far = max_drop * FAR.get(measure, FAR_SHARE)
        self._failed: Counter[tuple[str, str]] = Counter()

    def reason(self, option: Option, exact: Option, found: Sequence[Option], shape: str) -> str:
        """Return why the effect of an option need not be measured; "" if it must be.

        Parameters
        ----------
        option
            Timed only.
        exact
            The layer as it is.
        found
            Its options that have been measured, by :func:`in_order`.
        shape
            What the layer has in common with others of its kind.
        """
        if not cheaper(option, exact, self._objective):
            less = "faster" if self._objective == "time" else "smaller"
            return f"not {less} than the exact layer"
        if isinstance(option.config, recipes.Exact):
            return ""
        if exact.cost(self._objective) < SMALL * self._total:
            return f"the layer is less than {SMALL:.0%} of the model"
        for other in found:
            cheap = other.cost(self._objective) <= option.cost(self._objective)
            exact_ = isinstance(other.config, recipes.Exact) and other.measured
            if exact_ and cheap and other.drop <= self._max_drop:
                return f"{other.label} is as cheap, and gentler as a rule"
        return self.beyond(option, found, shape)

    def beyond(self, option: Option, found: Sequence[Option], shape: str) -> str:
        """Return why an option that is not exact must be beyond the budget; "" if it need not.

        Parameters
        ----------
        option, found, shape
            As of :meth:`reason`.
        """
        family = type(option.config)
        for other in found:
            if not other.measured:
                continue
            if type(other.config) is family and self.far(other):
                return f"{other.label} is far beyond the budget"
            gentle = isinstance(other.config, recipes.Exact) and other.config.compute == "int8"
            if gentle and other.drop > self._max_drop:
                return f"{other.label}, gentler as a rule, is beyond the budget"
        if self._failed[shape, family.method] >= LAYERS:
            return f"far beyond the budget in {LAYERS} layers of this shape"
        return ""

    def note(self, option: Option, shape: str) -> None:
        """Take in what was measured."""
        if option.measured and self.far(option) and option.config.method != "exact":
            self._failed[shape, option.config.method] += 1

    def far(self, option: Option) -> bool:
        """Tell whether an option alone is far beyond the budget."""
        return option.drop > self._far

    def far_together(self, drop: float) -> bool:
        """Tell whether a chain's drop is so far beyond the budget that finer ones will be too."""
        return drop > TOGETHER * self._far
