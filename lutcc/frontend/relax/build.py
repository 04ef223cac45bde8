"""Build a mixed model: one Relax executable per ISA level, weights apart."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lutcc import ir
from lutcc.codegen.compile_cache import CompileCache
from lutcc.codegen.tvm_setup import import_tvm
from lutcc.errors import CompileError, FrontendError
from lutcc.frontend.graph import Port
from lutcc.frontend.relax.cached import Asked, MixedCache, shapes_of
from lutcc.frontend.relax.kernels import RegionCompiler, RegionKernel, compile_region
from lutcc.frontend.relax.pipeline import Choice, fuse_module, loop_pipeline, schedule_module
from lutcc.frontend.relax.program import outline, refuse_unknown_ops, to_relax
from lutcc.frontend.relax.regions import prepared_region
from lutcc.frontend.torch_import import Imported
from lutcc.ir.passes import LookupNote
from lutcc.ir.types import Array
from lutcc.schedules.x86.isa import isa_by_name


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
        Records of the kernels of regions and exact layers for each ISA level.
    notes
        What the import had to say.
    lookups
        What becomes of the look-ups in each region.
    """

    so_paths: dict[str, Path]
    params: dict[str, Array]
    module_texts: dict[str, str]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    kernels: dict[str, list[Mapping[str, Any]]]
    notes: tuple[str, ...] = ()
    lookups: tuple[LookupNote, ...] = ()

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
    choice: Choice | None = None,
    mcpus: Mapping[str, str | None] | None = None,
    cache: CompileCache | None = None,
) -> MixedBuild:
    """Compile a mixed model for each ISA level into ``out_dir/kernels-<isa>.so``.

    Parameters
    ----------
    imported
        Result of :func:`lutcc.frontend.import_torch` with ``kind == "mixed"``.
    isas
        Names of ISA levels, see :data:`lutcc.schedules.x86.isa.ISAS`.
    out_dir
        An existing folder.
    compile_region
        Makes the kernels of a region.
    choice
        Knows the tuned configs of regions and exact layers; without it all get defaults.
    mcpus
        LLVM CPU to tune code for, for each ISA level; the level still decides which instructions
        are used.
    cache
        Where to look first. A region that was lowered before, with the same constants and configs,
        is not lowered again; an executable of the same graph and kernels is not built again,
        whatever the constants.

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
    targets = {isa: isa_by_name(isa).llvm_target((mcpus or {}).get(isa)) for isa in isas}
    import_tvm()
    refuse_unknown_ops(imported.graph, imported.regions)
    open_sizes = {str(symbol): name for symbol, name in imported.graph.symbols.items()}
    params = _Params()
    outlines: dict[str, tuple[str | None, Mapping[str, Array]]] = {}
    kernels: dict[str, list[Mapping[str, Any]]] = {}
    regions: dict[str, dict[str, RegionKernel]] = {}
    known = None if cache is None else MixedCache(cache, compile_region)
    lookups: list[LookupNote] = []
    modules = {r.name: prepared_region(r, lookups) for r in imported.regions}
    for isa in isas:
        make = compile_region if known is None else known.region
        own = {r.name: make(r.name, modules[r.name], isa, choice) for r in imported.regions}
        regions[isa], outlines[isa] = own, outline(imported.graph, imported.regions, own)
        kernels[isa] = [record for region in own.values() for record in region.kernels]
        for name, array in outlines[isa][1].items():
            params.add(isa, name, array)

    def whole(isa: str) -> dict[str, RegionKernel]:
        """Return the regions' kernels, those that came from the cache lowered again."""
        return {
            r.name: own
            if (own := regions[isa][r.name]).function is not None
            else compile_region(r.name, modules[r.name], isa, choice)
            for r in imported.regions
        }

    paths = {}
    for isa in isas:
        text, own_params = outlines[isa]
        names = [params.names[isa, name] for name in own_params]
        paths[isa] = Path(out_dir) / f"kernels-{isa}.so"
        key = None
        if known is not None and text is not None:
            made_of = (names, shapes_of(params.arrays), targets[isa], open_sizes, choice is None)
            key = known.key(text, isa, regions[isa], *made_of)
            records = None if key is None else known.executable(key, isa, choice, paths[isa])
            if records is not None:
                kernels[isa].extend(records)
                continue
        program = to_relax(imported.graph, imported.regions, whole(isa))
        module = _with_params(program.module, len(imported.inputs), names, params.arrays)
        asked = None if choice is None else Asked(choice)
        scheduled = schedule_module(_fused(module), isa, asked, open_sizes)
        kernels[isa].extend(scheduled.kernels)
        _build(scheduled.module, targets[isa], paths[isa])
        if known is not None and key is not None:
            known.keep(key, asked, scheduled.kernels, paths[isa])
    texts = {r.name: ir.to_text(r.module, elide_constants=True) for r in imported.regions}
    return MixedBuild(
        paths,
        params.arrays,
        texts,
        imported.inputs,
        imported.outputs,
        kernels,
        imported.notes,
        tuple(lookups),
    )


def _fused(module: Any) -> Any:
    try:
        return fuse_module(module)
    except Exception as error:  # TVM raises many classes; all mean that it cannot lower an op
        last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise CompileError(
            f"TVM cannot lower the exact layers to loops: {last[0]}",
            where="an exact layer of a mixed model",
            fix="compile the parts of the model one by one to find the layer, and replace it",
        ) from error


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


def _build(module: Any, llvm: Mapping[str, Any], path: Path) -> None:
    from lutcc.codegen.build import link

    tvm = import_tvm()
    target = tvm.target.Target(dict(llvm))
    try:
        with target:
            executable = tvm.compile(module, target=target, tir_pipeline=loop_pipeline())
    except Exception as error:  # TVM raises many classes; all mean that the build failed
        last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise CompileError(
            f"TVM could not build the exact layers: {last[0]}",
            where=path.name,
            fix="run 'lutcc doctor'; if all is well there, report the model's layers",
        ) from error
    link(executable, path)
