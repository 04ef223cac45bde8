"""Relax to machine code: fusion, default schedules for every loop nest, the virtual machine."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

from lutcc.codegen.tvm_setup import import_tvm
from lutcc.frontend.relax.fast_math import legalizers
from lutcc.frontend.relax.loop_schedule import schedule_each_block, schedule_rows
from lutcc.frontend.relax.matmul_schedule import default_config, schedule_matmul

KERNEL = "lutcc.kernel"
"""Attribute of the PrimFuncs that lutcc's own code generator made."""

Tuned: TypeAlias = Callable[[Any], Any]
"""A pass that schedules the PrimFuncs it has a tuned schedule for, and marks them
``tirx.is_scheduled``."""


def relax_pipeline(isa: str, tuned: Tuned | None = None) -> Callable[[Any], Any]:
    """Return the passes from an imported Relax module to a scheduled one.

    Parameters
    ----------
    isa
        ISA level that the default schedules are for.
    tuned
        Runs on the fused, unscheduled functions; what it leaves gets a default schedule. This is
        where tuned schedules come in.

    Examples
    --------
    >>> module = relax_pipeline("avx512")(program.module)
    """
    tvm = import_tvm()
    from tvm import relax

    def run(module: Any) -> Any:
        fused = tvm.transform.Sequential(
            [
                relax.transform.DecomposeOpsForInference(),
                relax.transform.CanonicalizeBindings(),
                relax.transform.LegalizeOps(legalizers()),
                relax.transform.RewriteDataflowReshape(),
                relax.transform.AnnotateTIROpPattern(),
                relax.transform.FoldConstant(),
                relax.transform.FuseOps(),
                relax.transform.FuseTIR(),
                relax.transform.DeadCodeElimination(),
            ]
        )(module)
        if tuned is not None:
            fused = tuned(fused)
        return schedule_module(fused, isa)

    return run


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
                    lowered.update(passes(tvm.IRModule(functions, attrs=module.attrs)))
            return lowered

        return lower, *finalize

    compilation_pipeline.PIPELINE_MAP["lutcc_relax"] = factory
    return "lutcc_relax"


def schedule_module(module: Any, isa: str) -> Any:
    """Give every PrimFunc that has none a default schedule: the first rule that applies.

    Examples
    --------
    >>> scheduled = schedule_module(fused, "avx2")
    """
    from tvm import tirx

    rules = default_rules(isa)
    updated = {}
    for symbol, function in module.functions_items():
        if not isinstance(function, tirx.PrimFunc) or function.attrs.get("tirx.is_scheduled"):
            continue
        for rule in rules:
            schedule = rule(function)
            if schedule is not None:
                updated[symbol] = schedule.mod["main"].with_attr("tirx.is_scheduled", True)
                break
    for symbol, function in updated.items():
        module[symbol] = function
    return module


def default_rules(isa: str) -> list[Callable[[Any], Any | None]]:
    """Return the default schedules in the order they are tried; None means: does not apply."""
    config = default_config(isa)
    return [
        lambda function: _try(schedule_matmul, function, config),
        lambda function: _try(schedule_rows, function, config.lanes),
        lambda function: _try(schedule_each_block, function, config.lanes),
    ]


def _try(rule: Callable[[Any, Any], Any | None], function: Any, argument: Any) -> Any | None:
    """Apply a rule; a primitive that refuses a loop nest means that the rule does not apply."""
    from tvm.error import InternalError
    from tvm.s_tir import ScheduleError

    try:
        return rule(function, argument)
    except (ScheduleError, InternalError):
        return None
