"""Does the cost model earn its place? Searches replayed against exhaustive measurements.

``python -m lutcc.bench.search --output DIR`` measures every valid config of each workload once,
beside the default, into ``DIR/tables.jsonl`` (a tuning log; what it has is not measured again),
replays each search against it for many seeds, and writes ``search.json``, ``search.md`` and
``search.png`` into ``DIR``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lutcc.bench.machine import describe, versions
from lutcc.bench.readme import replace_block
from lutcc.bench.replay import Table, tables_of
from lutcc.cli.console import Console
from lutcc.errors import UsageError, suggest
from lutcc.schedules.space import Config, config_id
from lutcc.tuning.logfile import LogFile
from lutcc.tuning.oplist import OpSpec
from lutcc.tuning.records import Outcome, Phase, Record
from lutcc.tuning.runner import ProcessRunner, make_runner
from lutcc.tuning.stages import stage_tasks
from lutcc.tuning.task import Task

#: The best so many are measured again, longer, until the best of all is one of them.
FINALISTS = 6
_AHEAD = 4


def _op(op: str, rows: int, **sizes: int | str) -> Callable[[str], Task]:
    """Return a maker of the task of one op."""

    def make(isa: str) -> Task:
        spec = OpSpec(op, (rows,), sizes)
        (task,) = stage_tasks(spec.module(), isa, rows=spec.rows)
        return task

    return make


def _attention(op: str, rows: int, width: int, length: int) -> Callable[[str], Task]:
    """Return a maker of the largest loop nest called ``op`` of a transformer layer."""

    def make(isa: str) -> Task:
        import torch

        from lutcc.frontend import import_torch
        from lutcc.tuning.relax_tasks import relax_tasks

        torch.manual_seed(0)
        layer = torch.nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True, dropout=0.0)
        imported = import_torch(layer.eval(), (torch.randn(2, length, width),))
        tasks = relax_tasks(imported, isa, rows=(rows,))
        return max(
            (task for task in tasks if task.workload.op == op),
            key=lambda task: (task.workload.cost.get("flops", 0), task.name),
        )

    return make


#: Name -> maker of its task for a level. Rows from 1 to 16384; sizes that registers and chunks do
#: not divide; every op that has something to choose, most of them in two shapes.
WORKLOADS: dict[str, Callable[[str], Task]] = {
    "lookup 1x512x512/64": _op("lookup", 1, D=512, M=512, C=64),
    "lookup 16x512x512/64": _op("lookup", 16, D=512, M=512, C=64),
    "lookup 1024x512x512/64": _op("lookup", 1024, D=512, M=512, C=64),
    "lookup 300x65x10/7": _op("lookup", 300, D=65, M=10, C=7),
    "lookup 16384x300x200/30": _op("lookup", 16384, D=300, M=200, C=30),
    "lookup K=64 512x256x256/32": _op("lookup", 512, D=256, M=256, C=32, K=64),
    "mean 1024x512x512/64": _op("lookup", 1024, D=512, M=512, C=64, accumulate="mean"),
    "mean 64x128x96/16": _op("lookup", 64, D=128, M=96, C=16, accumulate="mean"),
    "nearest 256x128x128/16": _op("lookup", 256, D=128, M=128, C=16, encoder="nearest"),
    "nearest 1000x64x50/6": _op("lookup", 1000, D=64, M=50, C=6, encoder="nearest"),
    "chain 2048x256x256/32": _op("lookup", 2048, D=256, M=256, C=32, layers=2),
    "scan 256x48x1000": _op("lut_accumulate", 256, C=48, M=1000),
    "scan 2048x64x256": _op("lut_accumulate", 2048, C=64, M=256),
    "encode 4096x512/64": _op("tree_encode", 4096, D=512, C=64),
    "encode 512x200/25": _op("tree_encode", 512, D=200, C=25),
    "linear 128x256x512": _op("linear", 128, D=256, M=512),
    "linear 4096x100x37": _op("linear", 4096, D=100, M=37),
    "attention matmul 32x64x64x48": _attention("matmul", 8, 192, 64),
    "attention matmul 16x80x80x64": _attention("matmul", 4, 256, 80),
    "attention softmax 2048x64": _attention("softmax", 8, 192, 64),
    "attention softmax 1280x80": _attention("softmax", 4, 256, 80),
    "layer_norm 512x192": _attention("layer_norm", 8, 192, 64),
    "layer_norm 320x256": _attention("layer_norm", 4, 256, 80),
}


def chosen(names: Sequence[str]) -> dict[str, Callable[[str], Task]]:
    """Return the workloads with these names, all for none.

    Raises
    ------
    UsageError
        For an unknown name.
    """
    for name in names:
        if name not in WORKLOADS:
            raise UsageError(f"there is no workload {name!r}", fix=suggest(name, WORKLOADS))
    return {name: WORKLOADS[name] for name in names or WORKLOADS}


@dataclass(frozen=True)
class Collector:
    """Measures every valid config of a task and logs it.

    Attributes
    ----------
    runner
        Measures.
    log
        Where to; what it has is not measured again.
    console
        Told how far it is.
    """

    runner: ProcessRunner
    log: LogFile
    console: Console

    def collect(self, name: str, task: Task) -> None:
        """Measure all configs that the log does not have, then the best ones longer."""
        known = [r for r in self.log.read() if self._is_of(task, r)]
        done = {r.config_id for r in known if r.phase != "final"}
        default = dict(task.space.default)
        missing = [c for c in task.space.configs() if config_id(c) not in done and c != default]
        if not missing and any(r.phase == "final" for r in known):
            return
        self.console.progress(
            f"{name}: {len(missing)} of {len(missing) + len(done)} configs to measure"
        )
        outcome = self.runner.open(task)
        if outcome.status != "ok":
            self.console.progress(
                f"{name}: the default fails ({outcome.status}: {outcome.message})"
            )
            return
        if not any(r.phase == "default" for r in known):
            self._append(task, default, outcome, "default")
        for index, config in enumerate(missing):
            self.runner.prefetch(task, missing[index + 1 : index + 1 + _AHEAD])
            self._append(task, config, self.runner.measure(task, config, default), "search")
        while again := self._unsure(task):
            outcomes = self.runner.final(task, [default, *again])
            for config, outcome in zip((default, *again), outcomes, strict=True):
                self._append(task, config, outcome, "final")

    def _unsure(self, task: Task) -> list[Config]:
        """Return the best configs if the best of all was measured in passing only."""
        last = {r.config_id: r for r in self.log.read() if self._is_of(task, r)}
        good = [r for r in last.values() if r.relative is not None and r.phase != "default"]
        good.sort(key=lambda r: (r.relative or 0.0, r.config_id))
        if not good or good[0].phase == "final":
            return []
        return [r.config for r in good[:FINALISTS] if r.phase != "final"]

    def _is_of(self, task: Task, record: Record) -> bool:
        return record.workload.id == task.workload.id and record.place.isa == task.isa

    def _append(self, task: Task, config: Config, outcome: Outcome, phase: Phase) -> None:
        ok = outcome.status == "ok"
        self.log.append(
            Record(
                workload=task.workload,
                config=dict(config),
                place=self.runner.place(task.isa, task.mcpu),
                outcome=outcome,
                relative=outcome.ratio if ok else None,
                phase=phase,
                session="exhaustive",
                seed=0,
                time=datetime.now(UTC).isoformat(timespec="seconds"),
                versions=versions(),
            )
        )


def tables(log: LogFile, tasks: dict[str, Task]) -> list[Table]:
    """Return the tables of tasks by name, from a log."""
    names = {task.workload.id: name for name, task in tasks.items()}
    isas = {task.isa for task in tasks.values()}
    wanted = (r for r in log.read() if r.workload.id in names and r.place.isa in isas)
    return tables_of(wanted, names)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lutcc.bench.search", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of tables and results")
    parser.add_argument("--workloads", nargs="*", default=[], help="names; default: all")
    parser.add_argument("--isa", default="avx512_vbmi_vnni", help="instruction-set level")
    parser.add_argument("--other-isa", help="level whose tables a second transfer starts from")
    parser.add_argument("--seeds", type=int, default=20, help="runs of each search")
    parser.add_argument("--trials", type=int, default=48, help="trials of each run")
    parser.add_argument("--core", type=int, help="core to measure on")
    parser.add_argument("--docs", type=Path, help="page whose block 'search' gets the tables")
    parser.add_argument("--replay-only", action="store_true", help="measure nothing")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, replay, and write the results."""
    from lutcc.bench.search_report import experiment, write

    options = _arguments(arguments)
    console = Console()
    log = LogFile(options.output / "tables.jsonl")
    makers = chosen(options.workloads)
    by_isa = {
        isa: {name: make(isa) for name, make in makers.items()}
        for isa in filter(None, (options.isa, options.other_isa))
    }
    if not options.replay_only:
        with make_runner("local", core=options.core) as runner:
            collector = Collector(runner, log, console)
            for tasks in by_isa.values():
                for name, task in tasks.items():
                    collector.collect(name, task)
    found = tables(log, by_isa[options.isa])
    others = [t for isa, tasks in by_isa.items() if isa != options.isa for t in tables(log, tasks)]
    result = experiment(
        found, others, seeds=options.seeds, trials=options.trials, progress=console.progress
    )
    write(options.output, {"machine": describe(options.core), **result})
    tables_text = (options.output / "search.md").read_text(encoding="utf-8")
    if options.docs is not None:
        page = options.docs.read_text(encoding="utf-8")
        options.docs.write_text(replace_block(page, "search", tables_text), encoding="utf-8")
    sys.stdout.write(tables_text)


if __name__ == "__main__":
    main()
