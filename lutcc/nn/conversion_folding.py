"""Neurons that are alike come to stand together before weights are compressed, at no cost."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch

from lutcc import recipes
from lutcc.errors import FrontendError, InputError
from lutcc.fit.codebook_plan import plan_codebooks
from lutcc.nn.conversion_plan import Step
from lutcc.nn.reordering import find_reorderings, permute

NOT, PARTLY = "rows not folded: ", "rows folded within blocks of "


def fold_neurons(model: torch.nn.Module, plan: list[Step], example: Any) -> dict[str, str]:
    """Permute outputs of layers, and what reads them, in place, for recipes with "fold".

    Parameters
    ----------
    model
        The copy that is converted, in evaluation mode; what it computes stays the same.
    plan
        All steps of the conversion.
    example
        Inputs to trace the model with: a tuple of tensors or a dictionary; None: there are none.

    Returns
    -------
    dict
        By layer, "" where its rows are in the order that compression wants, else :data:`PARTLY` or
        :data:`NOT`, and more.

    Notes
    -----
    Source: JLCM, section 3.2.
    """
    steps = [
        step
        for step in plan
        if isinstance(step.config, recipes.Codebook)
        and step.config.reorder == "fold"
        and isinstance(step.module, torch.nn.Linear | torch.nn.Conv2d)
    ]
    if not steps:
        return {}
    if example is None:
        return {step.name: f"{NOT}no inputs to trace the model with" for step in steps}
    try:
        found = find_reorderings(model, example)
    except FrontendError as error:
        why = f"{NOT}the model cannot be traced: {error.what}".partition("\n")[0]
        return {step.name: why for step in steps}
    results: dict[str, str] = {}
    leaders: dict[int, str] = {}
    for step in steps:
        reordering = found.found.get(step.name)
        if reordering is None:
            results[step.name] = NOT + found.refused.get(step.name, "the trace does not meet it")
            continue
        if id(reordering) in leaders:
            results[step.name] = f"{NOT}they move with those of {leaders[id(reordering)]!r}"
            continue
        wanted = _order(step)
        if wanted is None:
            results[step.name] = f"{NOT}its regions need no order"
            continue
        leaders[id(reordering)] = step.name
        order = reordering.restricted(step.name, wanted)
        permute(model, reordering, order, layer=step.name)
        results[step.name] = "" if reordering.is_free else f"{PARTLY}{reordering.size}"
    return results


def _order(step: Step) -> np.ndarray | None:
    """Return the order that the estimator would give the rows; None if it would give none."""
    from lutcc.fit.neuron_clustering import order_neurons

    config = cast(recipes.Codebook, step.config)
    layer = cast(torch.nn.Linear | torch.nn.Conv2d, step.module)
    options = config.estimator_options("scales" if layer.weight.dim() > 2 else "codebooks")
    matrix = layer.weight.detach().flatten(1).float().cpu().numpy()
    if not np.isfinite(matrix).all():
        return None
    try:
        rows, columns = matrix.shape
        regions = plan_codebooks(config.alpha, rows, columns, options["mode"]).regions
    except InputError:
        return None
    if not 1 < regions < len(matrix):
        return None
    random = np.random.RandomState(config.random_state)
    return order_neurons(matrix, regions, config.clustering, random)
