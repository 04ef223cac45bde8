"""Which option each layer gets: the cheapest recipe within a budget, by integer program."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_TOLERANCE = 2e-6  # of the solver: by how much of the budget a solution may break it


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """An option of several layers together.

    Parameters
    ----------
    layers
        Their places.
    options
        The place of each layer's option that stands for the same choice: these are not taken all
        at once, as what they do together is known. None where there is none.
    cost, damage
        Of all together.
    """

    layers: tuple[int, ...]
    options: tuple[int | None, ...]
    cost: float
    damage: float


def choose_options(
    costs: Sequence[Sequence[float]],
    damages: Sequence[Sequence[float]],
    budget: float,
    groups: Sequence[Group] = (),
) -> list[int]:
    """Pick one option for every layer: the least total cost whose total damage is in the budget.

    Parameters
    ----------
    costs
        Of each layer's options: seconds or bytes, finite.
    damages
        Of the same options: what each alone does to the model's output, not negative. Every layer
        needs one option without damage.
    budget
        The most that the damages may add up to.
    groups
        Options of several layers together.

    Returns
    -------
    list[int]
        The place of each layer's option; of a layer in group g that was taken, ``-1 - g``. Of
        options that cost the same, the gentler.

    Raises
    ------
    ValueError
        If a layer has no option without damage, or numbers are not finite.

    Notes
    -----
    A multiple-choice knapsack, with groups a set partitioning besides; solved to optimality by
    HiGHS (``scipy.optimize.milp``).

    Examples
    --------
    >>> choose_options([[9, 2], [9, 4, 1]], [[0, 0.5], [0, 0.4, 2.0]], 1.0)
    [1, 1]
    >>> choose_options([[9, 2], [9, 2]], [[0, 1], [0, 1]], 1.0, [Group((0, 1), (1, 1), 3, 0.8)])
    [-1, -1]
    """
    sizes = [len(layer) for layer in costs]
    for cost, damage in zip(costs, damages, strict=True):
        if len(cost) != len(damage) or not np.isfinite([*cost, *damage]).all():
            raise ValueError(f"costs {cost} and damages {damage} must be as many, and finite")
        if not any(value == 0 for value in damage) or min(damage) < 0:
            raise ValueError(f"one of the damages {damage} must be 0, and none below")
    if not sizes:
        return []
    # An option that another beats in both is never needed: with what is left, ties are few.
    pairs = zip(costs, damages, strict=True)
    kept = [_undominated(*pair, budget, _grouped(i, groups)) for i, pair in enumerate(pairs)]
    usable = [g for g in groups if 0 <= g.damage <= budget and np.isfinite(g.cost)]
    problem = _Problem.of(costs, damages, kept, usable, groups)
    for attempt in range(4):
        taken = problem.solved(budget * (1 - attempt * _TOLERANCE))
        if problem.damage[taken].sum() <= budget * (1 + 1e-12):
            break
    else:  # pragma: no cover - the solver's tolerance is far smaller
        raise ValueError("the solver broke the budget")
    starts = np.cumsum([0, *(len(k) for k in kept)])
    found = [0] * len(kept)
    for variable in np.flatnonzero(taken):
        if variable >= starts[-1]:
            group = usable[variable - starts[-1]]
            for layer in group.layers:
                found[layer] = -1 - groups.index(group)
        else:
            layer = int(np.searchsorted(starts, variable, "right")) - 1
            found[layer] = kept[layer][variable - starts[layer]]
    return found


def _grouped(layer: int, groups: Sequence[Group]) -> set[int | None]:
    """Return the options of a layer that are not always free to be taken."""
    return {o for g in groups for at, o in zip(g.layers, g.options, strict=True) if at == layer}


def _undominated(
    cost: Sequence[float], damage: Sequence[float], budget: float, grouped: set[int | None]
) -> list[int]:
    """Return the options within the budget that none beats which is always free to be taken."""
    order = sorted(range(len(cost)), key=lambda i: (damage[i], cost[i], i))
    kept: list[int] = []
    least = float("inf")
    for i in order:
        if damage[i] <= budget and cost[i] < least:
            kept.append(i)
            least = least if i in grouped else cost[i]
    return kept[::-1]


@dataclasses.dataclass(frozen=True, slots=True)
class _Problem:
    """The variables, 1 if taken: the options of each layer in turn, then the groups.

    Parameters
    ----------
    cost, damage
        Of each.
    owners
        (layers, variables): what a variable decides about; each layer is decided once.
    forbidden
        (groups, variables): single options that must not be taken all, and one less than they are.
    """

    cost: np.ndarray
    damage: np.ndarray
    owners: Any
    forbidden: list[tuple[np.ndarray, int]]

    @classmethod
    def of(
        cls,
        costs: Sequence[Sequence[float]],
        damages: Sequence[Sequence[float]],
        kept: list[list[int]],
        usable: Sequence[Group],
        groups: Sequence[Group],
    ) -> _Problem:
        from scipy.sparse import csr_array

        pairs = [(layer, i) for layer, options in enumerate(kept) for i in options]
        place = {pair: variable for variable, pair in enumerate(pairs)}
        total = len(pairs) + len(usable)
        cost = [costs[layer][i] for layer, i in pairs] + [g.cost for g in usable]
        damage = [damages[layer][i] for layer, i in pairs] + [g.damage for g in usable]
        rows, columns = [layer for layer, _ in pairs], list(range(len(pairs)))
        for number, group in enumerate(usable):
            rows += group.layers
            columns += [len(pairs) + number] * len(group.layers)
        forbidden = []
        for group in groups:
            found = [
                place.get((layer, -1 if i is None else i))
                for layer, i in zip(group.layers, group.options, strict=True)
            ]
            singles = [variable for variable in found if variable is not None]
            if len(singles) == len(found):
                row = np.zeros(total)
                row[singles] = 1
                forbidden.append((row, len(singles) - 1))
        ones = np.ones(len(rows))
        owners = csr_array((ones, (rows, columns)), shape=(len(kept), total))
        return cls(np.asarray(cost, float), np.asarray(damage, float), owners, forbidden)

    def solved(self, budget: float) -> np.ndarray:
        """Return which variables are taken, as (variables,) truth values."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        constraints = [LinearConstraint(self.owners, 1, 1)]
        constraints += [LinearConstraint(row[None], -np.inf, most) for row, most in self.forbidden]
        if budget > 0:
            constraints.append(LinearConstraint(self.damage[None] / budget, -np.inf, 1))
        with _nothing_printed():
            found = milp(
                self.cost / max(float(np.abs(self.cost).max()), 1e-300),
                constraints=constraints,
                integrality=np.ones(len(self.cost)),
                bounds=Bounds(0, 1),
                options={"mip_rel_gap": 0.0},
            )
        if found.x is None:  # pragma: no cover - options without damage always fit
            raise ValueError(f"no recipe was found: {found.message}")
        return np.round(found.x).astype(bool)


@contextlib.contextmanager
def _nothing_printed() -> Iterator[None]:
    """Keep off stdout what HiGHS prints there although it is told not to (scipy 1.15 and later)."""
    try:
        sys.stdout.flush()
        before = os.dup(1)
    except (OSError, ValueError, AttributeError):  # there is no stdout
        yield
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 1)
        yield
    finally:
        os.dup2(before, 1)
        os.close(before)
        os.close(nothing)
