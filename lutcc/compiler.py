"""From a model or a module to an artifact."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lutcc.codegen.cached import build_program
from lutcc.codegen.compile_cache import CompileCache, as_cache
from lutcc.codegen.lower import prepare
from lutcc.codegen.program import Program
from lutcc.codegen.targets import Target, parse_targets
from lutcc.errors import LogError
from lutcc.ir.module import Module
from lutcc.ir.passes import LookupNote

if TYPE_CHECKING:
    from lutcc.runtime import Artifact
    from lutcc.tuning.choose import Chooser


def compile(
    model_or_module: Any,
    example_inputs: Any = None,
    *,
    target: str = "host",
    dynamic: Mapping[Any, Any] | Sequence[Any] | None = None,
    tuning_logs: str | Path | None = None,
    trials: int = 0,
    cache: bool | str | Path | CompileCache = True,
) -> Artifact:
    """Compile a model into one artifact that holds kernels for every named target.

    Parameters
    ----------
    model_or_module
        A ``torch.nn.Module``, a ``torch.export.ExportedProgram``, or a :class:`lutcc.ir.Module`.
    example_inputs
        For a torch module: a tensor, a tuple of tensors or a mapping of keyword arguments.
    target
        ``host``, an instruction-set level (``avx2``, ``avx512``, ``avx512_vbmi_vnni``,
        ``avx512_bf16``), a CPU name of LLVM, or several joined by commas.
    dynamic
        For a torch module: which sizes of the inputs stay open. By default dimension 0, the batch
        ``n``. ``{0: "n", 1: "length"}`` goes for every input that has these dimensions; a mapping
        by input name or a sequence, as ``dynamic_shapes`` of ``torch.export``, says it for each. A
        size is a name or a ``torch.export.Dim`` with bounds; bounds are checked at each call.
    tuning_logs
        Folder of tuning logs, searched before those that ship with lutcc. Each kernel gets the best
        config that a log has for it on the very processor, else on another one of the same level,
        else its hand-picked default; :meth:`lutcc.Artifact.explain` says which.
    trials
        Tune first, with so many trials per kernel (:func:`lutcc.tune`, which has more options); the
        log goes to ``tuning_logs``, by default the folder of that name.
    cache
        Kernels that were built before are taken from there: True (the default) is the folder that
        ``LUTCC_CACHE_DIR`` names, else ``lutcc`` in the user's folder for caches, a path another
        folder, False none. Several processes may compile into one; what is damaged there is built
        again, and an interrupted compilation goes on with what it had built.

    Returns
    -------
    Artifact
        Call it, save it, or ask it to explain itself.

    Raises
    ------
    FrontendError
        If the torch model cannot be imported.
    CompileError
        If lowering or building fails.
    TargetError
        If the target is unknown.
    LogError
        If there is no such folder of logs, or a log is of another version of lutcc.
    InputError
        If the environment's settings of the cache are wrong.

    Examples
    --------
    >>> artifact = lutcc.compile(model, torch.randn(8, 64))        # doctest: +SKIP
    >>> artifact.save("model.lutcc")                               # doctest: +SKIP
    >>> y = artifact(torch.randn(3, 64))                           # doctest: +SKIP
    >>> text = lutcc.compile(bert, tokens, dynamic={0: "n", 1: "length"})  # doctest: +SKIP
    """
    targets = parse_targets(target)
    store = as_cache(cache)
    given = model_or_module
    if not isinstance(given, Module):
        from lutcc.frontend import import_torch

        given = import_torch(given, example_inputs, dynamic=dynamic)
    if trials:
        from lutcc.tuning.api import tune

        tuning_logs = "tuning_logs" if tuning_logs is None else tuning_logs
        tune(given, target=target, log_dir=tuning_logs, trials=trials)
    folders = _log_folders(tuning_logs)
    if isinstance(given, Module):
        return compile_module(given, targets, folders, cache=store)
    if given.module is not None:
        return compile_module(given.module, targets, folders, notes=given.notes, cache=store)
    return _compile_mixed(given, targets, folders, store)


def compile_module(
    module: Module,
    targets: Sequence[Target],
    folders: Sequence[Path] = (),
    *,
    notes: Sequence[str] = (),
    cache: CompileCache | None = None,
) -> Artifact:
    """Compile a module of lutcc's own operations: one entry function, no virtual machine.

    Parameters
    ----------
    module
        Verified.
    targets
        At most one for each level.
    folders
        Folders of tuning logs, the preferred first; without any, kernels use their defaults.
    notes
        What the import had to say.
    cache
        Where to look for what was built before.
    """
    from lutcc.runtime import Artifact

    told: list[LookupNote] = []
    prepared = prepare(module, told)
    programs: list[Program] = []
    tuning: list[str] = []
    with tempfile.TemporaryDirectory(prefix="lutcc-") as folder:
        paths = {}
        for choice in targets:
            chooser = _chooser(choice, folders)
            isa = choice.isa.name
            paths[isa] = Path(folder) / f"kernels-{isa}.so"
            configs = chooser.stage_configs(prepared)
            made = build_program(prepared, isa, configs, paths[isa], mcpu=choice.mcpu, cache=cache)
            programs.append(made)
            tuning += _tuning_notes(chooser, [str(k["source"]) for k in made.kernels])
        mcpus = {t.isa.name: t.mcpu for t in targets}
        extra = {"notes": list(notes), "tuning_notes": tuning, "mcpu": mcpus}
        extra["lookups"] = [asdict(note) for note in told]
        return Artifact.from_programs(prepared, programs, paths, extra)


def _log_folders(given: str | Path | None) -> list[Path]:
    """Return the folders to search: the given one, then the shipped one; each once."""
    from lutcc.tuning.choose import SHIPPED_LOGS

    if given is not None and not Path(given).exists():
        raise LogError(
            "there is no such folder of tuning logs",
            where=str(given),
            fix="name one that lutcc.tune has written to, or leave it out",
        )
    named = [] if given is None else [Path(given)]
    return list({path.resolve(): path for path in (*named, SHIPPED_LOGS)}.values())


def _chooser(target: Target, folders: Sequence[Path]) -> Chooser:
    from lutcc.tuning.choose import Chooser
    from lutcc.tuning.host import cpu_name

    return Chooser(target.isa.name, cpu_name() if target.host else target.mcpu, folders)


def _tuning_notes(chooser: Chooser, sources: Sequence[str]) -> list[str]:
    from lutcc.tuning.choose import coverage

    told = coverage(sources, chooser.target)
    return [*chooser.notes, *([told] if told else [])]


def _compile_mixed(
    imported: Any,
    targets: list[Target],
    folders: Sequence[Path],
    cache: CompileCache | None = None,
) -> Artifact:
    """Compile a model whose other layers run on TVM's Relax."""
    from lutcc.frontend.relax import build_mixed
    from lutcc.runtime import Artifact
    from lutcc.tuning.choose import LevelChoosers

    choosers = {target.isa.name: _chooser(target, folders) for target in targets}
    mcpus = {target.isa.name: target.mcpu for target in targets}
    with tempfile.TemporaryDirectory(prefix="lutcc-") as folder:
        built = build_mixed(
            imported,
            list(choosers),
            Path(folder),
            choice=LevelChoosers(choosers),
            mcpus=mcpus,
            cache=cache,
        )
        tuning: list[str] = []
        for isa, chooser in choosers.items():
            tuning += _tuning_notes(chooser, [str(k["source"]) for k in built.kernels[isa]])
        return Artifact.from_relax(
            built.module_texts,
            built.so_paths,
            built.inputs,
            built.outputs,
            built.params,
            built.param_order,
            {
                "kernels": built.kernels,
                "notes": list(built.notes),
                "lookups": [asdict(note) for note in built.lookups],
                "tuning_notes": tuning,
                "mcpu": mcpus,
                "bounds": {name: list(pair) for name, pair in imported.graph.bounds.items()},
            },
        )
