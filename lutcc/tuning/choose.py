"""Which config each kernel gets when a model is compiled: what the tuning logs found best.

A record fits a kernel by the kernel's text. Records of the very processor come first, then those of
the same instruction-set level on another one, then the hand-picked default.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from lutcc.codegen.lower import stage_functions
from lutcc.codegen.products import product_name, products_of
from lutcc.ir.module import Function, Module, Operation
from lutcc.ir.types import Dim, Sym
from lutcc.schedules.space import Config, KnobValue, Space, nested
from lutcc.schedules.x86.isa import isa_by_name
from lutcc.schedules.x86.plan import (
    ALWAYS,
    default_stage_configs,
    goes_by_images,
    rows_only,
    stage_space,
)
from lutcc.tuning.host import vendor_of
from lutcc.tuning.logfile import Logs, best
from lutcc.tuning.products import Way, few_rows, product_kernels, product_space, tunable
from lutcc.tuning.records import Record
from lutcc.tuning.stages import opened, stage_kernel
from lutcc.tuning.workload import Workload

#: The logs that come with lutcc.
SHIPPED_LOGS = Path(__file__).resolve().parents[1] / "tuning_logs"
UNTUNED = "default, untuned"
THRESHOLD = "stage.row_threshold"

Chosen: TypeAlias = tuple[dict[str, KnobValue], str]


@dataclass
class Chooser:
    """Chooses configs for kernels of one target.

    Attributes
    ----------
    isa
        Instruction-set level of the kernels.
    cpu
        LLVM's name of the processor they are for; None where any of the level may run them.
    folders
        Folders of logs (or log files), the preferred first.
    threads, cache
        Records measured like this are preferred; then those of one thread, and of the other
        condition of the caches.
    notes
        What had to be ignored and why: for people.

    Examples
    --------
    >>> chooser = Chooser("avx512", "znver5", [SHIPPED_LOGS])
    >>> lowered = lower(module, "avx512", chooser.stage_configs(module))  # doctest: +SKIP
    """

    isa: str
    cpu: str | None
    folders: Sequence[Path] = (SHIPPED_LOGS,)
    threads: int = 1
    cache: str = "hot"
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._logs = [Logs(folder, self.isa) for folder in self.folders]
        self._known: dict[tuple[str, ...], Chosen | None] = {}

    @property
    def target(self) -> str:
        """What the kernels are for, for people."""
        return f"{self.cpu} ({self.isa})" if self.cpu else f"any {self.isa} processor"

    def stage_configs(self, module: Module) -> dict[str, dict[str, Any]]:
        """Return for each stage what :func:`lutcc.codegen.lower` takes: configs and ``source``.

        Parameters
        ----------
        module
            After :func:`lutcc.codegen.lower.prepare`.
        """
        stages = [f for f in stage_functions(module) if not goes_by_images(f)]
        kernels = {f.name: self._of_stage(module, f) for f in stages}
        for op in products_of(module.main):
            if tunable(op):
                kernels[product_name(op)] = self._of_product(module, op)
        result = {}
        for name, kernel in kernels.items():
            if kernel.ids not in self._known:
                self._known[kernel.ids] = self._chosen(kernel)
            config, source = self._known[kernel.ids] or ({}, UNTUNED)
            result[name] = {**nested(config), "source": source}
        return result

    def relax_config(self, kernel_id: str) -> Chosen | None:
        """Return the config of a loop nest of an exact layer and its source; None if untuned.

        One config serves all batch sizes: that of the most rows it was measured at.

        Parameters
        ----------
        kernel_id
            As in its workload.
        """
        for cpu, by_rows in self._groups(self._records([kernel_id])):
            record = by_rows[max(by_rows)]
            return dict(record.config), self._source(cpu, [record])
        return None

    # -- stages and products -----------------------------------------------------------------

    def _of_stage(self, module: Module, function: Function) -> _Kernel:
        level = isa_by_name(self.isa)
        default = None
        if not rows_only(function):
            default = default_stage_configs(level, function).stage.row_threshold
        return _Kernel(
            f"@{function.name}",
            tuple(
                _kernel_id("stage", stage_kernel(module, f)) for f in (function, opened(function))
            ),
            function.params[0].type.shape[0],
            lambda rows: stage_space(level, function, rows),
            Way(THRESHOLD, ALWAYS, default),
        )

    def _of_product(self, module: Module, op: Operation) -> _Kernel:
        level = isa_by_name(self.isa)
        return _Kernel(
            product_name(op),
            tuple(_kernel_id("product", text) for text in product_kernels(module, op)),
            op.operands[0].type.shape[0],
            lambda rows: product_space(op, level, rows),
            few_rows(op, level),
        )

    def _chosen(self, kernel: _Kernel) -> Chosen | None:
        """Return the config of a kernel: what was found at its rows, or at some for all sizes."""
        lead = None if isinstance(kernel.lead, Sym) else kernel.lead
        spaces = _Spaces(kernel.space, lead or 1, kernel.way)
        records = self._records(kernel.ids[:1] if lead is None else kernel.ids)
        for cpu, by_rows in self._groups(self._declared(records, spaces, kernel.where)):
            if lead is None:
                return _combined(by_rows, spaces), self._source(cpu, by_rows.values())
            rows = 0 if 0 in by_rows else _nearest(by_rows, lead)
            return dict(by_rows[rows].config), self._source(cpu, [by_rows[rows]])
        return None

    def _declared(self, records: Sequence[_Ranked], spaces: _Spaces, where: str) -> list[_Ranked]:
        """Return the records whose configs the space still has, other knobs at today's defaults."""
        found = []
        for log, record in records:
            config = spaces.today(record.workload.rows, record.config)
            if config is not None:
                found.append((log, replace(record, config=config)))
        self._note(len(records) - len(found), where)
        return found

    # -- records -----------------------------------------------------------------------------

    def _records(self, ids: Sequence[str]) -> list[_Ranked]:
        """Return the successful records of some kernels, each with the rank of its log.

        Folders rank as they were given, and in each the level itself before those that it is
        tuned as.
        """
        levels = isa_by_name(self.isa).tuned_as
        return [
            (number * len(levels) + levels.index(record.place.isa), record)
            for number, logs in enumerate(self._logs)
            for record in logs.of_kernels(ids)
            if record.outcome.status == "ok" and record.workload.threads in (self.threads, 1)
        ]

    def _groups(self, records: Sequence[_Ranked]) -> list[tuple[str, dict[int, Record]]]:
        """Return for each processor, the nearest first, the best record at each number of rows."""
        by_cpu: defaultdict[str, dict[int, list[Record]]] = defaultdict(lambda: defaultdict(list))
        for log, record in records:
            by_cpu[record.place.cpu][log].append(record)

        def distance(cpu: str) -> tuple[bool, int, bool]:
            related = self.cpu is not None and vendor_of(cpu) == vendor_of(self.cpu)
            return cpu != self.cpu, min(by_cpu[cpu]), not related

        def newest(cpu: str) -> str:
            return max(r.time for group in by_cpu[cpu].values() for r in group)

        def rank(item: tuple[int, Record]) -> tuple[bool, bool, int]:
            log, record = item
            work = record.workload
            return work.threads != self.threads, work.cache != self.cache, log

        groups = []
        for cpu in sorted(sorted(by_cpu, key=newest, reverse=True), key=distance):
            winners = [(n, r) for n, group in by_cpu[cpu].items() for r in best(group).values()]
            by_rows: dict[int, Record] = {}
            for _, record in sorted(winners, key=rank):
                by_rows.setdefault(record.workload.rows, record)
            if by_rows:
                groups.append((cpu, by_rows))
        return groups

    # -- for people --------------------------------------------------------------------------

    def _source(self, cpu: str, records: Iterable[Record]) -> str:
        records = list(records)
        rows = ", ".join(str(r.workload.rows) for r in sorted(records, key=_rows))
        text = f"tuned on {cpu}" + ("" if cpu == self.cpu else ", same level")
        text += f" (rows {rows})" if rows != "0" else ""
        won = any(r.relative is not None and r.relative < 1.0 for r in records)
        return text if won else f"{text}: nothing beat the default"

    def _note(self, ignored: int, where: str) -> None:
        if ignored:
            self.notes.append(
                f"{where}: {ignored} tuning record{'s' if ignored > 1 else ''} ignored, with "
                "configs that this version of lutcc does not have"
            )


_Ranked: TypeAlias = tuple[int, Record]


@dataclass(frozen=True)
class LevelChoosers:
    """Choosers of several levels as :func:`lutcc.frontend.relax.build_mixed` asks them."""

    choosers: Mapping[str, Chooser]

    def stage_configs(self, module: Module, isa: str) -> dict[str, dict[str, Any]]:
        """Return the configs of a prepared module's stages at a level."""
        return self.choosers[isa].stage_configs(module)

    def relax_config(self, kernel_id: str, isa: str) -> Chosen | None:
        """Return the config of an exact layer's loop nest at a level, and its source."""
        return self.choosers[isa].relax_config(kernel_id)


def coverage(sources: Sequence[str], target: str) -> str | None:
    """Return a sentence for people where kernels are not tuned for their target, else None.

    Parameters
    ----------
    sources
        ``source`` of every kernel of one variant.
    target
        The processor or level that they are for.
    """
    untuned = sum(s.startswith("default") for s in sources)
    elsewhere = sum(", same level" in s for s in sources)
    if untuned and untuned == len(sources):
        return (
            f"untuned for {target}: no tuning log covers its kernels, which use hand-picked "
            "defaults; 'lutcc tune' on such a machine finds better ones"
        )
    parts = []
    if elsewhere:
        parts.append(f"{elsewhere} of {len(sources)} kernels were tuned on another processor")
    if untuned:
        parts.append(f"{untuned} of {len(sources)} kernels are untuned (hand-picked defaults)")
    return f"{target}: {', '.join(parts)}" if parts else None


def threshold(alone: Mapping[int, bool], default: int) -> int:
    """Return the largest number of rows that are done one by one.

    Parameters
    ----------
    alone
        Rows -> whether doing each row alone was found best there.
    default
        What it is where nothing tells; the nearest to it that contradicts the fewest findings wins.

    Examples
    --------
    >>> threshold({16: True, 64: False}, 6), threshold({1: True, 1024: False}, 6)
    (16, 6)
    >>> threshold({1: False}, 6)
    0
    """
    choices = {default, *alone, *(rows - 1 for rows in alone)}

    def cost(value: int) -> tuple[int, int, int]:
        wrong = sum((rows <= value) != way for rows, way in alone.items())
        return wrong, abs(value - default), value

    return min(choices, key=cost)


def _kernel_id(kind: str, kernel: str) -> str:
    return Workload(kind, "", kernel, 0).kernel_id


def _rows(record: Record) -> int:
    return record.workload.rows


def _nearest(measured: Iterable[int], rows: int) -> int:
    return min(measured, key=lambda r: (abs(math.log(max(r, 1) / max(rows, 1))), r))


@dataclass(frozen=True)
class _Kernel:
    """A stage or a product to find a config for.

    Attributes
    ----------
    where
        What notes call it.
    ids
        Ids of its text, as it is and with an open batch.
    lead
        Its rows: a number or a symbol.
    space
        What it may choose at a number of rows.
    way
        How few rows are done another way, if they are.
    """

    where: str
    ids: tuple[str, ...]
    lead: Dim
    space: Callable[[int], Space]
    way: Way | None


def _combined(by_rows: Mapping[int, Record], spaces: _Spaces) -> dict[str, KnobValue]:
    """Put together one config for all batch sizes from those found at some."""
    ordered, way = sorted(by_rows.items()), spaces.way
    if way is None:
        return dict(ordered[-1][1].config)
    config: dict[str, KnobValue] = {}
    many = [(rows, r) for rows, r in ordered if r.config[way.knob] == 0]
    few = [(rows, r) for rows, r in ordered if r.config[way.knob] != 0]
    for rows, record in (*few[:1], *many[-1:]):
        knobs = spaces.knobs(rows, int(record.config[way.knob]))
        config |= {name: record.config[name] for name in knobs}
    if way.default is not None:
        found = {rows: r.config[way.knob] != 0 for rows, r in ordered}
        config[way.knob] = threshold(found, way.default)
    return config


class _Spaces:
    """The declared spaces of one kernel, by number of rows."""

    def __init__(self, space: Callable[[int], Space], own_rows: int, way: Way | None) -> None:
        self._space, self._own_rows, self.way = space, own_rows, way
        self._spaces: dict[int, Space] = {}
        self._knobs: dict[tuple[int, int], tuple[str, ...]] = {}

    def at(self, rows: int) -> Space:
        rows = rows or self._own_rows
        if rows not in self._spaces:
            self._spaces[rows] = self._space(rows)
        return self._spaces[rows]

    def knobs(self, rows: int, value: int) -> tuple[str, ...]:
        """Name the knobs that vary in one of the two ways; the other's are held."""
        key = (rows or self._own_rows, value)
        if key not in self._knobs:
            assert self.way is not None
            space, way = self.at(rows), self.way.knob
            seen: dict[str, set[KnobValue]] = {knob.name: set() for knob in space.knobs}
            for config in space.configs():
                if config[way] == value:
                    for name, chosen in config.items():
                        seen[name].add(chosen)
            self._knobs[key] = tuple(n for n, values in seen.items() if len(values) > 1)
        return self._knobs[key]

    def today(self, rows: int, config: Config) -> dict[str, KnobValue] | None:
        """Return a recorded config with what does not matter to it at today's defaults."""
        space = self.at(rows)
        if set(config) - {knob.name for knob in space.knobs}:
            return None
        if self.way is None:
            result = {**space.default, **config}
            return result if result in space else None
        value = config.get(self.way.knob)
        if value not in (0, self.way.always):
            return None
        result = {**space.default, self.way.knob: value}
        result |= {n: config[n] for n in self.knobs(rows, int(value)) if n in config}
        return result if result in space else None
