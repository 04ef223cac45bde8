"""One loop nest at a time: which kind it is, its configs, its canonical text, its schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lutcc.frontend.relax.canonical import kernel_text
from lutcc.frontend.relax.loop_schedule import (
    blocks_space,
    rows_space,
    schedule_each_block,
    schedule_rows,
)
from lutcc.frontend.relax.matmul_space import product_part, product_spaces, schedule_product
from lutcc.schedules.space import Config, KnobValue, Space
from lutcc.tuning.workload import Workload

WHOLE = "whole"
"""The part of a loop nest that has but one."""


@dataclass(frozen=True)
class _Rule:
    """A kind of loop nest.

    Attributes
    ----------
    spaces
        (PrimFunc, isa) -> configs worth trying, by part; empty where the rule does not apply.
    schedule
        (PrimFunc, isa, config of all parts) -> the PrimFunc scheduled, or None where the rule does
        not apply.
    part
        (PrimFunc, batch symbol, its value) -> the part that runs then.
    """

    spaces: Callable[[Any, str], Mapping[str, Space]]
    schedule: Callable[[Any, str, Config], Any | None]
    part: Callable[[Any, str | None, int], str] = lambda func, symbol, rows: WHOLE


_RULES = (
    _Rule(product_spaces, schedule_product, product_part),
    _Rule(lambda func, isa: {WHOLE: rows_space(isa)}, schedule_rows),
    _Rule(lambda func, isa: {WHOLE: blocks_space(isa)}, schedule_each_block),
)
"""In the order they are tried."""


@dataclass(frozen=True)
class Nest:
    """A fused, unscheduled PrimFunc that a rule applies to.

    Attributes
    ----------
    func, isa
        The PrimFunc and the instruction-set level.
    spaces
        Configs worth trying for each part. A product with an open number of rows has two, ``few``
        and ``many``, that are tuned apart; every other loop nest is one part.
    scheduled
        The PrimFunc under the default config.
    """

    func: Any
    isa: str
    spaces: Mapping[str, Space]
    scheduled: Any
    _rule: _Rule

    @property
    def default(self) -> dict[str, KnobValue]:
        """The hand-picked config of all parts."""
        return {k: v for space in self.spaces.values() for k, v in space.default.items()}

    def part(self, symbol: str | None, rows: int) -> str:
        """Return the part that runs when the batch symbol is ``rows``."""
        return self._rule.part(self.func, symbol, rows)

    def kernel(self, part: str) -> str:
        """Return the canonical text of a part: of the PrimFunc and, if it has several, its name."""
        return self._text if len(self.spaces) == 1 else f"{self._text}\n# {part}"

    def kernel_id(self, part: str) -> str:
        """Return the identity of a part, as in its workload."""
        return Workload("relax", "", self.kernel(part), 0).kernel_id

    @cached_property
    def _text(self) -> str:
        return kernel_text(self.func)

    def schedule(self, config: Config) -> Any | None:
        """Return the PrimFunc scheduled; knobs left out have their default.

        None if a primitive refuses the loop nest under this config.
        """
        whole = {**self.default, **config}
        return _try(self._rule, self.func, self.isa, whole)


def loop_nest(func: Any, isa: str) -> Nest | None:
    """Return what a PrimFunc is to the first rule that applies; None if none does.

    Examples
    --------
    >>> loop_nest(module["softmax"], "avx2").default
    {'rows.reduce': 8, 'rows.map': 8}
    """
    for rule in _RULES:
        spaces = _spaces(rule, func, isa)
        default = {k: v for space in spaces.values() for k, v in space.default.items()}
        scheduled = _try(rule, func, isa, default) if spaces else None
        if scheduled is not None:
            return Nest(func, isa, spaces, scheduled, rule)
    return None


def _spaces(rule: _Rule, func: Any, isa: str) -> Mapping[str, Space]:
    """Return a rule's configs; none for a function without blocks (a sort, a scatter)."""
    from tvm.s_tir import ScheduleError

    try:
        return rule.spaces(func, isa)
    except ScheduleError:
        return {}


def _try(rule: _Rule, func: Any, isa: str, config: Config) -> Any | None:
    """Apply a rule; a primitive that refuses a loop nest means that the rule does not apply."""
    from tvm.error import InternalError
    from tvm.s_tir import ScheduleError

    try:
        return rule.schedule(func, isa, config)
    except (ScheduleError, InternalError):
        return None
