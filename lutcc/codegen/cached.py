"""Lowering and building through a compile cache: what was built before is read from there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lutcc import ir
from lutcc.codegen.build import build_module, link
from lutcc.codegen.compile_cache import CompileCache
from lutcc.codegen.lower import lower
from lutcc.codegen.program import Program
from lutcc.codegen.tvm_setup import import_tvm
from lutcc.ir.module import Module
from lutcc.schedules.x86.isa import isa_by_name


def build_program(
    module: Module,
    isa: str,
    configs: Mapping[str, Mapping[str, Any]],
    path: Path,
    *,
    mcpu: str | None = None,
    cache: CompileCache | None = None,
) -> Program:
    """Lower a module for one level and write its library to ``path``.

    Parameters
    ----------
    module
        After :func:`lutcc.codegen.lower.prepare`.
    isa, configs, mcpu
        As :func:`lutcc.codegen.lower` and :func:`lutcc.codegen.build_module` take them.
    path
        Of the shared library.
    cache
        Where to look first. A module that was lowered before, with the same constants and configs,
        is not lowered again; kernels that were built before are not built again, whatever the
        constants that they read.

    Raises
    ------
    CompileError
        If lowering or building fails.
    """
    if cache is None:
        lowered = lower(module, isa, configs)
        link(build_module(lowered, mcpu=mcpu), path)
        return lowered.program
    text = ir.to_text(module, elide_constants=True)
    key = cache.key("program", text, isa, {name: dict(c) for name, c in configs.items()})
    known, lowered = cache.get(key), None
    if known is None:
        lowered = lower(module, isa, configs)
        data = {
            "program": lowered.program.to_json(),
            "functions": functions_digest(lowered.functions),
        }
        cache.put(key, data)
    else:
        data = known.data
    target = isa_by_name(isa).llvm_target(mcpu)
    library_key = cache.key("library", data["functions"], target)
    library = cache.get(library_key)
    if library is not None:
        path.write_bytes(library.blob)
        return Program.from_json(data["program"])
    lowered = lowered or lower(module, isa, configs)
    link(build_module(lowered, mcpu=mcpu), path)
    cache.put(library_key, {}, path.read_bytes())
    return lowered.program


def functions_digest(functions: Mapping[str, Any]) -> str:
    """Return a digest of TVM's functions by symbol.

    Equal digests mean equal code; functions that differ in the names of variables only may have
    different ones.
    """
    save_json = import_tvm().ir.save_json
    hashed = hashlib.sha256()
    for name, function in sorted(functions.items()):
        text = save_json(function).encode()
        hashed.update(f"{name} {len(text)}\n".encode() + text)
    return hashed.hexdigest()
