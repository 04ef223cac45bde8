"""Relax to machine code: fusion, a schedule for every loop nest, the virtual machine."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from lutcc.codegen.tvm_setup import import_tvm
from lutcc.errors import CompileError
from lutcc.frontend.relax.canonical import describe
from lutcc.frontend.relax.fast_math import legalizers
from lutcc.frontend.relax.nan_math import nan_legalizers
from lutcc.frontend.relax.nests import Nest, loop_nest
from lutcc.frontend.relax.thread_choice import choose_threads
from lutcc.frontend.relax.transposed import absorb_transposes
from lutcc.ir.module import Module
from lutcc.schedules.space import Config, KnobValue
from lutcc.schedules.x86.isa import isa_by_name
from lutcc.tuning.choose import UNTUNED

KERNEL = "lutcc.kernel"
"""Attribute of the PrimFuncs that lutcc's own code generator made."""


class Choice(Protocol):
    """Says which tuned config a kernel gets."""

    def stage_configs(self, module: Module, isa: str) -> Mapping[str, Mapping[str, Any]]:
        """Return the configs of a prepared module's stages, as :func:`lower` takes them."""
        ...

    def relax_config(self, kernel_id: str, isa: str) -> tuple[Config, str] | None:
        """Return the config of an exact layer's loop nest and where it was found, or None.

        ``kernel_id`` is that of its workload.
        """
        ...


@dataclass(frozen=True)
class ScheduledModule:
    """A Relax module whose loop nests are scheduled.

    Attributes
    ----------
    module
        See there.
    kernels
        One record per loop nest (stage, ops, config, source), for ``artifact.explain()``.
    """

    module: Any
    kernels: tuple[Mapping[str, Any], ...]


def fuse_module(module: Any) -> Any:
    """Return an imported Relax module with its operations fused into unscheduled PrimFuncs.

    Examples
    --------
    >>> fused = fuse_module(program.module)
    """
    tvm = import_tvm()
    from tvm import relax

    before = [
        relax.transform.DecomposeOpsForInference(),
        relax.transform.CanonicalizeBindings(),
    ]
    module = absorb_transposes(tvm.transform.Sequential(before)(module))
    return tvm.transform.Sequential(
        [
            relax.transform.DeadCodeElimination(),
            relax.transform.LegalizeOps(legalizers() | nan_legalizers()),
            relax.transform.RewriteDataflowReshape(),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FoldConstant(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(),
        ]
    )(module)


def unscheduled(module: Any) -> dict[str, Any]:
    """Return the PrimFuncs of a fused module that are not lutcc's own kernels, by name."""
    from tvm import tirx

    return {
        symbol.name_hint: function
        for symbol, function in module.functions_items()
        if isinstance(function, tirx.PrimFunc) and not function.attrs.get("tirx.is_scheduled")
    }


@functools.cache
def loop_pipeline() -> str:
    """Register the passes below Relax, and return their name: lutcc's kernels need few of them."""
    tvm = import_tvm()
    from tvm.s_tir.pipeline import default_s_tir_pipeline
    from tvm.tirx import compilation_pipeline

    from lutcc.codegen.build import kernel_pipeline

    def factory() -> Any:
        general, *finalize = default_s_tir_pipeline()
        short, *_ = compilation_pipeline.PIPELINE_MAP[kernel_pipeline()]()

        @tvm.transform.module_pass(opt_level=0)
        def lower(module: Any, _: Any) -> Any:
            kernels = {s: f for s, f in module.functions_items() if f.attrs.get(KERNEL)}
            others = {s: f for s, f in module.functions_items() if not f.attrs.get(KERNEL)}
            lowered = tvm.IRModule({}, attrs=module.attrs)
            for passes, functions in ((general, others), (short, kernels)):
                if functions:
                    done = passes(tvm.IRModule(functions, attrs=module.attrs))
                    for symbol, function in done.functions_items():
                        counted = passes is short
                        lowered[symbol] = choose_threads(function, counted=counted)
            return lowered

        return lower, *finalize

    compilation_pipeline.PIPELINE_MAP["lutcc_relax"] = factory
    return "lutcc_relax"


def schedule_module(
    module: Any,
    isa: str,
    choice: Choice | None = None,
    names: Mapping[str, str] | None = None,
) -> ScheduledModule:
    """Schedule every PrimFunc of a fused module: with a tuned config where there is one.

    ``names`` are those of the module's open sizes, for the records.

    Examples
    --------
    >>> scheduled = schedule_module(fuse_module(program.module), "avx2")
    """
    records = []
    for name, function in unscheduled(module).items():
        nest = loop_nest(function, isa)
        config, source, scheduled = {}, UNTUNED, None
        if nest is not None:
            config, source, scheduled = _scheduled(nest, choice)
            module[name] = scheduled.with_attr("tirx.is_scheduled", True)
        ops = [describe(name, function, names)]
        records.append({"stage": name, "ops": ops, "config": config, "source": source})
    return ScheduledModule(module, tuple(records))


def _scheduled(nest: Nest, choice: Choice | None) -> tuple[dict[str, KnobValue], str, Any]:
    """Return the config, its source and the function: what was tuned, the default elsewhere.

    A config that is not in the space comes from another version's log; it does not count.
    """
    config, sources = nest.default, dict.fromkeys(nest.spaces, UNTUNED)
    for part, space in nest.spaces.items():
        found = None if choice is None else choice.relax_config(nest.kernel_id(part), nest.isa)
        if found is not None and found[0] in space:
            config.update(found[0])
            sources[part] = found[1]
    if set(sources.values()) == {UNTUNED}:
        return config, UNTUNED, nest.scheduled
    function = nest.schedule(config)
    if function is None:
        return nest.default, UNTUNED, nest.scheduled
    if len(set(sources.values())) == 1:
        return config, next(iter(sources.values())), function
    return config, "; ".join(f"{part}: {source}" for part, source in sources.items()), function


def build_loops(function: Any, isa: str, mcpu: str | None = None) -> Any:
    """Compile one PrimFunc, scheduled or not, as ``kernel``; return TVM's executable.

    Raises
    ------
    CompileError
        If TVM cannot build it.
    """
    tvm = import_tvm()
    target = tvm.target.Target(isa_by_name(isa).llvm_target(mcpu))
    named = function.with_attrs({"global_symbol": "kernel", "tirx.is_scheduled": True})
    try:
        return tvm.tirx.build(
            tvm.IRModule({"kernel": named}), target=target, pipeline=loop_pipeline()
        )
    except Exception as error:  # TVM raises many classes; all mean that the build failed
        last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise CompileError(
            f"TVM could not build a loop nest: {last[0]}",
            where=isa,
            fix="run 'lutcc doctor'; if all is well there, report the model's layers",
        ) from error
