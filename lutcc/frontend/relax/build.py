"""Build a mixed model: one Relax executable per ISA level, weights apart."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lutcc import ir
from lutcc.codegen.tvm_setup import import_tvm
from lutcc.errors import CompileError, FrontendError, TargetError, suggest
from lutcc.frontend.graph import Port
from lutcc.frontend.relax.kernels import RegionCompiler, compile_region
from lutcc.frontend.relax.pipeline import Tuned, loop_pipeline, relax_pipeline
from lutcc.frontend.relax.program import refuse_unknown_ops, to_relax
from lutcc.frontend.torch_import import Imported
from lutcc.ir.types import Array

TARGETS: Mapping[str, Mapping[str, Any]] = {
    "avx2": {"kind": "llvm", "mcpu": "x86-64-v3"},
    "avx512": {"kind": "llvm", "mcpu": "x86-64-v4", "mattr": ["-prefer-256-bit"]},
    "avx512_vbmi_vnni": {
        "kind": "llvm",
        "mcpu": "x86-64-v4",
        "mattr": ["+avx512vbmi", "+avx512vnni", "-prefer-256-bit"],
    },
}
"""LLVM target of each ISA level."""


@dataclass(frozen=True)
class MixedBuild:
    """A mixed model, built.

    Attributes
    ----------
    so_paths
        Relax executable of each ISA level; its ``main`` takes the inputs and then ``params``, all
        of them, in order.
    params
        Arrays by name, in call order. Packed constants of a region stand there once per distinct
        packing.
    module_texts
        Text of each region's IR module, constants elided, by region name.
    inputs, outputs
        Ports in call order.
    kernels
        Records of the regions' kernels for each ISA level.
    notes
        What the import had to say.
    """

    so_paths: dict[str, Path]
    params: dict[str, Array]
    module_texts: dict[str, str]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    kernels: dict[str, list[Mapping[str, Any]]]
    notes: tuple[str, ...] = ()

    @property
    def param_order(self) -> tuple[str, ...]:
        """Names of the parameters in call order."""
        return tuple(self.params)


@dataclass
class _Params:
    """Parameters of all ISA levels, each array once."""

    arrays: dict[str, Array] = field(default_factory=dict)
    names: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, isa: str, name: str, array: Array) -> None:
        """Store the array that ``isa`` calls ``name`` under a name that no different array has."""
        for candidate in (name, f"{name}.{isa}"):
            stored = self.arrays.get(candidate)
            if stored is None or (
                stored.shape == array.shape and stored.tobytes() == array.tobytes()
            ):
                self.arrays.setdefault(candidate, array)
                self.names[isa, name] = candidate
                return


def build_mixed(
    imported: Imported,
    isas: Sequence[str],
    out_dir: str | os.PathLike[str],
    *,
    compile_region: RegionCompiler = compile_region,
    tuned: Tuned | None = None,
) -> MixedBuild:
    """Compile a mixed model for each ISA level into ``out_dir/kernels-<isa>.so``.

    Parameters
    ----------
    imported
        Result of :func:`lutcc.frontend.import_torch` with ``kind == "mixed"``.
    isas
        Names of ISA levels, see :data:`TARGETS`.
    out_dir
        An existing folder.
    compile_region
        Makes the kernels of a region.
    tuned
        Pass with tuned schedules for the exact layers; what it leaves gets a default schedule.

    Raises
    ------
    TargetError
        If an ISA level is unknown.
    FrontendError
        If an exact layer cannot be imported.
    CompileError
        If TVM cannot build the code.

    Examples
    --------
    >>> build = build_mixed(import_torch(model, x), ["avx2", "avx512"], "out")
    >>> build.so_paths["avx2"].name
    'kernels-avx2.so'
    """
    if imported.kind != "mixed" or imported.graph is None:
        raise FrontendError(
            "the model is whole in the IR and needs no Relax",
            where="build_mixed",
            fix="compile imported.module with lutcc.compile",
        )
    for isa in isas:
        if isa not in TARGETS:
            raise TargetError(
                f"unknown ISA level {isa!r}", where="build_mixed", fix=suggest(isa, TARGETS)
            )
    import_tvm()
    refuse_unknown_ops(imported.graph, imported.regions)
    params, programs, kernels = _Params(), {}, {}
    for isa in isas:
        regions = {r.name: compile_region(r.name, r.module, isa) for r in imported.regions}
        programs[isa] = to_relax(imported.graph, imported.regions, regions)
        kernels[isa] = [record for region in regions.values() for record in region.kernels]
        for name, array in programs[isa].params.items():
            params.add(isa, name, array)
    paths = {}
    for isa, program in programs.items():
        names = [params.names[isa, name] for name in program.params]
        whole = _with_params(program.module, len(imported.inputs), names, params.arrays)
        paths[isa] = Path(out_dir) / f"kernels-{isa}.so"
        _build(relax_pipeline(isa, tuned), whole, isa, paths[isa])
    texts = {r.name: ir.to_text(r.module, elide_constants=True) for r in imported.regions}
    return MixedBuild(
        paths, params.arrays, texts, imported.inputs, imported.outputs, kernels, imported.notes
    )


def _with_params(module: Any, inputs: int, own: Sequence[str], arrays: Mapping[str, Array]) -> Any:
    """Give ``main`` the parameters of all ISA levels, so that every executable is called alike."""
    from tvm import relax

    main = module["main"]
    by_name = dict(zip(own, main.params[inputs:], strict=True))
    ordered = [
        by_name[name]
        if name in by_name
        else relax.Var(name, relax.TensorType(array.shape, str(array.dtype)))
        for name, array in arrays.items()
    ]
    function = relax.Function(
        [*main.params[:inputs], *ordered], main.body, main.ret_ty, main.is_pure, main.attrs
    )
    module["main"] = function
    return module


def _build(pipeline: Any, module: Any, isa: str, path: Path) -> None:
    from lutcc.codegen.build import link

    tvm = import_tvm()
    target = tvm.target.Target(dict(TARGETS[isa]))
    try:
        with target:
            executable = tvm.compile(pipeline(module), target=target, tir_pipeline=loop_pipeline())
    except Exception as error:  # TVM raises many classes; all mean that the build failed
        last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise CompileError(
            f"TVM could not build the exact layers: {last[0]}",
            where=f"{isa}, {path.name}",
            fix="run 'lutcc doctor'; if all is well there, report the model's layers",
        ) from error
    link(executable, path)
