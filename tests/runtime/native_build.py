"""Builds liblutcc from what `artifact.export_c` writes, with the sanitizers, for test_native.py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CMAKE, CXX, CC = shutil.which("cmake"), shutil.which("c++"), shutil.which("cc")
CLANG = shutil.which("clang++")
CHECKS = Path(__file__).parent / "native_checks.cpp"
# Without optimisation: these programs are compiled more than they run.
_FLAGS = "-O0 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all"
_PROJECT = """\
cmake_minimum_required(VERSION 3.21)
project(checks LANGUAGES CXX)
find_package(Threads REQUIRED)
add_subdirectory("{exported}" exported)
add_executable(checks "{checks}" "{exported}/lutcc/sha256.cpp")
target_compile_features(checks PRIVATE cxx_std_17)
target_compile_options(checks PRIVATE -Wall -Wextra -Werror)
target_compile_definitions(checks PRIVATE LUTCC_PLAIN_SHA256)
target_link_libraries(checks PRIVATE lutcc::lutcc Threads::Threads)
"""


@cache
def lacks() -> str | None:
    """Return why the library cannot be built here, or None."""
    if not CMAKE:
        return "there is no cmake"
    if not CXX or not CC:
        return "there is no C and C++ compiler"
    text = subprocess.run([CMAKE, "--version"], capture_output=True, text=True, check=False).stdout
    version = tuple(map(int, re.findall(r"\d+", text)[:2]))
    if version < (3, 21):
        return "cmake is older than 3.21"
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "program"
        command = [CXX, *_FLAGS.split(), "-x", "c++", "-", "-o", str(program)]
        tried = subprocess.run(command, input=b"int main() {}", capture_output=True, check=False)
        if not tried.returncode:
            tried = subprocess.run([str(program)], capture_output=True, check=False)
    return "programs with AddressSanitizer do not build or run" if tried.returncode else None


@dataclass(frozen=True)
class Native:
    """The programs, and the library that they use."""

    folder: Path

    @property
    def library(self) -> Path:
        """The shared library."""
        return self.folder / "exported" / "lutcc" / "liblutcc.so"

    def run(
        self,
        program: str,
        *arguments: object,
        data: bytes = b"",
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program; a finding of a sanitizer or an abort fails the test."""
        path = self.folder / ("exported/example" if program == "example" else program)
        done = subprocess.run(
            [str(path), *map(str, arguments)],
            input=data,
            capture_output=True,
            timeout=120,
            check=False,
            env={**os.environ, **(env or {})},
        )
        findings = done.stderr.decode(errors="replace")
        assert "Sanitizer" not in findings, findings
        assert "runtime error" not in findings, findings
        assert done.returncode in (0, 1), (done.returncode, findings)
        return done

    def check(self, *arguments: object, **env: str) -> str:
        """Run the checks and return what they print."""
        done = self.run("checks", *arguments, env=env)
        text = done.stdout.decode()
        assert done.returncode == 0, text + done.stderr.decode()
        return text.strip()


def build(exported: Path, folder: Path) -> Native:
    """Build the export and the checks."""
    assert CMAKE
    (folder / "CMakeLists.txt").write_text(_PROJECT.format(exported=exported, checks=CHECKS))
    options = [f"-DCMAKE_CXX_FLAGS={_FLAGS}", "-DCMAKE_BUILD_TYPE=None", "-DLUTCC_WERROR=ON"]
    for command in (
        [CMAKE, "-S", str(folder), "-B", str(folder / "build"), *options],
        [CMAKE, "--build", str(folder / "build"), "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return Native(folder / "build")


def by_hand(compiler: str, exported: Path, folder: Path) -> Path:
    """Build the exported library and the example without CMake; return the example."""
    folder.mkdir()
    sources = [*sorted((exported / "lutcc").glob("*.cpp")), exported / "example.cpp"]
    warnings = ("-Wall", "-Wextra", "-Werror")
    command = [compiler, "-std=c++17", "-O0", *warnings, f"-I{exported / 'lutcc'}", *sources]
    link = ["-rdynamic", "-ldl", "-pthread", "-o", folder / "example"]
    done = subprocess.run(
        [*map(str, command), *map(str, link)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "example"


def preloads() -> str | None:
    """Return LD_PRELOAD for an interpreter that opens the sanitized library; None: unknown."""
    found = []
    for name in ("libasan.so", "libstdc++.so"):
        text = subprocess.run(
            [str(CXX), f"-print-file-name={name}"], capture_output=True, text=True, check=False
        ).stdout.strip()
        if not os.path.isabs(text):
            return None
        found.append(text)
    return " ".join(found)
