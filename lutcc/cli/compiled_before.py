"""Whole artifacts in the compile cache: the same files and options give the same artifact again."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from lutcc.codegen.compile_cache import CompileCache, code_digest
from lutcc.runtime import Artifact, cpu
from lutcc.runtime.files import write_whole

#: Options that do not change what is compiled.
_OF_NO_ACCOUNT = ("command", "json", "no_cache", "output", "quiet", "tuning_logs", "verbose")


def artifact_key(
    cache: CompileCache, args: argparse.Namespace, output: Path, logs: Path | None
) -> str | None:
    """Return the name of the entry for what `lutcc compile` was asked for.

    It depends on the contents of every file that is named, on all other options, this processor,
    the tuning logs and all of lutcc's code. None where that is not all: the code of
    package.module:factory may be anywhere; and where the output is a folder.
    """
    if not Path(args.model).exists() or output.suffix not in (".lutcc", ".zip") or output.is_dir():
        return None
    options: dict[str, Any] = {}
    for name, value in vars(args).items():
        if name in _OF_NO_ACCOUNT:
            continue
        path = None if value is None or isinstance(value, bool | int) else Path(str(value))
        options[name] = str(value) if path is None or not path.exists() else _contents(path)
    root = Path(__file__).parents[1]
    shipped = root / "tuning_logs"
    found = [_contents(folder) for folder in (logs, shipped) if folder is not None]
    versions = [platform.python_version()]
    with suppress(importlib.metadata.PackageNotFoundError):
        versions.append(importlib.metadata.version("transformers"))
    folders = sorted(p.name for p in root.iterdir() if p.is_dir())
    own = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(root.glob("*.py")))).hexdigest()
    code = [own, code_digest(*folders), *versions]
    host = cpu.host()  # all that the names of the processor and its level are made of
    machine = [host.model, host.isa, sorted(host.flags), os.environ.get("LUTCC_CPU_NAME")]
    return cache.key("artifact", options, found, code, machine)


def recall(cache: CompileCache, key: str, output: Path) -> tuple[Artifact, Any] | None:
    """Write an artifact that was compiled before; return it and what was told of it, or None.

    Raises
    ------
    LutccError
        When it cannot be written.
    """
    entry = cache.get(key)
    if entry is None:
        return None
    write_whole({output: lambda stream: stream.write(entry.blob)}, nbytes=len(entry.blob))
    return Artifact.read(output), entry.data


def remember(cache: CompileCache, key: str, saved: Path, told: Any) -> None:
    """Keep an artifact that was just written, and plain data."""
    if saved.stat().st_size <= cache.largest:
        cache.put(key, told, saved.read_bytes())


def _contents(path: Path) -> str:
    """Return a digest of a file, or of all files in a folder."""
    hashed = hashlib.sha256()
    for name, file in _files(path):
        with file.open("rb") as stream:
            own = hashlib.file_digest(stream, "sha256").hexdigest()
        hashed.update(f"{name} {own}\n".encode())
    return hashed.hexdigest()


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        yield path.suffix, path
    else:
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            yield str(file.relative_to(path)), file
