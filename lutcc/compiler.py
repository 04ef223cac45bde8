"""From a model or a module to an artifact."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lutcc.codegen.build import build_module, link
from lutcc.codegen.lower import Lowered, lower, prepare
from lutcc.codegen.targets import Target, parse_targets
from lutcc.errors import CompileError
from lutcc.ir.module import Module

if TYPE_CHECKING:
    from lutcc.runtime import Artifact


def compile(
    model_or_module: Any,
    example_inputs: Any = None,
    *,
    target: str = "host",
    tuning_logs: str | Path | None = None,
    trials: int = 0,
) -> Artifact:
    """Compile a model into one artifact that holds kernels for every named target.

    Parameters
    ----------
    model_or_module
        A ``torch.nn.Module``, a ``torch.export.ExportedProgram``, or a :class:`lutcc.ir.Module`.
    example_inputs
        For a torch module: a tensor or a tuple of tensors; dimension 0 is the batch and stays open.
    target
        ``host``, an instruction-set level (``avx2``, ``avx512``, ``avx512_vbmi_vnni``), a CPU name
        of LLVM, or several joined by commas.
    tuning_logs
        Folder of tuning logs. This version has no tuner: kernels use the shipped defaults.
    trials
        Tuning trials to spend; must be 0 in this version.

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

    Examples
    --------
    >>> artifact = lutcc.compile(model, torch.randn(8, 64))        # doctest: +SKIP
    >>> artifact.save("model.lutcc")                               # doctest: +SKIP
    >>> y = artifact(torch.randn(3, 64))                           # doctest: +SKIP
    """
    if trials or tuning_logs is not None:
        raise CompileError(
            "this version has no autotuner yet",
            where="lutcc.compile(trials=..., tuning_logs=...)",
            fix="leave both out; kernels use the hand-picked defaults",
        )
    targets = parse_targets(target)
    if isinstance(model_or_module, Module):
        return compile_module(model_or_module, targets)
    from lutcc.frontend import import_torch

    imported = import_torch(model_or_module, example_inputs)
    if imported.module is not None:
        return compile_module(imported.module, targets, notes=imported.notes)
    return _compile_mixed(imported, targets)


def compile_module(
    module: Module,
    targets: list[Target],
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    notes: tuple[str, ...] = (),
) -> Artifact:
    """Compile a module of lutcc's own operations: one entry function, no virtual machine."""
    from lutcc.runtime import Artifact

    prepared = prepare(module)
    lowered: list[Lowered] = []
    with tempfile.TemporaryDirectory(prefix="lutcc-") as folder:
        paths = {}
        for choice in targets:
            one = lower(prepared, choice.isa.name, configs)
            path = Path(folder) / f"kernels-{choice.isa.name}.so"
            link(build_module(one, mcpu=choice.mcpu), path)
            paths[choice.isa.name] = path
            lowered.append(one)
        extra = {"notes": list(notes), "mcpu": {t.isa.name: t.mcpu for t in targets}}
        return Artifact.from_programs(prepared, [one.program for one in lowered], paths, extra)


def _compile_mixed(imported: Any, targets: list[Target]) -> Artifact:
    """Compile a model whose other layers run on TVM's Relax."""
    from lutcc.frontend.relax import build_mixed
    from lutcc.runtime import Artifact

    with tempfile.TemporaryDirectory(prefix="lutcc-") as folder:
        built = build_mixed(imported, [t.isa.name for t in targets], Path(folder))
        return Artifact.from_relax(
            built.module_texts,
            built.so_paths,
            built.inputs,
            built.outputs,
            built.params,
            built.param_order,
            {"kernels": built.kernels, "notes": list(built.notes)},
        )
