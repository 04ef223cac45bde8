"""The declared space of a kernel: named knobs, the values of each, and which go together."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from lutcc.errors import CompileError, suggest

KnobValue: TypeAlias = int | str
Config: TypeAlias = Mapping[str, KnobValue]
"""Knob name -> value. Names are dotted where configs nest: ``accumulate.tile_m``."""


def config_id(config: Config) -> str:
    """Return 16 hexadecimal digits that stand for a config, whatever the order of its knobs.

    Examples
    --------
    >>> config_id({"a": 1, "b": 2}) == config_id({"b": 2, "a": 1})
    True
    """
    text = json.dumps(dict(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def nested(config: Config) -> dict[str, dict[str, KnobValue]]:
    """Return dotted knobs as nested dictionaries.

    Examples
    --------
    >>> nested({"stage.row_block": 64, "linear.tile_m": 4})
    {'stage': {'row_block': 64}, 'linear': {'tile_m': 4}}
    """
    result: dict[str, dict[str, KnobValue]] = {}
    for name, value in config.items():
        part, _, knob = name.rpartition(".")
        result.setdefault(part, {})[knob] = value
    return result


@dataclass(frozen=True, slots=True)
class Knob:
    """One choice of a kernel.

    Attributes
    ----------
    name
        Unique in its space.
    values
        What it may be; neighbours should behave alike, a search steps from one to the next.
    """

    name: str
    values: tuple[KnobValue, ...]


def _always(_: Config) -> bool:
    return True


@dataclass(frozen=True)
class Space:
    """Every config worth trying.

    Attributes
    ----------
    knobs
        The choices.
    default
        What is used where nobody has tuned: a config of the space.
    valid
        Tells which combinations can be built (registers, divisibility); the default can.

    Examples
    --------
    >>> space = Space((Knob("m", (1, 2, 4)), Knob("r", (1, 2))), {"m": 2, "r": 1})
    >>> len(list(space.configs())), {"m": 4, "r": 2} in space
    (6, True)
    """

    knobs: tuple[Knob, ...]
    default: Config
    valid: Callable[[Config], bool] = field(default=_always, compare=False)

    def __post_init__(self) -> None:
        if self.default not in self:
            raise CompileError(
                f"the default {dict(self.default)} is not in the space",
                where="schedules.space",
                fix="name every knob once, with a value that the knob lists",
            )

    def __contains__(self, config: object) -> bool:
        if not isinstance(config, Mapping) or set(config) != {k.name for k in self.knobs}:
            return False
        return all(config[k.name] in k.values for k in self.knobs) and self.valid(config)

    @property
    def combinations(self) -> int:
        """Number of combinations, valid or not."""
        return math.prod(len(k.values) for k in self.knobs)

    def configs(self) -> Iterator[dict[str, KnobValue]]:
        """Yield every valid config, the default first."""
        default = dict(self.default)
        yield default
        names = [k.name for k in self.knobs]
        for values in itertools.product(*(k.values for k in self.knobs)):
            config = dict(zip(names, values, strict=True))
            if config != default and self.valid(config):
                yield config

    def at(self, indices: Sequence[int]) -> dict[str, KnobValue]:
        """Return the config with the given index into the values of each knob."""
        return {k.name: k.values[i] for k, i in zip(self.knobs, indices, strict=True)}

    def indices(self, config: Config) -> tuple[int, ...]:
        """Return the index of each knob's value; the inverse of :meth:`at`."""
        return tuple(k.values.index(config[k.name]) for k in self.knobs)

    def adapted(self, config: Config) -> dict[str, KnobValue] | None:
        """Return the config of this space nearest to one of a related space, or None.

        Knobs that the other does not have keep their default; numbers snap to the nearest value.
        """
        result: dict[str, KnobValue] = {}
        for knob in self.knobs:
            wanted = config.get(knob.name, self.default[knob.name])
            if wanted in knob.values:
                result[knob.name] = wanted
                continue
            numbers = [v for v in knob.values if isinstance(v, int)]
            if not isinstance(wanted, int) or not numbers:
                result[knob.name] = self.default[knob.name]
            else:
                result[knob.name] = min(numbers, key=lambda v, w=wanted: (abs(v - w), v))
        return result if result in self else None

    def check(self, config: Config, where: str) -> None:
        """Refuse a config that is not in the space.

        Raises
        ------
        CompileError
            Naming the knob or the value.
        """
        values = {k.name: k.values for k in self.knobs}
        for name, value in config.items():
            if name not in values:
                raise CompileError(
                    f"there is no knob {name!r}", where=where, fix=suggest(name, values)
                )
            if value not in values[name]:
                raise CompileError(
                    f"{name} = {value!r} is not in the space",
                    where=where,
                    fix=f"use one of {', '.join(map(str, values[name]))}",
                )
        if config not in self:
            raise CompileError(
                f"{dict(config)} leaves out a knob, or asks for more than the registers hold",
                where=where,
                fix="start from the default: " + json.dumps(dict(self.default)),
            )
