"""Which config each kernel gets when a model is compiled: what the tuning logs found best.

A record fits a kernel by the kernel's text. Records of the very processor come first, then those of
the same instruction-set level on another one, then the hand-picked default.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from lutcc.codegen.lower import stage_functions
from lutcc.ir.module import Function, Module, Value
from lutcc.ir.types import Sym
from lutcc.schedules.space import Config, KnobValue, Space, nested
from lutcc.schedules.x86.isa import isa_by_name
from lutcc.schedules.x86.plan import ALWAYS, default_stage_configs, rows_only, stage_space
from lutcc.tuning.host import vendor_of
from lutcc.tuning.logfile import Logs, best
from lutcc.tuning.records import Record
from lutcc.tuning.stages import stage_kernel
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
        result = {}
        for function in stage_functions(module):
            found = self._stage(module, function)
            config, source = found or ({}, UNTUNED)
            result[function.name] = {**nested(config), "source": source}
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

    # -- stages ------------------------------------------------------------------------------

    def _stage(self, module: Module, function: Function) -> Chosen | None:
        lead = function.params[0].type.shape[0]
        if isinstance(lead, Sym):
            return self._open_batch(module, function)
        ids = [_kernel_id("stage", stage_kernel(module, f)) for f in (function, _opened(function))]
        spaces = _Spaces(self.isa, function, int(lead))
        for cpu, by_rows in self._groups(self._declared(self._records(ids), spaces, function)):
            rows = 0 if 0 in by_rows else _nearest(by_rows, int(lead))
            return dict(by_rows[rows].config), self._source(cpu, [by_rows[rows]])
        return None

    def _open_batch(self, module: Module, function: Function) -> Chosen | None:
        """Put together one config for all batch sizes from those found at some."""
        spaces = _Spaces(self.isa, function, 1)
        records = self._records([_kernel_id("stage", stage_kernel(module, function))])
        for cpu, by_rows in self._groups(self._declared(records, spaces, function)):
            config: dict[str, KnobValue] = {}
            ordered = sorted(by_rows.items())
            blocks = [(rows, r) for rows, r in ordered if r.config[THRESHOLD] == 0]
            alone = [(rows, r) for rows, r in ordered if r.config[THRESHOLD] != 0]
            for rows, record in (*alone[:1], *blocks[-1:]):
                knobs = spaces.knobs(rows, int(record.config[THRESHOLD]))
                config |= {name: record.config[name] for name in knobs}
            if not rows_only(function):
                default = default_stage_configs(isa_by_name(self.isa), function)
                config[THRESHOLD] = threshold(
                    {rows: r.config[THRESHOLD] != 0 for rows, r in ordered},
                    default.stage.row_threshold,
                )
            return config, self._source(cpu, by_rows.values())
        return None

    def _declared(
        self, records: Sequence[_Ranked], spaces: _Spaces, function: Function
    ) -> list[_Ranked]:
        """Return the records whose configs the space still has, other knobs at today's defaults."""
        found = []
        for log, record in records:
            config = spaces.today(record.workload.rows, record.config)
            if config is not None:
                found.append((log, replace(record, config=config)))
        self._note(len(records) - len(found), f"@{function.name}")
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


def _opened(function: Function) -> Function:
    """Return a stage of fixed rows as the same stage with an open batch."""
    fixed = {op.results[0].name for op in function.body if op.opcode == "constant"}

    def value(v: Value) -> Value:
        lead = v.type.shape[0] if v.type.shape else None
        if v.name in fixed or not isinstance(lead, int):
            return v
        shape = (Sym("n", lead), *v.type.shape[1:])
        return Value(v.name, replace(v.type, shape=shape))

    def values(group: tuple[Value, ...]) -> tuple[Value, ...]:
        return tuple(value(v) for v in group)

    body = tuple(
        replace(op, operands=values(op.operands), results=values(op.results))
        for op in function.body
    )
    return replace(
        function, params=values(function.params), body=body, returns=values(function.returns)
    )


class _Spaces:
    """The declared spaces of one stage, by number of rows."""

    def __init__(self, isa: str, function: Function, own_rows: int) -> None:
        self._isa, self._function, self._own_rows = isa_by_name(isa), function, own_rows
        self._spaces: dict[int, Space] = {}
        self._knobs: dict[tuple[int, int], tuple[str, ...]] = {}

    def at(self, rows: int) -> Space:
        rows = rows or self._own_rows
        if rows not in self._spaces:
            self._spaces[rows] = stage_space(self._isa, self._function, rows)
        return self._spaces[rows]

    def knobs(self, rows: int, way: int) -> tuple[str, ...]:
        """Name the knobs that matter to one of the two ways; the other's are held."""
        key = (rows or self._own_rows, way)
        if key not in self._knobs:
            space = self.at(rows)
            base = {**space.default, THRESHOLD: way}
            self._knobs[key] = tuple(
                knob.name
                for knob in space.knobs
                if knob.name != THRESHOLD
                and any(
                    {**base, knob.name: v} in space for v in knob.values if v != base[knob.name]
                )
            )
        return self._knobs[key]

    def today(self, rows: int, config: Config) -> dict[str, KnobValue] | None:
        """Return a recorded config with what does not matter to it at today's defaults."""
        space = self.at(rows)
        way = config.get(THRESHOLD)
        if way not in (0, ALWAYS) or set(config) - {knob.name for knob in space.knobs}:
            return None
        result = {**space.default, THRESHOLD: way}
        result |= {n: config[n] for n in self.knobs(rows, int(way)) if n in config}
        return result if result in space else None
