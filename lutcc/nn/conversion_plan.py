"""What a recipe's patterns pick in a model: layers, or whole feed-forward blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch

from lutcc import recipes
from lutcc.errors import ConvertError, suggest
from lutcc.nn.conversion import CONVERTERS
from lutcc.nn.feed_forward import FeedForward, find_feed_forward


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One layer or block, and what becomes of it.

    Parameters
    ----------
    name, module
        What the recipe names.
    config
        Its config.
    block
        The feed-forward block that ``module`` is or holds; None for a layer.
    by_wildcard
        Whether the pattern that picked it has wildcards.
    """

    name: str
    module: torch.nn.Module
    config: recipes.Config
    block: FeedForward | None = None
    by_wildcard: bool = False

    @property
    def entry(self) -> torch.nn.Module:
        """The module whose input the replacement will get."""
        return self.module if self.block is None else self.block.entry

    @property
    def layers(self) -> frozenset[int]:
        """Ids of the layers that it covers."""
        covered = (self.module,) if self.block is None else self.block.linears
        return frozenset(map(id, covered))


def plan_conversion(model: torch.nn.Module, configs: dict[str, recipes.Config]) -> list[Step]:
    """Return a step per layer or block that the patterns name; the last match counts.

    A step of a later pattern displaces those of earlier ones that cover one of its layers.

    Raises
    ------
    ConvertError
        If a pattern matches nothing that its config can convert.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    layers = {
        name: Step(name, m, recipes.Exact()) for name, m in modules.items() if type(m) in CONVERTERS
    }
    blocks = _blocks(modules) if _needs(recipes.LookupFFN, configs.values()) else {}
    matrices = layers
    if _needs(recipes.Codebook, configs.values()):
        matrices = layers | {
            name: Step(name, m, recipes.Exact())
            for name, m in modules.items()
            if type(m) is torch.nn.Embedding
        }
    plan: list[Step] = []
    for pattern, config in configs.items():
        dense = isinstance(config, recipes.Exact) and config.compute is not None
        pools = {
            recipes.Maddness: [layers],
            recipes.LookupFFN: [blocks],
            recipes.Sampled: [layers],
            recipes.Codebook: [matrices],
            recipes.Exact: [matrices] if dense else [matrices, blocks],
        }[type(config)]
        wild = has_wildcards(pattern)
        found = [
            dataclasses.replace(step, config=config, by_wildcard=wild)
            for pool in pools
            for name, step in pool.items()
            if fnmatchcase(name, pattern)
        ]
        if not found:
            raise _nothing_to_convert(pattern, config, modules, pools)
        for step in _outermost(found):
            # a module registered under two names is one layer, known by the first
            name = next((old.name for old in plan if old.module is step.module), step.name)
            plan = [old for old in plan if not old.layers & step.layers]
            plan.append(dataclasses.replace(step, name=name))
    order = {name: place for place, name in enumerate(modules)}
    return sorted(plan, key=lambda step: order[step.name])


def has_wildcards(pattern: str) -> bool:
    """Tell whether a pattern may match several names.

    Examples
    --------
    >>> has_wildcards("encoder.*"), has_wildcards("head")
    (True, False)
    """
    return any(sign in pattern for sign in "*?[")


def _needs(kind: type[recipes.Config], configs: Iterable[recipes.Config]) -> bool:
    return any(isinstance(config, kind) for config in configs)


def _blocks(modules: dict[str, torch.nn.Module]) -> dict[str, Step]:
    found: dict[int, FeedForward | None] = {}
    steps: dict[str, Step] = {}
    for name, module in modules.items():
        if id(module) not in found:
            found[id(module)] = find_feed_forward(module)
        block = found[id(module)]
        if block is not None:
            steps[name] = Step(name, module, recipes.Exact(), block)
    return steps


def _outermost(steps: list[Step]) -> list[Step]:
    """Drop repeated modules, and what lies inside a block that the same pattern matches."""
    first = {id(step.module): step for step in reversed(steps)}
    inside = {
        id(module)
        for step in steps
        if step.block is not None
        for module in step.module.modules()
        if module is not step.module and id(module) in first
        if first[id(module)].layers <= step.layers
    }
    return [
        step for step in steps if first[id(step.module)] is step and id(step.module) not in inside
    ]


def _nothing_to_convert(
    pattern: str,
    config: recipes.Config,
    modules: dict[str, torch.nn.Module],
    pools: list[dict[str, Step]],
) -> ConvertError:
    known = [name for pool in pools for name in pool]
    others = [name for name in modules if fnmatchcase(name, pattern)]
    where = f"recipe[{pattern}]"
    if not others:
        what = f"no layer of the model is called {pattern!r}"
        return ConvertError(what, where=where, fix=suggest(pattern, known))
    kinds = ", ".join(sorted({type(modules[name]).__name__ for name in others}))
    if isinstance(config, recipes.LookupFFN):
        what = f"{pattern!r} matches only {kinds}, which is no feed-forward block"
        fix = "name Sequential(Linear, GELU, Linear) or its like, or a transformer's layer; "
    else:
        what = f"{pattern!r} matches only {kinds}, which cannot be converted"
        fix = "name Linear or Conv2d layers; "
        if isinstance(config, recipes.Codebook):
            fix = "name Linear, Conv2d or Embedding layers; "
        if kinds == "NonDynamicallyQuantizableLinear":
            fix = "torch's attention multiplies by that weight without calling the layer; " + fix
        elif "Lazy" in kinds:
            fix = "run the model once, so that lazy layers know their sizes; " + fix
        elif "Parametrized" in kinds:
            fix = "parametrise layers after the conversion; " + fix
    return ConvertError(what, where=where, fix=fix + suggest(pattern, known))
