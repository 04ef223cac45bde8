"""Machine code from lowered modules: compile with LLVM, link, one library per level."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lutcc.codegen.lower import Lowered
from lutcc.codegen.tvm_setup import import_tvm
from lutcc.errors import CompileError, DependencyError
from lutcc.schedules.x86.isa import isa_by_name


@functools.cache
def kernel_pipeline() -> str:
    """Register the passes that lutcc's kernels need, and return the name of the pipeline.

    Kernels are emitted with flat buffers, explicit vectors and planned memory; TVM's default
    pipeline spends seconds on passes that find nothing to do in them.
    """
    tvm = import_tvm()
    from tvm.s_tir.pipeline import finalize_device_passes, finalize_host_passes
    from tvm.tirx import compilation_pipeline
    from tvm.tirx import transform as tx

    passes = [
        tx.VerifyMemory(),
        tx.AnnotateEntryFunc(),
        tx.SplitHostDevice(),
        tx.MakePackedAPI(),
        tx.BF16StorageLegalize(),  # arguments in bfloat16 are memory of 16-bit integers
    ]

    def factory() -> Any:
        return tvm.ir.transform.Sequential(passes), finalize_host_passes, finalize_device_passes

    compilation_pipeline.PIPELINE_MAP["lutcc"] = factory
    return "lutcc"


def build_module(lowered: Lowered, *, mcpu: str | None = None) -> Any:
    """Compile in this process and return TVM's executable (``["lutcc_main"]`` is the entry).

    ``.inspect_source("asm")`` of the result is the assembly.
    """
    tvm = import_tvm()
    isa = isa_by_name(lowered.program.isa)
    target = tvm.target.Target(isa.llvm_target(mcpu))
    module = tvm.IRModule(dict(lowered.functions))
    pipeline = kernel_pipeline()
    try:
        return tvm.tirx.build(module, target=target, pipeline=pipeline)
    except Exception as error:  # TVM raises many classes; all mean that the build failed
        last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise CompileError(
            f"TVM could not build the kernels: {last[0]}",
            where=f"{isa.name}, {lowered.program.entry}",
            fix="run 'lutcc doctor'; if all is well there, report the module's text",
        ) from error


def build(
    programs: Iterable[Lowered], directory: str | Path, *, mcpu: str | None = None
) -> dict[str, Path]:
    """Compile and link each lowered module into ``directory/kernels-<isa>.so``.

    Parameters
    ----------
    programs
        Lowered modules, at most one for each level.
    directory
        An existing folder.
    mcpu
        LLVM CPU name to tune code for; the level still decides which instructions are used.

    Returns
    -------
    dict
        Path of the library of each level.

    Raises
    ------
    CompileError
        If TVM or the linker fails.
    DependencyError
        If there is neither a C compiler nor ``ld``.
    """
    paths = {}
    for lowered in programs:
        isa = lowered.program.isa
        path = Path(directory) / f"kernels-{isa}.so"
        link(build_module(lowered, mcpu=mcpu), path)
        paths[isa] = path
    return paths


def link(executable: Any, path: Path, *, fast: bool = False) -> None:
    """Write TVM's executable as a shared library with whatever linker there is.

    ``fast`` prefers ``ld`` (a few milliseconds) to a C compiler (50 and more) as the linker: for
    kernels that are measured and thrown away. The code is the same.
    """
    compiler = next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    linker = next((c for c in ("ld", "ld.lld") if shutil.which(c)), None)
    if compiler and not (fast and linker):
        executable.export_library(str(path), cc=shutil.which(compiler))
        return
    if linker is None:
        raise DependencyError(
            "there is no linker on this machine",
            where="lutcc.codegen.build",
            fix="install gcc, clang or binutils (ld)",
        )
    objects = path.with_suffix(".o")
    getattr(executable, "mod", executable).write_to_file(str(objects), "o")
    done = subprocess.run(
        [linker, "-shared", "-o", str(path), str(objects)], capture_output=True, text=True
    )
    objects.unlink(missing_ok=True)
    if done.returncode:
        raise CompileError(
            f"{linker} failed: {done.stderr.strip()}", where=path.name, fix="install gcc or clang"
        )
