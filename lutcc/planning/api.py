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
from lutcc.convert_model import convert as convert_model
from lutcc.errors import InputError, LutccError
from lutcc.planning.cache import Cache, origin_of
from lutcc.planning.calibration import Calibration, read_calibration
from lutcc.planning.candidates import (
    check_candidates,
    default_candidates,
    has_exact_arithmetic,
)
from lutcc.planning.choose import choose_options
from lutcc.planning.drop import Drop, Judge
from lutcc.planning.layers import Layer, find_layers, look_ups_of
from lutcc.planning.options import Measurer, Option
from lutcc.planning.reasons import pays, why
from lutcc.planning.result import LayerPlan, Plan, Recipe
from lutcc.planning.speed import Speed, check_target

Progress: TypeAlias = Callable[[int, int, str], None]
OBJECTIVES = ("time", "size")
_TRIES = 8  # conversions of the whole model, until the exact one is taken
_DRIFT = 1.1  # of the exact model's time while a plan is made
_FRONT = 24  # budgets of the front, each three quarters of the one before


def plan(
    model: torch.nn.Module,
    calibration: Any,
    *,
    max_drop: float | str,
    objective: str = "time",
    target: str = "host",
    candidates: Sequence[recipes.Config] | None = None,
    progress: Progress | None = None,
    rows: int | None = None,
    labels: Any = None,
    measure: str = "auto",
    cache: str | Path | None = None,
    fresh: bool = False,
) -> Plan:
    """Choose for each layer what makes the model fastest, or smallest, within a budget of error.

    Every linear layer and 2-D convolution is swapped alone for each candidate, fitted on half
    of the calibration: a quarter of it tells what that does to the model's output, and compiled
    kernels, timed in turns on this processor, what it takes. An integer program takes the cheapest
    recipe whose effects add up to at most the budget. The model is converted with it and checked on
    the last quarter; while its drop is too large, the budget is tightened.

    Parameters
    ----------
    model
        Any module; it is not changed. Layers that look up already (LookupFFN, MADDNESS, codebooks)
        are left as they are.
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
    Effects of layers do not really add up: the check on the converted model is what holds. Times of
    layers do not either, where compilation fuses them; ``Plan.miss`` says by how much.

    Examples
    --------
    >>> made = lutcc.plan(model, rows, max_drop="1%")  # doctest: +SKIP
    >>> made.write("recipe.toml")  # doctest: +SKIP
    >>> small = lutcc.convert(model, made.recipe, rows)  # doctest: +SKIP
    """
    budget = read_max_drop(max_drop)
    if not isinstance(model, torch.nn.Module):
        raise InputError(
            f"the model is a {type(model).__name__}", where="plan", fix="pass a torch.nn.Module"
        )
    if objective not in OBJECTIVES:
        raise InputError(
            f"objective={objective!r} is unknown", where="plan", fix=f"use one of {OBJECTIVES}"
        )
    check_target(target)
    given = check_candidates(candidates)
    data = read_calibration(model, calibration, labels, rows)
    layers = find_layers(model, data.example)
    judge = Judge(model, data, measure)
    store = Cache(
        None if cache is None else Path(cache),
        origin_of(model, data, judge.measure, target),
        fresh=fresh,
    )
    told = progress or (lambda done, total, what: None)
    measurer = Measurer(model, data, judge, store, target)
    told(0, len(layers), "compiling the exact model")
    whole = measurer.whole()
    found = []
    for done, layer in enumerate(layers):
        configs = default_candidates(layer.columns) if given is None else given
        found.append(
            measurer.options(
                layer,
                configs,
                lambda what, done=done, name=layer.name: told(
                    done, len(layers), f"{name or 'the model'}: {what}"
                ),
            )
        )
    search = _Search(model, data, judge, found, [la.name for la in layers], objective, whole)
    told(len(layers), len(layers), "converting the whole model")
    search.run(budget)
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


class _Search:
    """Looks for the cheapest recipe whose measured drop is small enough."""

    def __init__(
        self,
        model: torch.nn.Module,
        data: Calibration,
        judge: Judge,
        found: list[list[Option]],
        names: list[str],
        objective: str,
        whole: Speed | str,
    ) -> None:
        self.model, self.data, self.judge, self.names = model, data, judge, names
        self.found, self.objective, self.whole = found, objective, whole
        self.usable = [
            [options[0], *(o for o in options[1:] if pays(o, options[0], objective))]
            for options in found
        ]
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

    def pick(self, budget: float) -> list[Option]:
        """Return the cheapest recipe by the layers' effects."""
        places = choose_options(
            [[o.cost(self.objective) for o in options] for options in self.usable],
            [[o.damage for o in options] for options in self.usable],
            budget,
        )
        return [options[i] for options, i in zip(self.usable, places, strict=True)]

    def predicted(self, chosen: list[Option], drop: float | None = None) -> Recipe:
        """Return what a recipe should take: the exact model, and what layers differ by.

        But no less than its slowest layer.
        """
        pairs = [(o, options[0]) for o, options in zip(chosen, self.found, strict=True)]
        change = self.pace * sum(o.seconds - exact.seconds for o, exact in pairs)
        slowest = self.pace * max(o.seconds for o in chosen)
        return Recipe(
            tuple(o.label for o in chosen),
            max(self.exact.seconds + change, slowest),
            self.exact.nbytes + sum(o.nbytes - exact.nbytes for o, exact in pairs),
            sum(o.damage for o in chosen),
            drop,
        )

    def run(self, max_drop: float) -> None:
        """Convert with ever tighter budgets until the measured drop is at most ``max_drop``."""
        self.budget = max_drop
        for attempt in range(_TRIES + 1):
            if attempt == _TRIES:
                self.budget = 0.0
            self.chosen = self.pick(self.budget)
            recipe = dict(zip(self.names, (o.config for o in self.chosen), strict=True))
            self.converted = convert_model(self.model, recipe, self.data.given)
            self.drop = self.judge.drop(self.converted, "check")
            self.attempts.append((self.chosen, self.drop.drop))
            if self.drop.drop <= max_drop:
                return
            spent = sum(o.damage for o in self.chosen)
            self.budget = spent * min(0.8, max(0.2, max_drop / self.drop.drop))

    def front(self) -> list[Recipe]:
        """Return the recipes that are the cheapest for their damage, the exact one first."""
        most = sum(max(o.damage for o in options) for options in self.usable)
        found: dict[tuple[str, ...], Recipe] = {}
        for budget in [0.0, *(most * 0.75**i for i in reversed(range(_FRONT)))]:
            recipe = self.predicted(self.pick(budget))
            found.setdefault(recipe.labels, recipe)
        return list(found.values())


def _finish(
    search: _Search,
    measurer: Measurer,
    layers: list[Layer],
    data: Calibration,
    max_drop: float,
    target: str,
    by_default: bool,
) -> Plan:
    """Compile the converted model, and put everything together."""
    notes = []
    if by_default and not has_exact_arithmetic():
        notes.append("exact layers in bfloat16 and int8 were not tried: recipes have none")
    if isinstance(search.whole, str):
        notes.append(f"the exact model cannot be compiled, layers only: {search.whole}")
    if len(search.attempts) > 1:
        several = (
            "1 recipe was" if len(search.attempts) == 2 else f"{len(search.attempts) - 1} were"
        )
        notes.append(f"{several} too coarse once all layers were converted")
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
    tried = tuple(search.predicted(*attempt) for attempt in search.attempts)
    recipe, drop = tried[-1], search.drop

    def at_pace(option: Option) -> Option:
        return dataclasses.replace(option, seconds=option.seconds * search.pace)

    return Plan(
        layers=tuple(
            LayerPlan(
                layer.name,
                layer.shape,
                at_pace(chosen),
                tuple(map(at_pace, options)),
                why(options, chosen, search.objective, search.budget, max_drop),
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
        predicted_bytes=recipe.nbytes,
        measured_seconds=None if measured is None else measured.seconds,
        measured_bytes=None if measured is None else measured.nbytes,
        tried=tried,
        front=tuple(search.front()),
        notes=tuple(notes),
        model=search.converted,
    )
