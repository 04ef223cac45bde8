"""Puts compiled parts together into a manifest and the files it describes."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lutcc.errors import ArtifactError, TargetError, suggest
from lutcc.runtime import constants as stored
from lutcc.runtime import cpu
from lutcc.runtime.kernel import pack
from lutcc.runtime.manifest import (
    CONSTANTS,
    FILE_NAME,
    MODULE,
    FileEntry,
    Manifest,
    Variant,
    read_manifest,
)
from lutcc.runtime.signature import spec_from_any

if TYPE_CHECKING:
    from lutcc.ir import Module

Paths = Mapping[str, str | os.PathLike[str]]
Bundle = tuple[Manifest, dict[str, bytes]]

_PACKAGES = ("apache-tvm", "apache-tvm-ffi", "numpy", "safetensors")


def bundle_programs(
    module: Module, programs: Sequence[Any], so_paths: Paths, extra: Mapping[str, Any] | None
) -> Bundle:
    """Bundle look-up programs; see :meth:`lutcc.runtime.Artifact.from_programs`."""
    from lutcc import ir

    plain = [_program_json(program) for program in programs]
    if not plain:
        raise ArtifactError("no program was given", fix="pass one Program per ISA level")
    for program in plain:
        sources = {name for part in program["blob"] for name in part["sources"]}
        missing = sorted(sources - set(module.constants))
        if missing:
            raise ArtifactError(
                f"the program for {program['isa']} packs the constants {missing}, which the module "
                "does not hold",
                fix="pass the module as it was after the passes (Lowered.module)",
            )
    contents = {
        MODULE: ir.to_text(module, elide_constants=True).encode(),
        CONSTANTS: stored.dump(module.constants),
    }
    variants = [
        Variant(p["isa"], _add_library(contents, p["isa"], so_paths), tuple(p["features"]), p)
        for p in plain
    ]
    return _bundle(
        variants,
        contents,
        extra,
        kind="ir",
        inputs=tuple(spec_from_any(value, "inputs") for value in plain[0]["inputs"]),
        outputs=tuple(spec_from_any(value, "outputs") for value in plain[0]["outputs"]),
        modules=(MODULE,),
        work_per_row=work_per_row(module),
    )


def bundle_relax(
    module_texts: Mapping[str, str],
    so_paths: Paths,
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    constants: Mapping[str, np.ndarray],
    param_order: Sequence[str] | Mapping[str, Sequence[str]],
    extra: Mapping[str, Any] | None,
) -> Bundle:
    """Bundle Relax executables; see :meth:`lutcc.runtime.Artifact.from_relax`."""
    contents = {CONSTANTS: stored.dump(constants)}
    modules = []
    for name, text in module_texts.items():
        file = name if name.endswith(".ir") else f"{name}.ir"
        if not FILE_NAME.fullmatch(file):
            raise ArtifactError(
                f"{name!r} cannot name a file", fix="use letters, digits, '_', '.' and '-'"
            )
        contents[file] = text.encode()
        modules.append(file)
    variants = []
    for isa in sorted(so_paths, key=_isa_rank):
        params = param_order.get(isa, ()) if isinstance(param_order, Mapping) else param_order
        missing = [name for name in params if name not in constants]
        if missing:
            raise ArtifactError(
                f"param_order names {missing}, which constants does not hold",
                fix=suggest(missing[0], constants),
            )
        file = _add_library(contents, isa, so_paths)
        variants.append(Variant(isa, file, cpu.ISA_FEATURES[isa], params=tuple(params)))
    return _bundle(
        variants,
        contents,
        extra,
        kind="relax",
        inputs=tuple(spec_from_any(value, "inputs") for value in inputs),
        outputs=tuple(spec_from_any(value, "outputs") for value in outputs),
        modules=tuple(modules),
    )


def with_packed(manifest: Manifest, contents: Mapping[str, bytes]) -> Bundle:
    """Return the bundle with the packed constants of every variant of look-up kernels.

    Raises
    ------
    ArtifactError
        When the constants do not fit a program.
    """
    more, variants = dict(contents), []
    constants = stored.load(contents[CONSTANTS])
    for variant in manifest.variants:
        if variant.program is not None and variant.packed is None:
            name = f"packed-{variant.isa}.bin"
            more[name] = pack(variant.program, constants, variant.file).tobytes()
            variant = replace(variant, packed=name)
        variants.append(variant)
    files = {name: FileEntry.of(data) for name, data in more.items()}
    fresh = replace(manifest, variants=tuple(variants), files=files)
    return read_manifest(fresh.to_bytes(), "new artifact"), more


def work_per_row(module: Module) -> dict[str, int]:
    """Return what a module does per unit of its batch: look-ups, FLOPs, comparisons, bytes.

    Bytes are those that go in and out of stages: what is between the operations of one stays in the
    nearest caches. With several open sizes, per unit of their product, where each is 32.
    """
    from lutcc import ir

    symbols, first = module.main.symbols, module.main.params[0].type.shape[:1]
    n = 1024 if len(symbols) < 2 else 32
    rows = n ** len(symbols) if symbols else next((d for d in first if isinstance(d, int)), 1)
    cost = ir.cost(module, n=n)
    total, main = cost.total, module.main
    moved = sum(
        row.cost.bytes_read - row.cost.table_bytes + row.cost.bytes_written
        for row in cost.rows
        if row.function == main.name and row.opcode != "call"
    )
    stages = [op for op in main.body if op.opcode == "call"]
    passed = [value.type for op in stages for value in (*op.operands, *op.results)]
    amounts = {
        "lookups": total.lookups,
        "flops": total.flops,
        "comparisons": total.comparisons,
        "bytes": moved + sum(type_.substitute(cost.symbols).nbytes for type_ in passed),
    }
    return {key: -(-int(value) // rows) for key, value in amounts.items()}


def _bundle(
    variants: Sequence[Variant],
    contents: dict[str, bytes],
    extra: Mapping[str, Any] | None,
    **parts: Any,
) -> Bundle:
    from lutcc import __version__

    manifest = Manifest(
        variants=tuple(sorted(variants, key=lambda variant: _isa_rank(variant.isa))),
        files={name: FileEntry.of(data) for name, data in contents.items()},
        lutcc_version=__version__,
        versions=_versions(),
        extra=dict(extra or {}),
        **parts,
    )
    # Through the same checks as a file from elsewhere: what is written can be read.
    return read_manifest(manifest.to_bytes(), "new artifact"), contents


def _isa_rank(isa: str) -> int:
    if isa not in cpu.ISA_LEVELS:
        raise TargetError(f"{isa!r} is no instruction-set level", fix=suggest(isa, cpu.ISA_LEVELS))
    return cpu.ISA_LEVELS.index(isa)


def _add_library(contents: dict[str, bytes], isa: str, so_paths: Paths) -> str:
    if isa not in so_paths:
        raise ArtifactError(f"no shared library was given for {isa}", fix=suggest(isa, so_paths))
    name = f"kernels-{isa}.so"
    try:
        contents[name] = Path(so_paths[isa]).read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"cannot be read: {error.strerror}", where=str(so_paths[isa]), fix="build it first"
        ) from error
    return name


def _program_json(program: Any) -> dict[str, Any]:
    value = program.to_json() if hasattr(program, "to_json") else program
    # Through JSON once: tuples become lists, as a reader will see them.
    return json.loads(value if isinstance(value, str) else json.dumps(dict(value)))


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
