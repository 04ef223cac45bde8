"""Measures chains of look-ups: found in the model, timed in it, and their effect together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from lutcc import recipes
from lutcc.errors import LutccError
from lutcc.planning.chains import Joint, find_runs, parts_of
from lutcc.planning.layers import Layer
from lutcc.planning.measuring import Measurer
from lutcc.planning.options import GAIN, Option
from lutcc.planning.skipping import Skipping

_SEVERAL = 2


def measure_joints(
    measurer: Measurer,
    layers: Sequence[Layer],
    found: Sequence[Sequence[Option]],
    families: Callable[[int], Sequence[recipes.Config]],
    skipping: Skipping,
    progress: Callable[[str], None],
) -> list[Joint]:
    """Return options of the model's chains of look-ups, and of those without an end.

    Each chain is timed in the whole model; its effect is measured where that pays. Look-ups that
    are known to be beyond the budget in one layer are not tried in its chain, and no chain of the
    layers' shapes once one was far beyond: fitting a chain takes as long as all of its layers.

    Parameters
    ----------
    measurer
        Of the model.
    layers, found
        The layers, and the options of each.
    families
        Returns the look-ups to try by the columns of a layer: chains have those of one place.
    skipping
        What is known to be beyond the budget.
    progress
        Is told what is done.
    """
    whole = measurer.whole()
    if isinstance(whole, str):
        return []
    kinds = [_kinds(*pair, families, skipping) for pair in zip(layers, found, strict=True)]
    usable = [place for place, kind in enumerate(kinds) if any(kind)]
    if len(usable) < _SEVERAL:
        return []
    progress("looking for chains of look-ups")
    runs = [tuple(usable[i] for i in run) for run in _runs(measurer, layers, kinds, usable)]
    joints: list[Joint] = []
    gains: dict[tuple[object, ...], float | None] = {}
    hopeless: dict[tuple[str, ...], str] = {}
    for places in (part for run in runs for part in parts_of(run)):
        of = [layers[place] for place in places]
        for options in zip(*(kinds[place] for place in places), strict=True):
            if any(option is None for option in options):
                continue
            joint = Joint(places, tuple(layer.name for layer in of), tuple(options))
            shape = tuple(layer.key for layer in of)
            if shape in hopeless:
                joints.append(dataclasses.replace(joint, skipped=hopeless[shape]))
                continue
            key = (*shape, joint.configs)
            if key not in gains:
                progress(f"timing {joint.title} as {joint.label}")
                seconds = measurer.in_place(dict(zip(joint.names, joint.configs, strict=True)))
                gains[key] = None if seconds is None else whole.seconds - seconds
            joints.append(_measured(joint, gains[key], measurer, of, found, progress))
            if joints[-1].measured and skipping.far_together(joints[-1].drop):
                hopeless[shape] = f"{joint.label} is far beyond the budget in {joint.title}"
    return joints


def _runs(
    measurer: Measurer,
    layers: Sequence[Layer],
    kinds: Sequence[Sequence[Option | None]],
    usable: Sequence[int],
) -> list[tuple[int, ...]]:
    """Return the chains among some layers, by their places there."""
    names = [layers[place].name for place in usable]
    configs = [next(o.config for o in kinds[place] if o is not None) for place in usable]
    try:
        model = measurer.stand_in(dict(zip(names, configs, strict=True)))
        return find_runs(model, measurer.example, names)
    except LutccError:  # what cannot be converted or imported as a whole has no chains
        return []


def _kinds(
    layer: Layer,
    options: Sequence[Option],
    families: Callable[[int], Sequence[recipes.Config]],
    skipping: Skipping,
) -> list[Option | None]:
    """Return a layer's option of each kind of look-ups; None where it has none that may do."""
    found: list[Option | None] = []
    for config in families(layer.columns):
        option = next((o for o in options if o.config == config), None)
        if option is None or option.problem or layer.calls != 1:
            found.append(None)
        else:
            beyond = skipping.beyond(option, [o for o in options if o != option], layer.key)
            found.append(None if beyond or skipping.far(option) else option)
    return found


def _measured(
    joint: Joint,
    gain: float | None,
    measurer: Measurer,
    layers: Sequence[Layer],
    found: Sequence[Sequence[Option]],
    progress: Callable[[str], None],
) -> Joint:
    """Return a chain with its gain and, where that pays, its effect."""
    if gain is None:
        return dataclasses.replace(joint, problem="the model cannot be compiled with it")
    joint = dataclasses.replace(joint, gain=gain)
    exact = [options[0] for options in found]
    if joint.seconds(exact) >= GAIN * sum(exact[place].seconds for place in joint.places):
        return dataclasses.replace(joint, skipped="not faster than the exact layers")
    progress(f"fitting {joint.title} as {joint.label}")
    effect = dict(measurer.effect_together(layers, joint.configs))  # not what is kept
    if "problem" in effect:
        return dataclasses.replace(joint, problem=effect["problem"])
    errors = effect.pop("errors")
    options = tuple(
        dataclasses.replace(option, error=error)
        for option, error in zip(joint.options, errors, strict=True)
    )
    return dataclasses.replace(joint, options=options, **effect)
