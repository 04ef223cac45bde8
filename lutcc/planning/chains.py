"""Chains: layers that, all as look-ups, pass integers on to each other, so that they cost less.

Between look-ups that only functions of single elements, or poolings, part, nothing is computed in
floats: the next tree asks about the sums themselves. So the time of a chain is not the sum of its
layers' times, and a plan weighs it as one choice beside those of the layers.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lutcc import ir, recipes
from lutcc.frontend import import_torch
from lutcc.ir import passes
from lutcc.ir.passes.chains import constants_of, find_chains
from lutcc.ir.passes.image_links import find_links
from lutcc.nn.lookup import MaddnessLookup
from lutcc.planning.options import Option

_MOST = 12  # layers of a run that shorter ones are made of too
_LEAST = 0.05  # of what its layers take alone is what a chain takes in the whole model at least


@dataclasses.dataclass(frozen=True, slots=True)
class Joint:
    """Consecutive layers that all become look-ups of one kind.

    Parameters
    ----------
    places
        Of the layers among all.
    names
        Theirs.
    options
        Of each: time, size and error alone.
    gain
        Seconds by which the whole model is faster with all of them.
    drop, change, damage
        What all of them together do to the output, as of :class:`lutcc.planning.options.Option`.
    problem, skipped
        Why it cannot be taken; why its effect was not measured, although it could be. Or "".
    """

    places: tuple[int, ...]
    names: tuple[str, ...]
    options: tuple[Option, ...]
    gain: float = 0.0
    drop: float = 0.0
    change: float = 0.0
    damage: float = 0.0
    problem: str = ""
    skipped: str = ""

    @property
    def configs(self) -> tuple[recipes.Config, ...]:
        """Of its layers."""
        return tuple(option.config for option in self.options)

    @property
    def title(self) -> str:
        """Its first and its last layer."""
        return f"{self.names[0]} to {self.names[-1]}"

    @property
    def label(self) -> str:
        """Short name of what its layers become."""
        return " | ".join(dict.fromkeys(option.label for option in self.options))

    @property
    def measured(self) -> bool:
        """Whether all of it is known."""
        return not self.problem and not self.skipped

    @property
    def alone(self) -> float:
        """Seconds of its layers one by one."""
        return sum(option.seconds for option in self.options)

    def seconds(self, exact: Sequence[Option], scale: float = 1.0) -> float:
        """Return what it takes in the whole model, where exact layers take what ``exact`` says."""
        whole = sum(exact[place].seconds for place in self.places)
        return max(whole - scale * self.gain, _LEAST * self.alone)

    def shared(self, exact: Sequence[Option], scale: float = 1.0) -> list[Option]:
        """Return its layers' options, each with its part of the chain's time and effect."""
        seconds, alone = self.seconds(exact, scale), max(self.alone, 1e-30)
        parts = len(self.options)
        return [
            dataclasses.replace(
                option, seconds=seconds * option.seconds / alone, drop=self.drop,
                change=self.change, damage=self.damage / parts, chain=self.title, skipped="",
            )
            for option in self.options
        ]  # fmt: skip


def find_runs(model: torch.nn.Module, example: Any, names: Sequence[str]) -> list[tuple[int, ...]]:
    """Return the layers that pass integers on to each other once all are look-ups.

    Parameters
    ----------
    model
        With look-ups in the place of the layers that are named.
    example
        Inputs to trace it with.
    names
        Of the layers in question.

    Returns
    -------
    The places in ``names`` of each chain: at least two.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, MaddnessLookup)}
    tables: dict[str, int] = {}
    for place, name in enumerate(names):
        if name in layers:
            for part in ("lut", "splitvals"):
                tables[_digest(getattr(layers[name], part))] = place
    imported = import_torch(model, example)
    modules = [imported.module] if imported.module else [r.module for r in imported.regions]
    links: list[tuple[int, int]] = []
    for module in modules:
        links += _links(module, tables)
    return _joined(links)


def _links(module: ir.Module, tables: Mapping[str, int]) -> list[tuple[int, int]]:
    """Return which layers' sums are read by which layers' trees."""
    links: list[tuple[int, int]] = []
    for step in passes.PIPELINE:
        found: list[tuple[ir.Value, ir.Value]] = []
        if isinstance(step, passes.ImageChains):
            found = [(c.sums.operands[3], r.operands[2]) for c in find_links(module)[0]
                     for r in c.readers]  # fmt: skip
        elif isinstance(step, passes.IntegerChains):
            found = [(c.sums.operands[1], tree.operands[2]) for c in find_chains(module).chains
                     for tree in c.trees]  # fmt: skip
        arrays = constants_of(module) if found else {}
        for pair in found:
            source, reader = (
                tables.get(ir.constant_digest(arrays[value.name])) if value.name in arrays else None
                for value in pair
            )
            if source is not None and reader is not None and reader != source:
                links.append((source, reader))
        if isinstance(step, passes.IntegerChains):
            break
        module = step(module)
    return links


def _digest(tensor: torch.Tensor) -> str:
    return ir.constant_digest(tensor.detach().cpu().contiguous().numpy())


def _joined(links: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
    """Return what is connected.

    Examples
    --------
    >>> _joined([(0, 1), (4, 5), (1, 2)])
    [(0, 1, 2), (4, 5)]
    """
    groups: list[set[int]] = []
    for link in links:
        touched = [group for group in groups if group & {*link}]
        groups = [group for group in groups if group not in touched]
        groups.append({*link}.union(*touched))
    return sorted(tuple(sorted(group)) for group in groups)


def parts_of(run: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return a run of layers, and those that are one layer shorter.

    Examples
    --------
    >>> parts_of((3, 4, 5))
    [(3, 4, 5), (4, 5), (3, 4)]
    """
    shorter = [run[1:], run[:-1]] if 2 < len(run) <= _MOST else []
    return [run, *shorter]


def apart(names: Sequence[str], runs: Sequence[tuple[str, ...]]) -> list[str]:
    """Leave out names so that no two of a chain follow each other: what layers gain by themselves.

    Examples
    --------
    >>> apart(["a", "b", "c", "d"], [("a", "b", "c")])
    ['a', 'c', 'd']
    """
    taken: list[str] = []
    for name in names:
        beside = {
            other
            for run in runs
            for pair in itertools.pairwise(run)
            if name in pair
            for other in pair
        }
        if not beside & {*taken}:
            taken.append(name)
    return taken
