"""From a model and a budget to a recipe: measure, choose, convert, check, tighten."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch

from lutcc import recipes
from lutcc.errors import InputError, LutccError
from lutcc.frontend.exported_layers import as_module
from lutcc.planning.cache import Cache, origin_of
from lutcc.planning.calibration import Calibration, read_calibration
from lutcc.planning.candidates import (
    check_candidates,
    default_candidates,
    has_exact_arithmetic,
    look_ups,
    look_ups_among,
)
from lutcc.planning.chains import Joint
from lutcc.planning.drop import Judge
from lutcc.planning.joining import measure_joints
from lutcc.planning.layers import Layer, find_layers, look_ups_of
from lutcc.planning.measuring import Measurer
from lutcc.planning.options import Option
from lutcc.planning.reasons import why, why_chain
from lutcc.planning.result import ChainPlan, LayerPlan, Plan, microseconds
from lutcc.planning.search import Search
from lutcc.planning.skipping import Skipping
from lutcc.planning.speed import check_target

Progress: TypeAlias = Callable[[int, int, str], None]
OBJECTIVES = ("time", "size")
_SLOWER = "timed whole, no recipe was faster than the exact model"
_DRIFT = 1.1  # of the exact model's time while a plan is made


def plan(
    model: torch.nn.Module | torch.export.ExportedProgram,
    calibration: Any,
    *,
    max_drop: float | str,
    objective: str = "time",
    target: str = "host",
    candidates: Sequence[recipes.Config] | None = None,
    progress: Progress | None = None,
    rows: int | None = None,
    threads: int | None = None,
    labels: Any = None,
    measure: str = "auto",
    cache: str | Path | None = None,
    fresh: bool = False,
) -> Plan:
    """Choose for each layer what makes the model fastest, or smallest, within a budget of error.

    Every linear layer and 2-D convolution is timed as each candidate: compiled kernels, in turns,
    on this processor. Where that is cheaper than the exact layer it is swapped alone, fitted on
    half of the calibration, and a quarter of it tells what that does to the model's output. The
    whole model is timed with each candidate that may be chosen. An integer program takes the
    cheapest recipe whose effects add up to at most the budget. The model is converted with it and
    checked on the last quarter; while its drop is too large, the budget is tightened. Then the
    converted model is timed; if it is far from what its layers promised, that corrects them, and
    another recipe is looked for. Of those that were timed the fastest is taken.

    Parameters
    ----------
    model
        Any module; it is not changed. Of an exported program the layers are found again first,
        see :func:`lutcc.frontend.layers_of`. Layers that look up already (LookupFFN, MADDNESS,
        codebooks) are left as they are.
    calibration
        Typical inputs, as for :func:`lutcc.convert`: at least 8 rows, or 4 batches.
    max_drop
        A part of 1, or a text such as "1%": how much the output may change, by ``measure``.
    objective
        "time": of a call at the batch ``rows``. "size": bytes of weights and tables as compiled.
    target
        One target, as for :func:`lutcc.compile`, that runs on this processor.
    candidates
        Configs to try for every layer; None: those of
        :func:`lutcc.planning.candidates.default_candidates`. Exact layers are always among them.
    progress
        Called as ``progress(done, total, what is done)``.
    rows
        The batch that is timed; default: that of the first calibration batch, of a single array
        at most 64.
    threads
        Of a call; None: all usable cores.
    labels
        (rows of the calibration,) integers, the classes: the drop is then that of the accuracy.
    measure
        "auto", "agreement", "accuracy" or "error", see :class:`lutcc.planning.drop.Judge`.
    cache
        A JSON file of what has been measured: a plan that was interrupted goes on with it. None:
        nothing is kept.
    fresh
        Throw away what the file holds.

    Raises
    ------
    InputError
        If there is no layer to plan for, the calibration is missing, too small or not finite, an
        option is unknown, ``max_drop`` is no part of 1, or the cache is of another plan.
    TargetError
        If the target is unknown or does not run here.

    Notes
    -----
    Effects of layers do not really add up, nor do errors as squares: the check on the converted
    model is what holds. Times of layers do not either; ``Plan.miss`` says by how much.

    Examples
    --------
    >>> made = lutcc.plan(model, rows, max_drop="1%")  # doctest: +SKIP
    >>> made.write("recipe.toml")  # doctest: +SKIP
    >>> small = lutcc.convert(model, made.recipe, rows)  # doctest: +SKIP
    """
    budget = read_max_drop(max_drop)
    model = as_module(model)
    if not isinstance(model, torch.nn.Module):
        raise InputError(
            f"the model is a {type(model).__name__}", where="plan", fix="pass a torch.nn.Module"
        )
    if objective not in OBJECTIVES:
        raise InputError(
            f"objective={objective!r} is unknown", where="plan", fix=f"use one of {OBJECTIVES}"
        )
    check_target(target)
    if threads is not None and (isinstance(threads, bool) or not 1 <= threads <= 1024):
        raise InputError(
            f"{threads!r} threads cannot call", where="plan(threads)", fix="use 1 to 1024"
        )
    given = check_candidates(candidates)
    data = read_calibration(model, calibration, labels, rows)
    layers = find_layers(model, data.example)
    judge = Judge(model, data, measure)
    store = Cache(
        None if cache is None else Path(cache),
        origin_of(model, data, judge.measure, target, threads),
        fresh=fresh,
    )
    told = progress or (lambda done, total, what: None)
    measurer = Measurer(model, data, judge, store, target, threads)
    told(0, len(layers), "compiling the exact model")
    whole = measurer.whole()
    total = 0.0 if isinstance(whole, str) else whole.cost(objective)
    skipping = Skipping(objective, budget, judge.measure, total)
    found = []
    for done, layer in enumerate(layers):
        configs = default_candidates(layer.columns) if given is None else given
        found.append(
            measurer.options(
                layer,
                configs,
                skipping,
                lambda what, done=done, name=layer.name: told(
                    done, len(layers), f"{f'layer {name}' if name else 'the model'}: {what}"
                ),
            )
        )
    names = [layer.name for layer in layers]
    joints: list[Joint] = []
    if objective == "time":
        joints = measure_joints(
            measurer,
            layers,
            found,
            look_ups if given is None else lambda columns: look_ups_among(given),
            skipping,
            lambda what: told(len(layers), len(layers), what),
        )
    search = Search(
        model,
        data,
        judge,
        found,
        names,
        objective,
        whole,
        measurer.everywhere,
        measurer.converted,
        joints,
    )
    search.run(budget, lambda what: told(len(layers), len(layers), what))
    told(len(layers), len(layers), "compiling the converted model")
    return _finish(search, measurer, layers, data, budget, target, given is None)


def read_max_drop(value: Any) -> float:
    """Return a part of 1 from a number, or from a text such as "1%".

    Raises
    ------
    InputError
        If it is no percentage from 0 to 100.

    Examples
    --------
    >>> read_max_drop("0.5%"), read_max_drop(0.02)
    (0.005, 0.02)
    """
    part: float = math.nan
    if isinstance(value, str):
        if re.fullmatch(r"\s*\d+(\.\d*)?\s*%\s*|\s*\.\d+\s*%\s*", value):
            part = float(value.replace("%", "")) / 100
    elif isinstance(value, int | float) and not isinstance(value, bool):
        part = float(value)
    if not 0 <= part <= 1:
        raise InputError(
            f"{value!r} is no percentage from 0 % to 100 %",
            where="max_drop",
            fix="write '1%' (in Python also the number 0.01)",
        )
    return part


def _finish(
    search: Search,
    measurer: Measurer,
    layers: list[Layer],
    data: Calibration,
    max_drop: float,
    target: str,
    by_default: bool,
) -> Plan:
    """Compile the converted model, and put everything together."""
    notes, limit = [], search.judge.limit(max_drop)
    if by_default and not has_exact_arithmetic():
        notes.append("exact layers in bfloat16 and int8 were not tried: recipes have none")
    if isinstance(search.whole, str):
        notes.append(f"the exact model cannot be compiled, layers only: {search.whole}")
    coarse = sum(drop > max_drop for _, drop in search.attempts)
    if coarse:
        several = "1 recipe was" if coarse == 1 else f"{coarse} recipes were"
        notes.append(f"{several} too coarse once all layers were converted")
    if search.slower:
        notes.append("timed whole, no recipe was faster than the exact model: it is kept")
    measured = None
    try:
        measured, search.pace = measurer.check(search.converted)
        if not 1 / _DRIFT < search.pace < _DRIFT:
            notes.append(
                f"the machine is not quiet: at last the exact model took {search.pace:.2f}x the "
                "time it took at first; all times are told at that pace"
            )
    except LutccError as error:
        notes.append(f"the converted model cannot be compiled: {error.what}")
    notes += [
        f"a recipe that should take {microseconds(one.scaled * search.pace)} us by its layers took "
        f"{microseconds(one.seconds * search.pace)} us, timed whole: "
        "another was looked for with that"
        for one in search.again
    ]
    tried = tuple(search.predicted(*attempt) for attempt in search.attempts)
    recipe, drop = tried[-1], search.drop

    chains = _chains(search, limit)
    chained = {name: chain.reason for chain in chains if chain.taken for name in chain.names}

    def at_pace(option: Option) -> Option:
        return dataclasses.replace(option, seconds=option.seconds * search.pace)

    return Plan(
        chains=chains,
        layers=tuple(
            LayerPlan(
                layer.name,
                layer.shape,
                at_pace(chosen),
                tuple(map(at_pace, options)),
                _SLOWER
                if search.slower
                else chained[layer.name]
                if layer.name in chained
                else why(options, chosen, search.objective, search.budget, limit),
            )
            for layer, chosen, options in zip(layers, search.chosen, search.found, strict=True)
        ),
        kept=look_ups_of(search.model),
        objective=search.objective,
        max_drop=max_drop,
        target=target,
        rows=data.rows,
        measure=search.judge.measure,
        drop=drop.drop,
        change=drop.change,
        cosine=drop.cosine,
        checked_rows=data.check.rows,
        exact_seconds=search.exact.seconds,
        exact_bytes=search.exact.nbytes,
        predicted_seconds=recipe.seconds,
        scaled_seconds=recipe.scaled_seconds,
        timed_whole=recipe.timed_whole,
        predicted_bytes=recipe.nbytes,
        measured_seconds=None if measured is None else measured.seconds,
        measured_bytes=None if measured is None else measured.nbytes,
        tried=tried,
        front=tuple(search.front()),
        notes=tuple(notes),
        model=search.converted,
    )


def _chains(search: Search, limit: float) -> tuple[ChainPlan, ...]:
    """Return the chains that were weighed, at the pace of the last turns."""
    made = []
    exact = [options[0] for options in search.found]
    for joint in search.joints:
        taken, pace = search.taken(joint, search.chosen), search.pace
        joint = dataclasses.replace(
            joint,
            gain=joint.gain * pace * search.joint_scales[joint],
            options=tuple(dataclasses.replace(o, seconds=o.seconds * pace) for o in joint.options),
        )
        paced = [dataclasses.replace(option, seconds=option.seconds * pace) for option in exact]
        seconds = joint.seconds(paced)
        whole = sum(paced[place].seconds for place in joint.places)
        made.append(
            ChainPlan(
                joint.names, joint.label, seconds, joint.alone, whole,
                joint.drop if joint.measured else None,
                max(option.error for option in joint.options), taken,
                why_chain(joint, taken, seconds, whole, limit),
            )
        )  # fmt: skip
    return tuple(made)
