"""Writes a model for C and C++ programs: the artifact, the sources of the C library, an example."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lutcc.errors import ArtifactError
from lutcc.runtime.files import cannot_write

if TYPE_CHECKING:
    from lutcc.runtime.artifact import Artifact

HEADER = Path(__file__).parent / "include" / "lutcc.h"
NATIVE = Path(__file__).parent / "native"
MODEL = "model.lutcc"

_PROJECT = """\
# A model of lutcc with the library that runs it.
#
#   cmake -B build && cmake --build build
#   ./build/example model.lutcc 4 < inputs.raw > outputs.raw
cmake_minimum_required(VERSION 3.21)
project(model LANGUAGES CXX)
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release)
endif()
add_subdirectory(lutcc)
add_executable(example example.cpp)
target_compile_features(example PRIVATE cxx_std_17)
target_link_libraries(example PRIVATE lutcc::lutcc)
"""


def native_sources() -> list[Path]:
    """Return the sources of the C library, without its header."""
    return sorted(path for path in NATIVE.iterdir() if path.suffix in (".cpp", ".hpp", ".txt"))


def export_c(artifact: Artifact, folder: str | os.PathLike[str]) -> Path:
    """Write an artifact, packed, with the C library's sources; see :meth:`Artifact.export_c`."""
    folder = Path(folder)
    library = folder / "lutcc"
    try:
        library.mkdir(parents=True, exist_ok=True)
        for source in (HEADER, *native_sources()):
            (library / source.name).write_bytes(source.read_bytes())
        (library / "example.cpp").replace(folder / "example.cpp")
        (folder / "CMakeLists.txt").write_text(_PROJECT, encoding="utf-8")
    except OSError as error:
        raise cannot_write(Path(error.filename or folder), error, ArtifactError) from error
    artifact.save(folder / MODEL, packed=True)
    return folder
