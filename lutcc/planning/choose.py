"""Which option each layer gets: the cheapest recipe within a budget, by integer program."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np

_TOLERANCE = 2e-6  # of the solver: by how much of the budget a solution may break it


def choose_options(
    costs: Sequence[Sequence[float]], damages: Sequence[Sequence[float]], budget: float
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

    Returns
    -------
    list[int]
        The place of each layer's option. Of options that cost the same, the gentler.

    Raises
    ------
    ValueError
        If a layer has no option without damage, or numbers are not finite.

    Notes
    -----
    A multiple-choice knapsack, solved to optimality by HiGHS (``scipy.optimize.milp``).

    Examples
    --------
    >>> choose_options([[9, 2], [9, 4, 1]], [[0, 0.5], [0, 0.4, 2.0]], 1.0)
    [1, 1]
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
    kept = [_undominated(c, d, budget) for c, d in zip(costs, damages, strict=True)]
    cost = np.concatenate([np.asarray(c, float)[k] for c, k in zip(costs, kept, strict=True)])
    damage = np.concatenate([np.asarray(d, float)[k] for d, k in zip(damages, kept, strict=True)])
    owner = np.repeat(np.arange(len(kept)), [len(k) for k in kept])
    for attempt in range(4):
        taken = _solve(cost, damage, owner, budget * (1 - attempt * _TOLERANCE))
        if damage[taken].sum() <= budget * (1 + 1e-12):
            break
    else:  # pragma: no cover - the solver's tolerance is far smaller
        raise ValueError("the solver broke the budget")
    starts = np.cumsum([0, *(len(k) for k in kept)])
    return [int(k[t - s]) for k, t, s in zip(kept, taken, starts, strict=False)]


def _undominated(cost: Sequence[float], damage: Sequence[float], budget: float) -> list[int]:
    """Return the options within the budget that no other beats, cheapest first."""
    order = sorted(range(len(cost)), key=lambda i: (damage[i], cost[i], i))
    kept: list[int] = []
    for i in order:
        if damage[i] <= budget and (not kept or cost[i] < cost[kept[-1]]):
            kept.append(i)
    return kept[::-1]


def _solve(cost: np.ndarray, damage: np.ndarray, owner: np.ndarray, budget: float) -> list[int]:
    """Return the variable that is taken of each owner."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    columns = np.arange(len(cost))
    one = csr_array((np.ones(len(cost)), (owner, columns)))
    constraints = [LinearConstraint(one, 1, 1)]
    if budget > 0:
        constraints.append(LinearConstraint(damage[None] / budget, -np.inf, 1))
    with _nothing_printed():
        found = milp(
            cost / max(float(np.abs(cost).max()), 1e-300),
            constraints=constraints,
            integrality=np.ones(len(cost)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0.0},
        )
    if found.x is None:  # pragma: no cover - options without damage always fit
        raise ValueError(f"no recipe was found: {found.message}")
    values = np.round(found.x)
    return [int(columns[owner == o][values[owner == o].argmax()]) for o in range(owner[-1] + 1)]


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
