"""``lutcc.tune``: tune the kernels of a model, or of a list of ops, for a processor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lutcc.codegen.targets import Target, parse_targets
from lutcc.errors import InputError, TargetError
from lutcc.ir.module import Module
from lutcc.tuning.logfile import LogFile, path_for
from lutcc.tuning.oplist import OpSpec
from lutcc.tuning.options import EFFORTS, SessionOptions
from lutcc.tuning.progress import Event, Summary
from lutcc.tuning.records import Place, Record
from lutcc.tuning.relax_tasks import kernel_tasks, model_tasks
from lutcc.tuning.runner import Runner, make_runner
from lutcc.tuning.search import SEARCHES
from lutcc.tuning.session import Session
from lutcc.tuning.task import Task

#: Batch sizes that a model with an open batch is tuned at.
DEFAULT_ROWS = (1, 64, 1024)


def tune(
    model_or_module: Any,
    example_inputs: Any = None,
    *,
    target: str = "host",
    log_dir: str | Path = "tuning_logs",
    trials: int = 64,
    budget_s: float | None = None,
    seed: int = 0,
    runner: str = "local",
    rows: Sequence[int] = DEFAULT_ROWS,
    lengths: Sequence[int] | None = None,
    threads: int = 1,
    cache: str = "hot",
    effort: str | None = None,
    resume: bool = True,
    search: str = "metaschedule",
    on_event: Callable[[Event], None] = lambda event: None,
) -> list[Summary]:
    """Tune every kernel of a model and append what was measured to a log.

    Parameters
    ----------
    model_or_module
        A ``torch.nn.Module``, a ``torch.export.ExportedProgram``, a :class:`lutcc.ir.Module`, a
        list of :class:`lutcc.tuning.OpSpec`, or a list of several of these.
    example_inputs
        For a torch module, as in :func:`lutcc.compile`.
    target
        ``host`` (the widest level of the machine that measures), ``all`` (every level that it has),
        instruction-set levels (``avx2,avx512``), or the LLVM name of its processor. A processor
        that is not there cannot be tuned for.
    log_dir
        Folder of logs; records go to ``<log_dir>/<cpu>/<level>.jsonl``.
    trials
        Trials per kernel on average, see :class:`SessionOptions`.
    budget_s
        Seconds after which no new trial starts.
    seed
        Of search and data.
    runner
        ``local``, or ``rpc://host:port/key`` (see ``lutcc serve-rpc``).
    rows
        Batch sizes to tune at, for models whose batch is open.
    lengths
        Values of open sizes other than the batch (64): kernels whose rows depend on them are tuned
        at each batch size with each length. Loop nests of TVM are measured at 64 always.
    threads
        Threads that a kernel runs on.
    cache
        ``hot``, or ``cold``: caches emptied before every call.
    effort
        ``none``, ``quick`` or ``full``: in place of ``trials``.
    resume
        Go on where the log ends.
    search
        ``metaschedule``, ``random`` or ``exhaustive``.
    on_event
        Called for all that happens.

    Returns
    -------
    list of Summary
        One for each level of the target.

    Raises
    ------
    InputError
        For a wrong option.
    TargetError
        If the processor cannot run the target's kernels, or is another one than the target.

    Examples
    --------
    >>> lutcc.tune(model, torch.randn(8, 64), budget_s=600)        # doctest: +SKIP
    >>> artifact = lutcc.compile(model, torch.randn(8, 64), tuning_logs="tuning_logs")
    ... # doctest: +SKIP
    """
    for what, given, known in (
        ("effort", effort, (None, *EFFORTS)),
        ("cache mode", cache, ("hot", "cold")),
        ("search", search, tuple(SEARCHES)),
    ):
        if given not in known:
            names = ", ".join(repr(name) for name in known if name)
            raise InputError(f"there is no {what} {given!r}", where="tune", fix=f"use {names}")
    for what, values in (("rows", rows), ("lengths", (1,) if lengths is None else lengths)):
        if not values or any(type(n) is not int or n < 1 for n in values):
            raise InputError(
                f"{what} is {values!r}", where="tune", fix="give whole numbers above 0"
            )
    if effort is not None:
        trials = EFFORTS[effort]
    options = SessionOptions(trials, budget_s, seed, resume, search)
    targets = None if target in ("host", "all") else parse_targets(target)
    models = _importable(model_or_module, example_inputs)
    if lengths is not None and not any(_opens_more(model) for model in models):
        raise InputError(
            "no model leaves a size open other than its batch",
            where="tune, lengths",
            fix="leave lengths out; or export with a second open size",
        )
    summaries = []
    with make_runner(runner, threads=threads, seed=seed) as measuring:
        for choice in targets or _own_levels(measuring, target):
            place = _place(measuring, choice)
            tasks = _tasks(models, choice, rows, lengths or (None,), threads, cache)
            log = LogFile(path_for(log_dir, place.cpu, place.isa))
            session = Session(
                tasks,
                measuring,
                log,
                options,
                place=place,
                related=_related(log_dir, log.path),
                on_event=on_event,
            )
            summaries.append(session.run())
            if summaries[-1].interrupted:
                break
    return summaries


def _own_levels(runner: Runner, target: str) -> list[Target]:
    """Return what ``host`` or ``all`` means where the runner measures."""
    levels = runner.levels()
    if not levels:
        raise TargetError(
            "the machine that measures has no AVX2, for which the narrowest kernels are made",
            where=f"tune --target {target}",
            fix="tune on a processor of x86-64-v3 or above",
        )
    return parse_targets(",".join(levels if target == "all" else levels[-1:]))


def _place(runner: Runner, target: Target) -> Place:
    """Return where the runner measures; refuse a processor that is not the target."""
    place = runner.place(target.isa.name, target.mcpu)
    if target.mcpu is not None and target.mcpu != place.cpu:
        raise TargetError(
            f"measurements on {place.cpu} say nothing of {target.mcpu}",
            where="tune --target",
            fix=f"tune on a {target.mcpu} (--runner rpc://host:port/key reaches one across the "
            f"network), or for a level of this processor: --target {target.isa.name}",
        )
    return place


def _importable(given: Any, example_inputs: Any) -> list[Any]:
    """Return modules, op specs and imported models."""
    if isinstance(given, (list, tuple)):
        return [model for one in given for model in _importable(one, example_inputs)]
    if isinstance(given, (Module, OpSpec)):
        return [given]
    from lutcc.frontend import import_torch

    return [import_torch(given, example_inputs)]


def _opens_more(model: Any) -> bool:
    """Tell whether an imported model has open sizes other than its batch."""
    return len(getattr(getattr(model, "graph", None), "symbols", ())) > 1


def _tasks(
    models: Sequence[Any],
    target: Target,
    rows: Sequence[int],
    lengths: Sequence[int | None],
    threads: int,
    cache: str,
) -> list[Task]:
    """Return the distinct tasks of all models for one target."""
    how = {"mcpu": target.mcpu, "threads": threads, "cache": cache}
    tasks: dict[str, Task] = {}
    for index, model in enumerate(models):
        for length in lengths if _opens_more(model) else (None,):
            name = f"model {index}" if length is None else f"model {index}, length {length}"
            if isinstance(model, OpSpec):
                name = model.name
                found: Iterable[Task] = kernel_tasks(
                    model.module(), target.isa.name, rows=model.rows, **how
                )
            else:
                found = model_tasks(model, isa=target.isa.name, rows=rows, length=length, **how)
            for task in found:
                tasks.setdefault(task.workload.id, replace(task, model=name))
    if not tasks:
        raise InputError(
            "there is nothing to tune: no kernel has a choice to make",
            where="tune",
            fix="give a model or an op with look-ups, products or elementwise layers",
        )
    return list(tasks.values())


def _related(log_dir: str | Path, own: Path) -> list[Record]:
    """Return the records of every other log: the folder's and the shipped ones."""
    from lutcc.tuning.choose import SHIPPED_LOGS

    paths = {
        path.resolve()
        for folder in (Path(log_dir), SHIPPED_LOGS)
        for path in folder.glob("*/*.jsonl")
    }
    paths.discard(own.resolve())
    return [record for path in sorted(paths) for record in LogFile(path).read()]
