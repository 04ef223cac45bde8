"""Why a layer becomes what it does, in a line."""

from __future__ import annotations

from collections.abc import Sequence

from lutcc.planning.chains import Joint
from lutcc.planning.options import EXACT, Option, pays
from lutcc.planning.result import microseconds


def why(
    options: Sequence[Option], chosen: Option, objective: str, budget: float, limit: float
) -> str:
    """Return the reason for a choice.

    Parameters
    ----------
    options
        The exact layer first.
    chosen
        One of them.
    objective
        "time" or "size".
    budget
        What the damages were allowed to add up to in the end.
    limit
        The most that they may add up to, so that one alone is within the budget.

    Examples
    --------
    >>> from lutcc.recipes import Maddness
    >>> slow = Option(Maddness(ncodebooks=8), seconds=2.6e-6)
    >>> why([Option(EXACT, seconds=2e-6), slow], Option(EXACT), "time", 0.01, 0.01)
    'maddness C=8 is 1.30x slower than exact here'
    """
    exact, others = options[0], options[1:]
    less, more = ("faster", "slower") if objective == "time" else ("smaller", "larger")
    if chosen.config != EXACT:
        gain = exact.cost(objective) / chosen.cost(objective)
        return f"{gain:.2f}x {less} than exact"
    if not others:
        return "the model never calls it on the calibration data"
    usable = [option for option in others if not option.problem]
    if not usable:
        return f"nothing else is possible: {others[0].label}: {others[0].problem}"
    paying = [option for option in usable if pays(option, exact, objective)]
    if not paying:
        best = min(usable, key=lambda option: option.cost(objective))
        ratio = best.cost(objective) / exact.cost(objective)
        if ratio <= 1 and best.skipped:
            return f"{best.label}: {best.skipped}"
        if ratio <= 1:
            return f"{best.label} is hardly {less} than exact ({1 / ratio:.2f}x)"
        return f"{best.label} is {ratio:.2f}x {more} than exact here"
    gentle = min(paying, key=lambda option: option.damage)
    facts = f"error {gentle.error:.3g}, drop {gentle.drop:.2%}"
    if gentle.damage > limit:
        return f"{gentle.label} ({facts}) is beyond the budget"
    if gentle.damage > budget:
        return f"{gentle.label} ({facts}) is beyond the budget, which had to be tightened"
    return f"the budget goes further in other layers; here, {gentle.label} has {facts}"


def why_chain(joint: Joint, taken: bool, seconds: float, exact: float, limit: float) -> str:
    """Return why a chain of layers is taken as one, or is not.

    Parameters
    ----------
    joint
        The chain.
    taken
        Whether the recipe has it.
    seconds, exact
        What it takes in the whole model, and its exact layers.
    limit
        The most that damages may add up to.

    Examples
    --------
    >>> one = Option(EXACT, seconds=2e-6)
    >>> why_chain(Joint((0, 1), ("a", "b"), (one, one)), True, 3e-6, 6e-6, 0.1)
    'a to b stay integers: 3 us together, 4 us one by one; 2.00x faster than exact'
    """
    if not joint.measured:
        return joint.problem or joint.skipped
    facts = f"{microseconds(seconds)} us together, {microseconds(joint.alone)} us one by one"
    if taken:
        return f"{joint.title} stay integers: {facts}; {exact / seconds:.2f}x faster than exact"
    if joint.damage > limit:
        return f"{facts}; drop {joint.drop:.2%} together is beyond the budget"
    return f"{facts}; another choice within the budget is faster"
